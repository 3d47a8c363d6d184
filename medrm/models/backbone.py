"""The states after the decoder's final norm, from which rewards and logits are read.

Most stock models have a backbone that returns them. In some the LM head lies inside the language
model, and only the model as a whole takes images; there the states are picked up where the decoder
returns them, and the LM head runs for one token.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medrm.models.families import family_of


def backbone_of(model: PreTrainedModel) -> Any:
    """Returns the module that holds vision tower and decoder, the model itself where none does."""
    path = family_of(model.config).parts.backbone
    return model if path is None else model.get_submodule(path)


def decoder_of(model: PreTrainedModel) -> Any:
    """Returns the language model without its LM head."""
    return model.get_submodule(family_of(model.config).parts.decoder)


def tower_of(model: PreTrainedModel) -> Any:
    """Returns the vision tower, None where pixels go into the decoder without one."""
    path = family_of(model.config).parts.vision
    return None if path is None else model.get_submodule(path)


def in_precision(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns inputs whose pixels have the weights' precision; not every model converts them."""
    return {
        name: value.to(model.dtype)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def final_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Returns the states after the final norm, [rows, L, H].

    Args:
        model: a stock or a reward model.
        inputs: of the stock model.
    """
    inputs = in_precision(model, inputs)
    backbone = backbone_of(model)
    if backbone is not model:
        return cast(Tensor, backbone(**inputs).last_hidden_state)
    states: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states.append(output[0])

    forward = getattr(model, "stock_forward", model.forward)
    if "logits_to_keep" in inspect.signature(forward).parameters:
        inputs["logits_to_keep"] = 1
    handle = decoder_of(model).register_forward_hook(keep)
    try:
        forward(**inputs)
    finally:
        handle.remove()
    return states[-1]


def last_attended(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns the state of each row's last attended token, [rows, H], for either padding side.

    Args:
        states: [rows, L, H].
        attention_mask: [rows, L], 1 where there is a token.
    """
    # Largest where the last 1 stands; counted from 1, so that the first token counts as well.
    counts = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    last = (attention_mask.long() * counts).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last]


class _Computed(nn.Module):
    """Stands in for a backbone whose states are known."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_args: Any, **_kwargs: Any) -> _States:
        return _States(self.states)


class _States:
    """The output of a backbone that has nothing but its last states."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


def output_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Returns the logits of states after the final norm, [N, V], as the model itself gives them.

    The model runs with its backbone left out, so that what some do to the LM head's output (Gemma
    caps it, Cohere and Granite scale it) is done here.

    Args:
        model: a stock model.
        states: [N, H].
    """
    parts = family_of(model.config).parts
    owner, path = model, parts.backbone
    if path is None:
        # The language model inside has the LM head.
        outer = str(parts.lm_head).rpartition(".")[0]
        owner, path = cast(PreTrainedModel, model.get_submodule(outer)), parts.decoder
        path = path.removeprefix(f"{outer}.")
    whole = copy.copy(owner)  # the weights are shared, the names of the modules are not
    name = path.partition(".")[0]
    vars(whole)["_modules"] = {**vars(owner)["_modules"], name: _Computed(states[None])}
    # Not the object's own `forward`, which trainers replace.
    forward = getattr(type(owner), "stock_forward", type(owner).forward)
    return cast(Tensor, forward(whole, inputs_embeds=states[None]).logits[0])
