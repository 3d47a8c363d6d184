"""A stock model's hidden states and token probabilities; the LM head runs only where it is read."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import BatchFeature, PreTrainedModel

_LOGITS_AT_ONCE = 1024
"""Positions whose logits over the whole vocabulary are held at a time."""


def hidden_states(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states after the final norm, [rows, L, H]."""
    states: Tensor = cast(Any, model).model(**features, use_cache=False).last_hidden_state
    return states


def log_probabilities(model: PreTrainedModel, states: Tensor, tokens: Tensor) -> Tensor:
    """Returns log p(token | what the state has seen) in fp32, [N, C].

    Args:
        model: a stock model.
        states: [N, H].
        tokens: [N, C], the tokens asked about at each state.
    """
    head = cast(Any, model).get_output_embeddings()
    return torch.cat(
        [
            log_softmax(head(part).float(), dim=-1).gather(1, asked)
            for part, asked in zip(
                torch.split(states, _LOGITS_AT_ONCE),
                torch.split(tokens, _LOGITS_AT_ONCE),
                strict=True,
            )
        ]
    )
