"""The vision tower: computes equal images of a batch once, and is checked to reach the reward.

    a a b a   the images of a call          (units: images, or rows where images are tiled)
    0 0 2 0   index of the first equal one  -> distinct images 0 and 2
    a b       what the stock tower computes
    A A B A   its output, repeated; so the gradients of equal images add up where the tower trains

The answers of a case, the two orders of a judge's prompt and the cases about one image repeat
images. The swapped class finds them in whatever call comes, in training and in scoring. It is put
on towers alone whose inputs and outputs are known to lie image by image.

The check runs at start-up, on a noise image and a uniform one.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from jinja2 import TemplateError
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.errors import ConfigError, first_line
from medrm.models.backbone import final_states, last_attended, tower_of
from medrm.models.families import family_of
from medrm.models.reward_model import without_adapter

_IMAGE_TOWERS = frozenset(
    (
        "clip_vision_model",
        "siglip_vision_model",
        "internvl_vision",
        "idefics3_vision",
        "smolvlm_vision",
        "mllama_vision_model",
    )
)
"""Vision towers (`model_type`) that take and give one image after another. Others join all images
in one sequence, or drop what is padding."""

_SIZE = (112, 28)
"""(width, height): few tiles for processors that scale the longer side up."""

_SMALLEST_CHANGE = 1e-6
"""Relative to the largest value; a second run on the same input changes less on any device."""


def _bits(images: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Returns the bits of tensors as integers, eight bytes in each where all lie so.

    Compared by them NaN, too, equals itself, and wide integers are summed up much faster.
    """
    bits = [[tensor.reshape(-1).view(torch.uint8) for tensor in image] for image in images]
    starts_and_lengths = ((raw.storage_offset(), len(raw)) for image in bits for raw in image)
    if any(number % 8 for numbers in starts_and_lengths for number in numbers):
        return bits
    return [[raw.view(torch.int64) for raw in image] for image in bits]


def first_equal(images: Sequence[Sequence[Tensor]]) -> list[int]:
    """Returns for each image the index of the first equal one, which may be its own.

    Checksums, computed where the tensors lie and copied to main memory in a single transfer, say
    which images may be equal; only those are compared element by element.

    Args:
        images: the tensors of each image (pixels, grid, ...), equally many for all.
    """
    bits = _bits(images)
    sums = [torch.stack([tensor.sum(dtype=torch.int64) for tensor in image]) for image in bits]
    candidates: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    first = []
    for index, checksum in enumerate(torch.stack(sums).tolist()):
        key = (*checksum, *((tensor.dtype, tensor.shape) for tensor in images[index]))
        for earlier in candidates[key]:
            if all(map(torch.equal, bits[earlier], bits[index])):
                first.append(earlier)
                break
        else:
            candidates[key].append(index)
            first.append(index)
    return first


def _tower_layout(tower: nn.Module) -> Literal["patches", "images"] | None:
    """Returns how images lie in a tower's inputs and outputs; None: not known to be told apart.

    "patches": one tensor with the patches of all images, and a grid for each image. "images": one
    image (or one row of tiles) after another.
    """
    if _parameters(tower) == ["hidden_states", "grid_thw"]:
        return "patches"
    model_type = getattr(getattr(tower, "config", None), "model_type", None)
    return "images" if model_type in _IMAGE_TOWERS else None


def _parameters(tower: nn.Module) -> list[str]:
    """Returns the names of what a tower takes by name, the pixels first."""
    parameters = inspect.signature(stock_tower(tower).forward).parameters.values()
    return [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][1:]


def _split(
    inputs: dict[str, Any], pixels: str, lengths: list[int]
) -> dict[str, tuple[Tensor, ...]] | None:
    """Cuts the tensors among a tower's inputs into images; None: it has others.

    Args:
        inputs: by name.
        pixels: name of the one whose images are `lengths` long.
        lengths: of the images.

    Returns:
        by input, one tensor for each image.
    """
    if len(inputs[pixels]) != sum(lengths):
        return None
    cut = {pixels: torch.split(inputs[pixels], lengths)}
    for name, tensor in inputs.items():
        # Trainers pass on what is not for the tower, such as the number of labels in the batch.
        if name == pixels or not isinstance(tensor, Tensor) or not tensor.ndim:
            continue
        if len(tensor) != len(lengths):
            return None
        cut[name] = torch.split(tensor, 1)
    return cut


class DeduplicatingTower:
    """What the swapped class adds to a vision tower."""

    image_layout: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the stock tower returns, equal images computed once."""
        compute: Callable[..., Any] = super().forward  # type: ignore[misc]
        names = _parameters(cast(nn.Module, self))
        inputs: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        if self.image_layout == "patches":
            lengths = inputs["grid_thw"].prod(-1).tolist()
        else:
            lengths = [1] * len(inputs[names[0]])
        cut = _split(inputs, names[0], lengths) if len(lengths) > 1 else None
        if cut is None:
            return compute(*args, **kwargs)
        first = first_equal(list(zip(*cut.values(), strict=True)))
        distinct = sorted(set(first))
        if len(distinct) == len(first):
            return compute(*args, **kwargs)
        for name, tensors in cut.items():
            inputs[name] = torch.cat([tensors[index] for index in distinct])
        output = compute(**inputs)
        lengths = [lengths[index] for index in distinct]
        return _repeat(output, lengths, [distinct.index(index) for index in first])


def _repeat(output: Any, lengths: list[int], order: list[int]) -> Any:
    """Returns a tower's output with each tensor's images in another order, some several times.

    Args:
        output: of the tower, however its tensors are nested.
        lengths: of its images in the tower's input.
        order: which of them follow each other.
    """
    if isinstance(output, Tensor):
        # The merger of some towers makes one token of several patches.
        tokens = [length * len(output) // sum(lengths) for length in lengths]
        images = torch.split(output, tokens)
        # Not an index: its backward adds up in an order that varies on a GPU.
        return torch.cat([images[index] for index in order])
    if isinstance(output, Mapping):
        repeated: Any = copy.copy(output)
        for name, value in output.items():
            repeated[name] = _repeat(value, lengths, order)
        return repeated
    if isinstance(output, (tuple, list)):
        return tuple(_repeat(value, lengths, order) for value in output)
    return output  # a hidden state that nobody asked for


def deduplicate_images(model: PreTrainedModel) -> bool:
    """Lets the vision tower of `model` compute equal images of a call once; returns whether it can.

    With dropout in an adapter of the tower, equal images of a call get equal noise.

    Args:
        model: a stock or a reward model; its tower's class is swapped, under the same name.
    """
    tower = tower_of(model)
    layout = None if tower is None else _tower_layout(tower)
    if layout is None:
        return False
    if not isinstance(tower, DeduplicatingTower):
        stock = type(tower)
        attributes = {"__module__": stock.__module__, "image_layout": layout}
        tower.__class__ = type(stock.__name__, (DeduplicatingTower, stock), attributes)
    return True


def stock_tower(tower: nn.Module) -> type[nn.Module]:
    """Returns a tower's class without what this module adds to it."""
    classes = (base for base in type(tower).__mro__ if not issubclass(base, DeduplicatingTower))
    return cast(type[nn.Module], next(classes))


def _batch(processor: Any, image: Image.Image) -> BatchFeature:
    """Returns one question about one image, [1, L] and the image's tensors."""
    question = [{"type": "image"}, {"type": "text", "text": "What does the image show?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    batch: BatchFeature = processor(text=[text], images=[[image]], return_tensors="pt")
    return batch


def _differ(first: Tensor, second: Tensor) -> bool:
    scale = torch.maximum(first.abs().max(), second.abs().max())
    return bool((first - second).abs().max() > _SMALLEST_CHANGE * scale)


def _run(model: PreTrainedModel, batch: BatchFeature) -> tuple[Tensor | None, Tensor]:
    """Returns the vision tower's output, None if it did not run, and the last state, [1, H].

    Args:
        model: a stock or a reward model.
        batch: one row.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(torch.cat([tensor.flatten().float() for tensor in _tensors(output)]))

    tower = tower_of(model)  # without one the decoder takes pixels in some other way
    handle = (nn.Identity() if tower is None else tower).register_forward_hook(keep)
    batch = batch.to(model.device)
    try:
        with torch.no_grad():
            states = final_states(model, **batch, use_cache=False)
    finally:
        handle.remove()
    state = last_attended(states, batch["attention_mask"])
    return (outputs[0] if outputs else None), state.float()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yields the tensors of a tower's output, however they are nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def check_image_reaches(model: PreTrainedModel | PeftModel, processor: ProcessorMixin) -> None:
    """Checks that a noise image and a uniform one give other image features and hidden states.

    Never run on the data's own images: two of them may be alike. Not for text-only data.

    Args:
        model: a stock or a reward model, with or without an adapter.
        processor: its processor.

    Raises:
        ConfigError: the image makes no difference, or cannot be given; says where it is lost.
    """
    base = without_adapter(model)
    noise = np.random.default_rng(0).integers(0, 256, (*_SIZE[::-1], 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", _SIZE, (127, 127, 127))]
    training = base.training
    base.train(False)
    try:
        (noise_features, noise_state), (grey_features, grey_state) = (
            _run(base, _batch(processor, image)) for image in images
        )
    except (ValueError, TemplateError) as error:
        raise ConfigError(_lost(base, first_line(error).rstrip("."))) from error
    finally:
        base.train(training)
    if noise_state.isfinite().all() and _differ(noise_state, grey_state):
        return
    if noise_features is None or grey_features is None:
        lost = "the vision tower did not run, so the processor's pixels were dropped"
    elif not noise_features.isfinite().all():
        lost = "the vision tower gives numbers that are not finite"
    elif not _differ(noise_features, grey_features):
        lost = "the vision tower gives the same features for noise and for a uniform image"
    elif not noise_state.isfinite().all():
        lost = "the decoder gives numbers that are not finite"
    else:
        lost = "the image features do not change the hidden state that the reward is read from"
    raise ConfigError(_lost(base, lost))


def _lost(base: PreTrainedModel, where: str) -> str:
    name = family_of(base.config).name
    return (
        f"Images do not reach the model ({name}, {type(base).__name__}): {where}. "
        "Check that the processor and the chat template are those of this checkpoint, and that its "
        "weights are whole."
    )
