"""What a model consists of and how much memory it takes, from its config alone.

Parameters are counted on the meta device. Quantised are the linear layers of the decoder; vision
tower, projector, embeddings and LM head stay in bfloat16 (`base_model.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from medrm.config.options import AdapterOptions
from medrm.models.families import family_of
from medrm.models.lora_targets import lora_targets
from medrm.models.parts import empty_model

QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5 + 8 / 64 / 8}
"""Of a quantised weight; NF4 has a scale of 8 bits for each block of 64 (double quantisation)."""

_TRAINED_BYTES = 4 + 4 + 8
"""Of a trained parameter: fp32 weight, gradient, and the two moments of AdamW."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model.

    Attributes:
        role: "decoder", "vision tower", "connector" or "LM head".
        module: its path in the stock model.
        class_name: of the module.
        parameters: how many it has; shared ones count in each part that has them.
    """

    role: str
    module: str
    class_name: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes.

    Attributes:
        model_class: of the stock model.
        parameters: of the whole model, shared ones once.
        parts: those that were found.
        lora_layers: linear layers of the decoder that LoRA adapts.
        lora_parameters: of their adapters.
        vision_layers: linear layers of the vision tower that `lora_vision` adds.
        vision_parameters: of their adapters.
        routers: layers that choose experts, adapted by `lora_routers` alone.
        packed_experts: modules whose experts are one parameter, which LoRA leaves alone.
        head_parameters: of a linear reward head for one dimension.
        weight_bytes: precision to bytes of the weights.
        training_bytes: of adapters and head with gradients and AdamW.
    """

    model_class: str
    parameters: int
    parts: tuple[Part, ...]
    lora_layers: int
    lora_parameters: int
    vision_layers: int
    vision_parameters: int
    routers: int
    packed_experts: int
    head_parameters: int
    weight_bytes: dict[str, int]
    training_bytes: int


def footprint_of(config: PreTrainedConfig, adapter: AdapterOptions) -> Footprint:
    """Returns the parts, the adapters and the memory of the model that a config describes.

    Raises:
        ConfigError: a part of it is not found.
    """
    model = empty_model(config)
    model.tie_weights()
    targets = lora_targets(model)
    total = _count(model.parameters())
    quantised = sum(math.prod(_shape(model, name)) for name in targets.decoder)
    width = int(config.get_text_config().hidden_size)
    lora, vision = (
        sum(adapter.lora_r * sum(_shape(model, name)) for name in names)
        for names in (targets.decoder, targets.vision)
    )
    head = width  # linear, as it is by default
    trained = lora + head + (vision if adapter.lora_vision else 0)
    return Footprint(
        model_class=type(model).__name__,
        parameters=total,
        parts=tuple(_parts(model)),
        lora_layers=len(targets.decoder),
        lora_parameters=lora,
        vision_layers=len(targets.vision),
        vision_parameters=vision,
        routers=len(targets.routers) + len(targets.router_weights),
        packed_experts=len(targets.packed_experts),
        head_parameters=head,
        weight_bytes={
            "float32": 4 * total,
            "bfloat16": 2 * total,
            **{
                name: int(size * quantised + 2 * (total - quantised))
                for name, size in QUANTISED_BYTES.items()
            },
        },
        training_bytes=_TRAINED_BYTES * trained,
    )


def _parts(model: PreTrainedModel) -> Iterable[Part]:
    parts = family_of(model.config).parts
    modules = [("decoder", parts.decoder), ("vision tower", parts.vision)]
    modules += [("connector", path) for path in parts.connectors]
    modules += [("LM head", parts.lm_head)]
    for role, path in modules:
        if path is not None:
            module = model.get_submodule(path)
            yield Part(role, path, type(module).__name__, _count(module.parameters()))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _shape(model: PreTrainedModel, layer: str) -> tuple[int, int]:
    """Returns the width of a linear layer's outputs and inputs."""
    linear = cast(nn.Linear, model.get_submodule(layer))
    return linear.out_features, linear.in_features


def amount(count: int) -> str:
    """Returns a number of parameters as people say it.

    >>> amount(8_290_000_000)
    '8.3 B'
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def size_text(size: int) -> str:
    """Returns bytes as people say them.

    >>> size_text(3 * 2**30)
    '3.00 GiB'
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
