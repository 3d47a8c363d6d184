"""Each image goes through the vision tower once: in a batch, and where it is frozen, in a run.

Within a call equal images are computed once and repeated, so that their gradients add up where the
tower is trained. With a `FeatureMemory` the features of a frozen tower are also kept: then each
image is computed alone, in a call of its own, so that they do not depend on the batch that first
held the image, and runs give the same numbers in whatever order they meet their images.

What is kept is the output of the tower: a projector outside of it costs little and still runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any, cast

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from medrm.models.families import Family
from medrm.models.feature_store import FeatureMemory, Features, digest_of

ONE_SEQUENCE = {"pixtral": "its output is one sequence of all images, padded apart"}
"""Towers whose images cannot be told apart in the output, by `model_type`, and why."""

_WIDTH = 1024
_SECRET = secrets.randbits(62)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


_SETTINGS = ("output_hidden_states", "interpolate_pos_encoding")
"""Arguments besides tensors that change what a tower gives."""


@lru_cache(maxsize=1024)
def _weights(place: int, device: torch.device) -> Tensor:
    """Returns random 64-bit weights, [2, _WIDTH]; other ones in every process."""
    generator = torch.Generator().manual_seed(_SECRET + place)
    return torch.randint(-(2**63), 2**63 - 1, (2, _WIDTH), generator=generator).to(device)


def _hash(tensor: Tensor) -> Tensor:
    """Returns two 64-bit hashes of a tensor's contents, [2], computed where it lies.

    Multilinear hashing modulo 2^64 over words of at most 32 bits, in two levels (Carter and Wegman,
    1979): for two contents of one shape that do not know the weights, both hashes agree with a
    probability of about 2^-62.
    """
    words = tensor.detach().contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    columns = _weights(0, tensor.device)
    for place, block in enumerate(torch.split(words, _WIDTH**2), start=1):
        lines = nn.functional.pad(block, (0, -len(block) % _WIDTH)).view(-1, _WIDTH).long()
        sums = torch.stack([(lines * weights).sum(-1) for weights in columns])
        total += (sums * _weights(place, tensor.device)[:, : len(lines)]).sum(-1)
    return total


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a vision tower, cut into units: images, or rows where images are tiled.

    Attributes:
        inputs: positional arguments by their place and others by name.
        sizes: how much of the tower's leading axis each unit takes.
        parts: the tensors among the inputs, one part for each unit.
    """

    inputs: dict[int | str, Any]
    sizes: list[int]
    parts: dict[int | str, tuple[Tensor, ...]]

    @classmethod
    def cut(cls, family: Family, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Returns the call of a family's tower with these arguments."""
        inputs: dict[int | str, Any] = dict(enumerate(args))
        inputs.update(kwargs)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if family.packed_patches:
            sizes = inputs["grid_thw"].prod(-1).tolist()
        else:
            sizes = [1] * len(next(iter(tensors.values())))
        # Trainers pass on what is not for the tower, such as the number of labels in the batch.
        own = {n: t for n, t in tensors.items() if n == 0 or (t.ndim and len(t) == len(sizes))}
        parts = {
            # Of packed patches only the patches themselves are longer than the grid.
            name: torch.split(tensor, sizes if name == 0 else 1)
            for name, tensor in own.items()
        }
        return cls(inputs, sizes, parts)

    def only(self, units: Sequence[int]) -> tuple[list[Any], dict[str, Any]]:
        """Returns the arguments of a call with some of the units."""
        inputs = dict(self.inputs)
        for name, parts in self.parts.items():
            inputs[name] = torch.cat([parts[unit] for unit in units])
        args = [value for name, value in inputs.items() if isinstance(name, int)]
        return args, {name: value for name, value in inputs.items() if isinstance(name, str)}

    def unit(self, place: int) -> Features:
        """Returns the tensors of one unit by the names of the arguments."""
        return {str(name): parts[place] for name, parts in self.parts.items()}

    @property
    def settings(self) -> str:
        """What besides the tensors could change a number, in one line."""
        device = next(iter(self.parts.values()))[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        others = [self.inputs.get(name) for name in _SETTINGS]
        return f"{autocast} {torch.backends.cuda.matmul.fp32_precision} {others}"

    def keys(self) -> list[str]:
        """Returns a key of each unit's contents, the same for equal ones."""
        units = [self.unit(place) for place in range(len(self.sizes))]
        hashes = torch.stack([torch.stack([_hash(t) for t in unit.values()]) for unit in units])
        shapes = [[(t.dtype, *t.shape) for t in unit.values()] for unit in units]
        return [f"{own} {words}" for own, words in zip(shapes, hashes.tolist(), strict=True)]


@dataclass
class TowerOutput(ModelOutput):
    """The fields of a vision tower's output that a family may read."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    deepstack_features: tuple[Tensor, ...] | None = None


def leaves(output: ModelOutput, fields: Sequence[str]) -> Features:
    """Returns the tensors of an output's fields by name; one that is there twice, once."""
    found: Features = {}
    for field in fields:
        value = output.get(field)
        several = value if isinstance(value, (list, tuple)) else [value]
        for place, tensor in enumerate(several):
            if tensor is None or any(tensor is other for other in found.values()):
                continue
            found[field if several is not value else f"{field}.{place}/{len(several)}"] = tensor
    return found


def _output(features: Features) -> TowerOutput:
    """Returns an output with these fields, the inverse of `leaves`."""
    fields: dict[str, Any] = {}
    for name, tensor in features.items():
        field, _, place = name.partition(".")
        if not place:
            fields[field] = tensor
            continue
        which, count = map(int, place.split("/"))
        fields.setdefault(field, [None] * count)[which] = tensor
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return TowerOutput(**fields)


class ImagesOnce:
    """What the swapped class adds to a vision tower."""

    family: Family
    memory: FeatureMemory | None = None
    _identified: tuple[Any, str] = ((), "")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the tower's output for all units, each different one computed once."""
        compute: Callable[..., Any] = super().forward  # type: ignore[misc]
        call = Call.cut(self.family, args, kwargs)
        kept = self.memory if self.memory is not None and can_be_kept(self._tower) else None
        if kept is not None:
            return self._remembered(call, kept, compute)
        if len(call.sizes) < 2:
            return compute(*args, **kwargs)
        keys = call.keys()
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        chosen = sorted(first.values())
        if len(chosen) == len(keys):
            return compute(*args, **kwargs)
        args, kwargs = cast(Any, call.only(chosen))
        computed = leaves(compute(*args, **kwargs), self.family.features)
        sizes = [call.sizes[place] for place in chosen]
        order = [chosen.index(first[key]) for key in keys]
        together = {}
        for name, tensor in computed.items():
            share = [size * len(tensor) // sum(sizes) for size in sizes]
            parts = torch.split(tensor, share)
            # Not an index: its backward adds up in an order that varies on a GPU.
            together[name] = torch.cat([parts[place] for place in order])
        return _output(together)

    def _remembered(
        self, call: Call, memory: FeatureMemory, compute: Callable[..., Any]
    ) -> TowerOutput:
        """Returns the output with the units in memory; the others are computed alone."""
        tower, settings = self._identity(), call.settings
        device = next(self._tower.parameters()).device

        def names(place: int) -> tuple[str, str]:
            return tower, digest_of(settings, call.unit(place)).hex()

        def alone(place: int) -> Features:
            args, kwargs = call.only([place])
            # Features made in inference mode could not be learned from later.
            with torch.inference_mode(False), torch.no_grad():
                return leaves(compute(*args, **kwargs), self.family.features)

        keys = call.keys()
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        found = {
            key: memory.get(
                f"{tower} {settings} {key}", partial(names, place), partial(alone, place)
            )
            for key, place in first.items()
        }
        units = [found[key] for key in keys]
        return _output(
            {
                name: torch.cat([unit[name].to(device, non_blocking=True) for unit in units])
                for name in units[0]
            }
        )

    @property
    def _tower(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self)

    def _identity(self) -> str:
        """Returns the digest of the weights, the settings and what computes; anew when changed."""
        tower = self._tower
        weights = list(chain(tower.named_parameters(), tower.named_buffers()))
        # _version counts changes in place.
        state = [(t.data_ptr(), t._version, t.dtype, t.device) for _, t in weights]
        if self._identified[0] != state:
            config = tower.config
            device = next(tower.parameters()).device
            where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            versions = f"{torch.__version__} {transformers.__version__} {torch.get_num_threads()}"
            settings = config.to_json_string(use_diff=False)
            name = f"{where} {versions} {config._attn_implementation} {settings}"
            self._identified = (state, digest_of(name, dict(weights)).hex())
        return self._identified[1]


def can_be_kept(tower: nn.Module) -> bool:
    """Returns whether a tower gives the same features each time, and may be skipped.

    Not where it is trained or adapted (an adapter can be switched off without a weight changing),
    nor where processes hold parts of its weights: they must all run it, or none.
    """
    return not any(
        p.requires_grad or p.numel() == 0 or isinstance(p, DTensor) for p in tower.parameters()
    ) and not any(isinstance(module, BaseTunerLayer) for module in tower.modules())


def see_images_once(model: PreTrainedModel, family: Family) -> bool:
    """Lets the vision tower of `model` compute equal images of a call once; returns whether it can.

    With dropout in an adapter of the tower, equal images of a call get equal noise.

    Args:
        model: a stock or a reward model; its tower's class is swapped, under the same name.
        family: its family.
    """
    tower = model.get_submodule(family.vision)
    if cast(Any, tower).config.model_type in ONE_SEQUENCE:
        return False
    if not isinstance(tower, ImagesOnce):
        stock = type(tower)
        content = {"__module__": stock.__module__, "family": family}
        tower.__class__ = type(stock.__name__, (ImagesOnce, stock), content)
    return True


def stock_tower(tower: nn.Module) -> type[nn.Module]:
    """Returns a tower's class without what this module adds to it."""
    kinds = (kind for kind in type(tower).__mro__ if not issubclass(kind, ImagesOnce))
    return cast(type[nn.Module], next(kinds))


def remember_features(model: PreTrainedModel, family: Family, memory: FeatureMemory) -> bool:
    """Lets the vision tower of `model` look images up in `memory`; returns whether it will.

    It will while it is frozen, not adapted and whole; else equal images of a call are computed
    once. Models of one memory may have different towers.

    Args:
        model: a stock or a reward model.
        family: its family.
        memory: where features are kept.
    """
    if not see_images_once(model, family):
        return False
    tower = cast(Any, model.get_submodule(family.vision))
    tower.memory = memory if memory.used else None
    return memory.used and can_be_kept(tower)
