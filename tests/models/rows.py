"""Rows for tests of models: question, image and answer through a family's real processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_image

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.adapter_config import AdapterConfig, new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter

ANSWERS = ("Yes, the lungs are clear and no abnormality is seen.", "No")
SPEC = HeadSpec(("accuracy", "overall"), ties="davidson", tied_dimensions=("overall",))


def batch(
    processor: Any,
    family: str,
    answers: tuple[str, ...] = ANSWERS,
    seeds: tuple[int, ...] = (0, 1),
    side: str = "right",
) -> dict[str, torch.Tensor]:
    """Returns one row for each answer, with an image of its own size and noise."""
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "What is seen?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
            tokenize=False,
        )
        for answer in answers
    ]
    images = [tiny_image(seed, 60 - 10 * seed, 40 + 10 * seed) for seed in seeds]
    return dict(
        processor(
            text=texts,
            images=[[image] for image in images],
            padding=True,
            padding_side=side,
            return_tensors="pt",
        )
    )


def reward_model(folder: Path, spec: HeadSpec = SPEC, **options: Any) -> tuple[Any, Any]:
    """Returns a base with a head, and the processor."""
    base = load_base(ModelOptions(model_name_or_path=str(folder), **options))
    return attach_head(base, spec, seed=1), load_processor(str(folder))


def train(model: Any, inputs: dict[str, torch.Tensor], steps: int = 2) -> None:
    """Takes steps that change every trainable weight, LoRA's zero matrices included."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-2)
    for _ in range(steps):
        output = model(**inputs)
        ties = torch.nan_to_num(output.tie_logits, neginf=0.0)
        loss = -(output.rewards[0] - output.rewards[1]).sum() + (ties - 1).square().sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def trained(
    folder: Path,
    family: str,
    adapter: AdapterOptions | None = None,
    spec: HeadSpec = SPEC,
    **options: Any,
) -> tuple[Any, Any, AdapterConfig]:
    """Returns a model after a few steps, its processor and its contract."""
    model, processor = reward_model(folder, spec, **options)
    adapter = adapter or AdapterOptions(lora_r=4, lora_alpha=8)
    model = add_adapter(model, adapter, seed=2)
    train(model, batch(processor, family))
    contract = new_adapter_config(
        model,
        processor,
        ModelOptions(model_name_or_path=str(folder), **options),
        objective="bradley_terry",
        readout="reward",
    )
    return model, processor, contract


@torch.no_grad()
def rewards(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).rewards
