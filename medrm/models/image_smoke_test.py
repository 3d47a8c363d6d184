"""The check at start-up that an image reaches the reward, on a noise image and a uniform one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from medrm.errors import ConfigError, first_line
from medrm.models.families import Family
from medrm.models.reward_model import last_attended, without_adapter

_SIDE = 112
_SMALLEST_CHANGE = 1e-6
"""Relative to the largest value; a second run on the same input changes less on any device."""


def _batch(processor: Any, image: Image.Image) -> dict[str, Tensor]:
    """Returns one question about one image, [1, L] and the image's tensors."""
    question = [{"type": "image"}, {"type": "text", "text": "What does the image show?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return dict(processor(text=[text], images=[[image]], return_tensors="pt"))


def _differ(first: Tensor, second: Tensor) -> bool:
    scale = torch.maximum(first.abs().max(), second.abs().max())
    return bool((first - second).abs().max() > _SMALLEST_CHANGE * scale)


def _run(
    model: PreTrainedModel, family: Family, batch: dict[str, Tensor]
) -> tuple[Tensor | None, Tensor]:
    """Returns the vision tower's output, None if it did not run, and the last state, [1, H].

    Args:
        model: a stock or a reward model.
        family: its family.
        batch: one row.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features = output[family.features[0]]
        # Of the hidden states those alone are there that the model reads.
        tensors = features if isinstance(features, (tuple, list)) else (features,)
        outputs.append(next(tensor for tensor in reversed(tensors) if tensor is not None))

    handle = model.get_submodule(family.vision).register_forward_hook(keep)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    try:
        with torch.no_grad():
            states = model.get_submodule("model")(**batch, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    state = last_attended(states, batch["attention_mask"])
    return (outputs[0].float() if outputs else None), state.float()


def check_image_reaches(
    model: PreTrainedModel | PeftModel, processor: ProcessorMixin, family: Family
) -> None:
    """Checks that a noise image and a uniform one give other image features and hidden states.

    Never run on the data's own images: two of them may be alike. Not for text-only data.

    Args:
        model: a stock or a reward model, with or without an adapter.
        processor: its processor.
        family: its family.

    Raises:
        ConfigError: the image makes no difference, or cannot be given; says where it is lost.
    """
    base = without_adapter(model)
    noise = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (_SIDE, _SIDE), (127, 127, 127))]
    training = base.training
    base.train(False)
    try:
        (noise_features, noise_state), (grey_features, grey_state) = (
            _run(base, family, _batch(processor, image)) for image in images
        )
    except (ValueError, TemplateError) as error:
        raise ConfigError(_lost(base, family, first_line(error).rstrip("."))) from error
    finally:
        base.train(training)
    lost = None
    if noise_features is None or grey_features is None:
        lost = "the vision tower did not run, so the processor's pixels were dropped"
    elif not noise_features.isfinite().all():
        lost = "the vision tower gives numbers that are not finite"
    elif not _differ(noise_features, grey_features):
        lost = "the vision tower gives the same features for noise and for a uniform image"
    elif not noise_state.isfinite().all():
        lost = "the decoder gives numbers that are not finite"
    elif not _differ(noise_state, grey_state):
        lost = "the image features do not change the hidden state that the reward is read from"
    if lost is not None:
        raise ConfigError(_lost(base, family, lost))


def _lost(base: PreTrainedModel, family: Family, where: str) -> str:
    return (
        f"Images do not reach the model ({family.name}, {type(base).__name__}): {where}. "
        "Check that the processor and the chat template are those of this checkpoint, and that its "
        "weights are whole."
    )
