"""Remembers what a frozen vision tower says of an image, so that each image is computed once.

An image's features are computed alone, in a call of their own: they do not depend on the batch that
first held the image, and a run gives the same numbers in whatever order it meets its images.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from medrm.models.families import Family


class FeatureMemory:
    """Tower outputs by content of the image, the least recently used dropped beyond a size.

    Attributes:
        most_bytes: how much is kept.
        computed: how many images went through the tower.

    Args:
        most_bytes: how much is kept, in the memory of the tower's device.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.computed = 0
        self._held: OrderedDict[bytes, ModelOutput] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, compute: Callable[[], ModelOutput]) -> ModelOutput:
        """Returns the kept output of that key, else computes and keeps it."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        output = compute()
        self.computed += 1
        self._held[key] = output
        self._bytes += _size(output)
        while self._bytes > self.most_bytes and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= _size(dropped)
        return output


def _size(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    parts = output.values() if isinstance(output, ModelOutput) else output or ()
    return sum(_size(part) for part in parts)


def _join(parts: list[Any]) -> Any:
    """Joins one field of several outputs: tensors along the first axis, lists part by part."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], (list, tuple)):
        return type(parts[0])(_join(list(own)) for own in zip(*parts, strict=True))
    return parts[0]


def remember_features(model: PreTrainedModel, family: Family, memory: FeatureMemory) -> bool:
    """Lets the vision tower of `model` look images up in `memory`; returns whether it can.

    It can where the processor packs the patches of all images into one [patches, features] tensor
    with a grid for each image (`Family.packed_patches`), and the tower is frozen.

    Args:
        model: a stock or a reward model; all models of one memory share the tower's weights.
        family: its family.
        memory: where outputs are kept.
    """
    tower = model.get_submodule(family.vision)
    if not family.packed_patches or any(p.requires_grad for p in tower.parameters()):
        return False
    compute: Callable[..., ModelOutput] = tower.forward

    def forward(pixels: Tensor, grid_thw: Tensor, **kwargs: Any) -> ModelOutput:
        settings = f"{torch.is_autocast_enabled(pixels.device.type)} {pixels.dtype}".encode()
        outputs = []
        for patches, grid in zip(
            torch.split(pixels, grid_thw.prod(-1).tolist()), grid_thw, strict=True
        ):
            digest = hashlib.blake2b(settings, digest_size=16)
            digest.update(str(grid.tolist()).encode())
            digest.update(patches.detach().contiguous().view(torch.uint8).cpu().numpy().data)
            alone = partial(compute, patches, grid_thw=grid[None], **kwargs)
            with torch.no_grad():
                outputs.append(memory.get(digest.digest(), alone))
        kind = type(outputs[0])
        return kind(**{name: _join([one[name] for one in outputs]) for name in outputs[0]})

    tower.forward = forward
    return True
