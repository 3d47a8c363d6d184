"""What the answers of a case share stands once in a batch: a prefix, and K branches behind it.

The images, the question and the template stand before every answer of a case. A forked batch holds
these tokens once for each case and behind them the K branches, each of which sees the prefix and
itself (`medrm.models.prefix_sharing.attention`); positions restart after the prefix. So every
number is that of K separate rows, at the cost of the unique tokens.

Shape legend: B cases, K answers, L tokens of a row, O orders.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig

from medrm.errors import ConfigError
from medrm.models.families import Family, family_of

SHARED_ATTENTION = "medrm_shared_prefix"
"""Name of the forked attention in transformers' registry."""

SHARED_PREFIX = "shared_prefix"
"""The key of a batch under which its `SharedPrefixBatch` travels."""

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""What processors say of each token: 0 is text or padding, else it belongs to an image."""

_STATEFUL_DECODERS = (
    "qwen3_5_text",
    "qwen3_next",
    "mamba",
    "mamba2",
    "jamba",
    "bamba",
    "falcon_h1",
    "lfm2",
)
"""Language models (`model_type`) that can never share a prefix."""


def sharing_problem(config: PreTrainedConfig) -> str | None:
    """Returns why the rows of a model run separately; None: they share their prefix.

    Args:
        config: of the whole model.
    """
    decoder = str(config.get_text_config().model_type)
    if decoder in _STATEFUL_DECODERS:
        return (
            f"{decoder}: linear attention or convolution carries one state through the row, which "
            "no mask can fork"
        )
    if decoder not in family_of(config).sharing_decoders:
        return f"{decoder}: not proven to give the numbers of separate rows"
    attention = cast(Any, config)._attn_implementation
    if attention not in ("sdpa", SHARED_ATTENTION):
        return f"attention {attention!r}: only sdpa forks"
    return None


@dataclass(frozen=True)
class SharedPrefixBatch:
    """How the tokens of a batch are shared.

    A packed batch is one row without padding: the prefixes of all cases one behind the other, then
    all branches. Else each case is a row of `row_length` tokens: its prefix, its branches, padding.

    Attributes:
        prefix_lengths: [B] tokens of each case's prefix.
        branch_lengths: [B][K] tokens of each branch; the number of branches may differ.
        row_length: L.
        packed: whether the batch is one row.
        reward_tokens: [B][K][O] a branch and how many of its tokens come up to the one at which an
            answer is read, in each of O orders; None: each answer is read at the end of its own
            branch.
    """

    prefix_lengths: tuple[int, ...]
    branch_lengths: tuple[tuple[int, ...], ...]
    row_length: int
    packed: bool
    reward_tokens: tuple[tuple[tuple[tuple[int, int], ...], ...], ...] | None = None

    @property
    def prefix_starts(self) -> list[int]:
        """[B] place of each prefix's first token, counted through all rows."""
        if not self.packed:
            return [row * self.row_length for row in range(len(self.prefix_lengths))]
        return [0, *itertools.accumulate(self.prefix_lengths)][:-1]

    @property
    def branch_starts(self) -> list[list[int]]:
        """[B][K] place of each branch's first token, counted through all rows."""
        ends = itertools.accumulate(itertools.chain.from_iterable(self.branch_lengths))
        packed = iter([sum(self.prefix_lengths) + start for start in [0, *ends]])
        starts = []
        for row, (prefix, lengths) in enumerate(
            zip(self.prefix_lengths, self.branch_lengths, strict=True)
        ):
            first = row * self.row_length + prefix
            own = [first + before for before in [0, *itertools.accumulate(lengths)][:-1]]
            starts.append([next(packed) for _ in lengths] if self.packed else own)
        return starts

    @property
    def branch_rows(self) -> list[list[int]]:
        """[branches][tokens] place of each token of a prefix with its branch, case-major."""
        return [
            [*range(start, start + prefix), *range(first, first + length)]
            for start, prefix, firsts, lengths in zip(
                self.prefix_starts,
                self.prefix_lengths,
                self.branch_starts,
                self.branch_lengths,
                strict=True,
            )
            for first, length in zip(firsts, lengths, strict=True)
        ]

    @property
    def reward_indices(self) -> list[list[int]]:
        """[answers][O] places of the tokens at which each answer is read, case-major."""
        reads = self.reward_tokens or [
            [[(branch, length)] for branch, length in enumerate(own)] for own in self.branch_lengths
        ]
        return [
            [starts[branch] + tokens - 1 for branch, tokens in answer]
            for starts, own in zip(self.branch_starts, reads, strict=True)
            for answer in own
        ]


def _check_prefixes(features: BatchFeature, prefixes: Sequence[int]) -> None:
    """Refuses prefixes without a token, or without all images.

    Raises:
        ConfigError: there is one.
    """
    if min(prefixes) < 1:
        raise ConfigError("the answers of a case share no token: the chat template gives no prefix")
    for types in (features[name] for name in _TOKEN_TYPES if name in features):
        if any(row[length:].any() for row, length in zip(types, prefixes, strict=True)):
            raise ConfigError(
                "An image stands behind the first token in which the answers of a case differ, so "
                "they cannot share it. Use a chat template that puts the images first, or "
                "shared_prefix off."
            )


def share_prefixes(
    features: BatchFeature,
    family: Family,
    prefixes: Sequence[int],
    branches: Sequence[Sequence[Sequence[int]]],
    reads: Sequence[Sequence[tuple[tuple[int, int], ...]]] | None = None,
) -> BatchFeature:
    """Returns the forked batch of B cases.

    All that the processor says of a token (its type, Mllama's mask) is said of each branch's tokens
    as of the token behind the prefix, which is text.

    Args:
        features: the processor's output, one row for each case: its prefix and any one branch,
            padded on the right.
        family: of the model.
        prefixes: [B] tokens of each prefix, image tokens included.
        branches: [B][K] token ids.
        reads: as in `SharedPrefixBatch`.

    Raises:
        ConfigError: the branches of a case share no token, or an image is not among what they do.
    """
    _check_prefixes(features, prefixes)
    ids = features["input_ids"]
    lengths = tuple(tuple(len(branch) for branch in own) for own in branches)
    changed = {}
    for name, tensor in features.items():
        if tensor.shape[:2] != ids.shape:
            changed[name] = tensor
            continue
        heads = [row[:length] for row, length in zip(tensor, prefixes, strict=True)]
        tails = []
        for row, prefix, own in zip(tensor, prefixes, branches, strict=True):
            text = list(itertools.chain.from_iterable(own))
            said = row[prefix : prefix + 1].repeat_interleave(len(text), dim=0)
            tails.append(torch.tensor(text, dtype=ids.dtype) if name == "input_ids" else said)
        if family.rows_apart:
            rows = [torch.cat(parts) for parts in zip(heads, tails, strict=True)]
            changed[name] = pad_sequence(rows, batch_first=True)
        else:
            changed[name] = torch.cat([*heads, *tails])[None]
    if family.images_by_row and not family.rows_apart:
        for name in ("pixel_values", "pixel_attention_mask"):
            if name in changed:
                changed[name] = changed[name].flatten(0, 1)[None]
    del changed["attention_mask"]
    width = changed["input_ids"].shape[1]
    places = None if reads is None else tuple(map(tuple, reads))
    shared = SharedPrefixBatch(
        tuple(prefixes), lengths, width, packed=not family.rows_apart, reward_tokens=places
    )
    return BatchFeature({**changed, SHARED_PREFIX: shared})
