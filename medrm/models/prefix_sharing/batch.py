"""What the answers of a case share stands once in a batch: a prefix, and K branches behind it.

The images, the question and the template stand before every answer of a case. With prefixes P and
Q of two cases and the answers a, b and c, d to them, separate rows would be

    P P P a a        P P P b        Q Q c        Q Q d d d d        4 rows x 6 tokens, padded

The packed batch is one row of L = 13 tokens without padding, first all prefixes, then all branches:

    index       0  1  2  3  4  5  6  7  8  9 10 11 12
    token       P  P  P  Q  Q  a  a  b  c  d  d  d  d
    position    0  1  2  0  1  3  4  3  2  2  3  4  5     goes on from the case's prefix
    reward                        ^  ^  ^           ^     `reward_indices`

A token sees its case's prefix and its own branch up to itself (`attention.py`), so every number is
that of the separate rows up to rounding, at the cost of the unique tokens. Where layers look at the
images of their row (`Family.cross_attention`), each case is a padded row:

    P P P a a b _ | Q Q c d d d d

Shape legend: B cases, K answers, L tokens of a row, O orders. Lengths are in tokens, indices count
through all rows x L tokens of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig

from medrm.errors import ConfigError
from medrm.models.families import family_of

ImageRows = Literal["flat", "nested", "apart"]
"""How a processor's tensors of images lie: one image after another, [rows, images, ...], or, with a
mask that says which token sees which image, so that every case must stay a row of its own."""

SHARED_ATTENTION = "medrm_shared_prefix"
"""Name of the attention over shared prefixes in transformers' registry."""

SHARED_PREFIX = "shared_prefix"
"""The key of a batch under which its `SharedPrefixBatch` travels."""

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""What processors say of each token: 0 is text or padding, else it belongs to an image."""


def sharing_problem(config: PreTrainedConfig) -> str | None:
    """Returns what in a model's structure keeps its rows from sharing their prefix, or None.

    Where nothing does, the self-check of the loaded model proves that the numbers are the same.

    Args:
        config: of the model with its vision tower.
    """
    decoder, parts = str(config.get_text_config().model_type), family_of(config).parts
    if parts.stateful:
        return (
            f"{decoder}: linear attention or convolution carries one state through the row, which "
            "no mask can fork"
        )
    if not parts.causal:
        return f"{decoder}: its tokens see those behind them, so that answers would see each other"
    if not parts.attention_interface:
        return f"{decoder}: its attention is not looked up in transformers' registry"
    attention = cast(Any, config)._attn_implementation
    if attention not in ("sdpa", SHARED_ATTENTION):
        return f"attention {attention!r}: only sdpa forks"
    return None


@dataclass(frozen=True)
class SharedPrefixBatch:
    """Which tokens of a batch are prefixes and branches.

    Attributes:
        prefix_lengths: [B] tokens of each case's prefix.
        branch_lengths: [B][K] tokens of each branch; the number of branches may differ.
        row_length: L.
        packed: whether the batch is one row; else each case is one, padded at the end.
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
        """[B] index of each prefix's first token."""
        if not self.packed:
            return [case * self.row_length for case in range(len(self.prefix_lengths))]
        return [0, *itertools.accumulate(self.prefix_lengths)][:-1]

    @property
    def branch_starts(self) -> list[list[int]]:
        """[B][K] index of each branch's first token."""
        starts: list[list[int]] = []
        end = sum(self.prefix_lengths)
        for case, lengths in enumerate(self.branch_lengths):
            if not self.packed:
                end = case * self.row_length + self.prefix_lengths[case]
            starts.append([])
            for length in lengths:
                starts[-1].append(end)
                end += length
        return starts

    @property
    def branch_rows(self) -> list[list[int]]:
        """[branches][tokens] indices of each branch behind its prefix, case by case."""
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
        """[answers][O] index of the tokens at which each answer's reward is read, case by case."""
        reward_tokens = self.reward_tokens or [
            [[(branch, length)] for branch, length in enumerate(lengths)]
            for lengths in self.branch_lengths
        ]
        return [
            [starts[branch] + token_count - 1 for branch, token_count in orders]
            for starts, answers in zip(self.branch_starts, reward_tokens, strict=True)
            for orders in answers
        ]


def share_prefixes(
    features: BatchFeature,
    image_rows: ImageRows,
    prefix_lengths: Sequence[int],
    branches: Sequence[Sequence[Sequence[int]]],
    reward_tokens: Sequence[Sequence[tuple[tuple[int, int], ...]]] | None = None,
) -> BatchFeature:
    """Returns the shared-prefix batch of B cases.

    Args:
        features: the processor's output, one row for each case: its prefix and any one branch,
            padded on the right.
        image_rows: how the processor's tensors of images lie.
        prefix_lengths: [B] tokens of each prefix, image tokens included.
        branches: [B][K] token ids.
        reward_tokens: as in `SharedPrefixBatch`.

    Raises:
        ConfigError: the branches of a case share no token, or an image is not among what they do.
    """
    _check_prefixes(features, prefix_lengths)
    ids = features["input_ids"]
    batch = {}
    for name, tensor in features.items():
        if name == "attention_mask":  # the attention knows which token sees which
            continue
        if tensor.shape[:2] != ids.shape:  # of images, not of tokens
            pixels: Any = features.get("pixel_values")
            nested = image_rows == "nested" and tensor.shape[:2] == pixels.shape[:2]
            batch[name] = tensor.flatten(0, 1)[None] if nested else tensor
            continue
        rows = list(zip(tensor, prefix_lengths, branches, strict=True))
        prefixes = [row[:length] for row, length, _ in rows]
        # The token behind the prefix is text, as are all tokens of the branches.
        tails = [
            _tail(name, row, length, list(itertools.chain.from_iterable(case_branches)))
            for row, length, case_branches in rows
        ]
        if image_rows == "apart":
            whole_rows = [torch.cat(pair) for pair in zip(prefixes, tails, strict=True)]
            batch[name] = pad_sequence(whole_rows, batch_first=True)
        else:
            batch[name] = torch.cat([*prefixes, *tails])[None]
    batch[SHARED_PREFIX] = SharedPrefixBatch(
        tuple(prefix_lengths),
        tuple(tuple(map(len, case_branches)) for case_branches in branches),
        row_length=batch["input_ids"].shape[1],
        packed=image_rows != "apart",
        reward_tokens=None if reward_tokens is None else tuple(map(tuple, reward_tokens)),
    )
    return BatchFeature(batch)


def _check_prefixes(features: BatchFeature, prefix_lengths: Sequence[int]) -> None:
    """Refuses prefixes without a token, or without all images.

    Raises:
        ConfigError: there is one.
    """
    if min(prefix_lengths) < 1:
        raise ConfigError("the answers of a case share no token: the chat template gives no prefix")
    for types in (features[name] for name in _TOKEN_TYPES if name in features):
        if any(row[length:].any() for row, length in zip(types, prefix_lengths, strict=True)):
            raise ConfigError(
                "An image stands behind the first token in which the answers of a case differ, so "
                "they cannot share it. Use a chat template that puts the images first, or "
                "shared_prefix off."
            )


def _tail(name: str, row: Tensor, like: int, token_ids: Sequence[int]) -> Tensor:
    """Returns what a processor's tensor `name` says of tokens added to a row, [tokens, ...].

    Of each of them (its type, Mllama's mask) it says the same as of the row's token `like`.
    """
    if name == "input_ids":
        return row.new_tensor(token_ids)
    return row[like : like + 1].repeat_interleave(len(token_ids), dim=0)


def append_tokens(
    features: BatchFeature, lengths: Sequence[int], tokens: Sequence[Sequence[int]]
) -> BatchFeature:
    """Returns the first `lengths` tokens of each row followed by other tokens, which are text.

    Args:
        features: the processor's output, padded on the right.
        lengths: [rows] how many tokens are kept; the last of them is text.
        tokens: [rows][tokens] ids of those that follow.
    """
    shape = features["input_ids"].shape
    changed = {
        name: pad_sequence(
            [
                torch.cat([row[:length], _tail(name, row, length - 1, token_ids)])
                for row, length, token_ids in zip(tensor, lengths, tokens, strict=True)
            ],
            batch_first=True,
        )
        for name, tensor in features.items()
        if tensor.shape[:2] == shape
    }
    return BatchFeature({**features, **changed})


def first_difference(rows: Sequence[Sequence[int]]) -> int:
    """Returns the first index at which the rows are not all equal, or the shortest one's length."""
    for index, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return index
    return min(map(len, rows))


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens the prompts share, the last token of none among them."""
    return min(first_difference(prompts), min(map(len, prompts)) - 1)


def prefix_ends(
    features: BatchFeature, encoded: Sequence[Sequence[int]], lengths: Sequence[int]
) -> list[int]:
    """Returns how long the first `lengths` token ids of each row are once images are many tokens.

    Args:
        features: the processor's output, padded on the right.
        encoded: token ids of its rows, in which an image is one placeholder.
        lengths: [rows] a number of token ids of each row that includes all its images.

    Raises:
        ConfigError: the processor changes the words behind the images, or an image stands there.
    """
    ends = []
    row_lengths = features["attention_mask"].sum(dim=1)
    for row, row_length, ids, length in zip(
        features["input_ids"].tolist(), row_lengths.tolist(), encoded, lengths, strict=True
    ):
        # Behind the images both count alike, so the end is counted from the end of the row.
        ends.append(row_length - len(ids) + length)
        if row[ends[-1] : row_length] != list(ids[length:]):
            raise ConfigError(
                "The processor tokenises the words behind an image differently from its "
                "tokenizer, or an image stands behind the first token in which the answers of a "
                "case differ. Use the processor and tokenizer of the base model and a chat "
                "template that puts the images first, or shared_prefix off."
            )
    return ends
