"""Which layers LoRA adapts: the decoder's linear layers, a MoE's routers only when asked.

By full names: bare suffixes such as `q_proj` would also match the vision tower. Experts whose
weights are one parameter for all of them are no linear layers, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.utils import transformers_weight_conversion
from torch import nn
from transformers import PreTrainedModel, conversion_mapping
from transformers.pytorch_utils import Conv1D

from medrm.models.backbone import tower_of
from medrm.models.families import family_of


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """Module paths in the stock model.

    Attributes:
        decoder: linear layers of the language model, adapted by default.
        vision: linear layers that image features pass through in the tower, adapted when asked.
        routers: linear layers that choose a token's experts, adapted when asked.
        router_weights: parameters of routers that are no linear layers, likewise.
        packed_experts: modules that hold the weights of all their experts as one parameter.
        taken_for_experts: linear layers of the decoder that PEFT would take for weights of experts
            by their names, in an adapter's settings as in ours; never adapted.
    """

    decoder: tuple[str, ...]
    vision: tuple[str, ...]
    routers: tuple[str, ...]
    router_weights: tuple[str, ...]
    packed_experts: tuple[str, ...]
    taken_for_experts: tuple[str, ...]


def lora_targets(model: PreTrainedModel) -> LoraTargets:
    """Returns what LoRA can adapt in a stock or a reward model, quantised layers included."""
    parts = family_of(model.config).parts
    beside = [path for path in (parts.vision, parts.lm_head, *parts.connectors) if path]
    decoder = [
        name
        for name in _linears(model, parts.decoder)
        if not any(name == path or name.startswith(f"{path}.") for path in beside)
    ]
    routers = [name for name in decoder if _is_router(model, name)]
    names = _names_of_experts(str(model.config.model_type))
    mistaken = [name for name in decoder if name.rpartition(".")[2] in names]
    left_out = {*routers, *mistaken}
    return LoraTargets(
        tuple(name for name in decoder if name not in left_out),
        tuple(_vision_linears(model, parts.vision)) if parts.vision else (),
        tuple(routers),
        tuple(_router_weights(model, parts.decoder)),
        tuple(_packed_experts(model, parts.decoder)),
        tuple(name for name in mistaken if name not in routers),
    )


def _names_of_experts(model_type: str) -> set[str]:
    """Returns the last names by which PEFT finds experts in types that were made anew for v5.

    It replaces them in an adapter's settings by the parameter of all experts, wherever they are.
    """
    pattern = vars(conversion_mapping)["_MODEL_TO_CONVERSION_PATTERN"].get(model_type)
    return set(vars(transformers_weight_conversion)["_MOE_TARGET_MODULE_MAPPING"].get(pattern, ()))


def _linears(model: PreTrainedModel, prefix: str) -> list[str]:
    modules = model.get_submodule(prefix).named_modules()
    linear = (nn.Linear, Conv1D)
    return [f"{prefix}.{name}" for name, module in modules if isinstance(module, linear)]


def _is_router(model: PreTrainedModel, name: str) -> bool:
    """Returns whether a linear layer of the decoder is part of a router, by class or by place."""
    path = name.split(".")
    above = [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1)]
    if any("router" in type(module).__name__.lower() for module in above):
        return True
    layer: Any = above[-1]
    experts = dict(above[-2].named_children()).get("experts")
    # One number for each expert, or one that weighs the shared expert.
    return experts is not None and layer.out_features in (1, _expert_count(experts))


def _expert_count(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    return next((len(weight) for weight in experts.parameters() if weight.ndim > 2), 0)


def _router_weights(model: PreTrainedModel, decoder: str) -> Iterator[str]:
    for name, module in model.get_submodule(decoder).named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        weights = [key for key, weight in parameters.items() if weight.ndim == 2]
        if "router" in type(module).__name__.lower() and not isinstance(module, nn.Linear):
            # The decoder itself has the empty name.
            yield from (".".join(filter(None, (decoder, name, key))) for key in weights)


def _packed_experts(model: PreTrainedModel, decoder: str) -> Iterator[str]:
    for name, module in model.get_submodule(decoder).named_modules():
        weights = module.parameters(recurse=False)
        if "expert" in type(module).__name__.lower() and any(w.ndim > 2 for w in weights):
            yield f"{decoder}.{name}"


def _vision_linears(model: PreTrainedModel, vision: str) -> list[str]:
    """Returns the linear layers of the vision tower that the image features pass through.

    Left out: SigLIP's pooling head and layers above the one that is read; they get no gradient.
    """
    depth = getattr(getattr(tower_of(model), "config", None), "num_hidden_layers", 0)
    skipped = [".head."]
    layer = getattr(model.config, "vision_feature_layer", None)
    if isinstance(layer, int):  # LLaVA stops early
        # Entry 0 of the tower's hidden states is the embedding, entry i the output of layer i - 1.
        first_unused = depth + 1 + layer if layer < 0 else layer
        skipped += [f".layers.{unused}." for unused in range(first_unused, depth)]
    names = _linears(model, vision)
    return [name for name in names if not any(fragment in name for fragment in skipped)]
