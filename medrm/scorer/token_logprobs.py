"""A stock model's hidden states and token probabilities; the LM head runs only where it is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import BatchFeature, PreTrainedModel

from medrm.models.prefix_sharing.attention import shared_prefix_states
from medrm.models.prefix_sharing.batch import SHARED_PREFIX

_LOGITS_AT_ONCE = 1024
"""Positions whose logits over the whole vocabulary are held at a time."""


def token_positions(features: BatchFeature) -> list[Tensor]:
    """Returns for each row the positions of its tokens in order, counted through the whole batch.

    A row of a batch with shared prefixes is a prefix with one of its branches.

    Args:
        features: of rows, or with shared prefixes.
    """
    shared = features.get(SHARED_PREFIX)
    if shared is not None:
        return [torch.tensor(row) for row in shared.branch_rows]
    mask = features["attention_mask"]
    return [
        row_mask.nonzero()[:, 0] + row * mask.shape[1]
        for row, row_mask in enumerate(mask.cpu().unbind())
    ]


def longest_rows(features: BatchFeature, row_counts: Sequence[int]) -> list[int]:
    """Returns the tokens of each case's longest row.

    Args:
        features: of rows, or with shared prefixes.
        row_counts: how many rows belong to each case.
    """
    shared = features.get(SHARED_PREFIX)
    if shared is not None:
        lengths = zip(shared.prefix_lengths, shared.branch_lengths, strict=True)
        return [prefix + max(branches) for prefix, branches in lengths]
    counts = iter(features["attention_mask"].sum(dim=1).tolist())
    return [max(islice(counts, row_count)) for row_count in row_counts]


def flat_states(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states after the final norm of all tokens, padding included, [tokens, H]."""
    if SHARED_PREFIX in features:
        return shared_prefix_states(model, **features)
    return hidden_states(model, features).flatten(0, 1)


def branch_ends(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states at the last token of each branch, [branches, H].

    Args:
        model: a stock model.
        features: with shared prefixes.
    """
    last_tokens = torch.tensor([row[-1] for row in features[SHARED_PREFIX].branch_rows])
    return flat_states(model, features)[last_tokens]


def hidden_states(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states after the final norm, [rows, L, H]."""
    states: Tensor = cast(Any, model).model(**features, use_cache=False).last_hidden_state
    return states


def token_logprobs(model: PreTrainedModel, states: Tensor, tokens: Tensor) -> Tensor:
    """Returns log p(token | what the state has seen) in fp32, [N, C].

    Args:
        model: a stock model.
        states: [N, H].
        tokens: [N, C], the tokens asked about at each state.
    """
    head = cast(Any, model).get_output_embeddings()
    return torch.cat(
        [
            log_softmax(head(chunk).float(), dim=-1).gather(1, chunk_tokens)
            for chunk, chunk_tokens in zip(
                torch.split(states, _LOGITS_AT_ONCE),
                torch.split(tokens, _LOGITS_AT_ONCE),
                strict=True,
            )
        ]
    )
