"""A prefix that a model has read once, in its key-value cache, to be continued in several ways.

Batches of known answers share their prefix within one call (`batch.py`). Here the tokens that
follow depend on what the model said before: replies are written, or letters of a verdict chosen.

    read        P P P P P _ _      one row for each case, its images included; _ is padding
                Q Q Q Q Q Q Q
    select      P P P P P _ _      each row as often as it is continued (rows 0, 0, 1)
                P P P P P _ _
                Q Q Q Q Q Q Q
    extend      P P P P P _ _ a a  the next tokens of each row, which may differ in number; padding
                P P P P P _ _ b _  stays in the cache and is masked, positions count tokens alone
                Q Q Q Q Q Q Q c c
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, DynamicCache, PreTrainedConfig, PreTrainedModel

from medrm.models.backbone import backbone_of, final_states, last_attended
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.batch import (
    SharedPrefixBatch,
    prefix_ends,
    shared_length,
    sharing_problem,
)

_WHOLE = "reads_prompts_whole"
"""Set on a model whose cached prefix was found not to be exact."""

_ANSWERS = "continues_answers"
"""Set on a model that reads answers behind a cached prefix."""


def cache_problem(config: PreTrainedConfig) -> str | None:
    """Returns what in a model's structure keeps prompts from continuing a prefix, or None."""
    family = family_of(config)
    if family.sliding_window:
        return "its sliding window counts the tokens of the cache, padding included"
    if family.cross_attention:
        return "its cross-attention would need the prefix's mask"
    return sharing_problem(config)


def shares_cache(model: PreTrainedModel) -> bool:
    """Returns whether prompts about a case may continue one cached prefix, up to rounding."""
    possible = shares_prefix(model) and cache_problem(model.config) is None
    return possible and not vars(model).get(_WHOLE, False)


def enable_cached_answers(model: PreTrainedModel) -> None:
    """Lets a model whose rows cannot share their prefix read known answers behind a cached one.

    A decoder that carries a state through the row can continue it in several ways, if each of them
    is read in one call: padding between two calls would change the state.
    """
    setattr(model, _ANSWERS, family_of(model.config).parts.stateful)


def caches_answers(model: PreTrainedModel) -> bool:
    """Returns whether rewards are read behind cached prefixes, while rows train separately."""
    return bool(vars(model).get(_ANSWERS)) and not vars(model).get(_WHOLE)


def disable_shared_cache(model: PreTrainedModel) -> None:
    """Lets a stock model read every prompt whole."""
    setattr(model, _WHOLE, True)


@dataclass
class CachedPrefix:
    """What a model has read of several rows, to be continued in more than one way.

    Attributes:
        model: the stock model.
        cache: keys and values of what was read.
        mask: [rows, W] 1 where the cache holds a token, 0 where it holds padding.
        next_positions: [rows] the position of each row's next token.
    """

    model: PreTrainedModel
    cache: DynamicCache
    mask: Tensor
    next_positions: Tensor

    @classmethod
    def read(
        cls, model: PreTrainedModel, features: Mapping[str, Any], mask: Tensor
    ) -> CachedPrefix:
        """Reads the tokens that `mask` [rows, W] keeps; all images lie in them."""
        ids, lengths = features["input_ids"], mask.sum(dim=1)
        inputs = {
            name: tensor[:, : mask.shape[1]] if tensor.shape[:2] == ids.shape else tensor
            for name, tensor in features.items()
        }
        cache = DynamicCache(config=model.config.get_text_config())
        inputs |= {"attention_mask": mask, "past_key_values": cache}
        parts = family_of(model.config).parts
        multi_axis = parts.multi_axis_positions and "pixel_values" in features
        if not multi_axis and not mask[:, 0].all():  # the model would count the padding
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        final_states(model, **inputs, use_cache=True)
        if multi_axis:
            # M-RoPE counts an image by its longer side; the model has stored the offset just now.
            lengths = lengths + backbone_of(model).rope_deltas[:, 0]
        return cls(model, cache, mask, lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps the given rows in that order, each as often as it is named."""
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.reorder_cache(cast(torch.LongTensor, index))
        self.mask = self.mask[index]
        self.next_positions = self.next_positions[index]

    def extend(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Feeds the given tokens to each row and returns the last one's states, [rows, H]."""
        device = self.mask.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        longest = int(lengths.max())
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        added_mask = leading_mask(lengths, longest)
        positions = self.next_positions[:, None] + torch.arange(longest, device=device)
        self.mask = torch.cat([self.mask, added_mask], dim=1)
        states = final_states(
            self.model,
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.next_positions = self.next_positions + lengths
        return last_attended(states, added_mask)

    def retract(self, lengths: Sequence[int]) -> None:
        """Forgets the tokens of the last `extend`: `lengths[i]` of row i."""
        longest = max(lengths)
        self.cache.crop(-longest)
        self.mask = self.mask[:, :-longest]
        self.next_positions = self.next_positions - torch.tensor(lengths, device=self.mask.device)


def read_branches(
    model: PreTrainedModel,
    features: BatchFeature,
    encoded: Sequence[Sequence[int]],
    cases: Sequence[Sequence[Sequence[Sequence[int]]]],
) -> tuple[CachedPrefix, Tensor]:
    """Reads the prompts of several cases; what the prompts of a case share is read once.

    In token ids an image is one placeholder; in `features` it may be many tokens.

    Args:
        model: a stock model.
        features: one row for each case, whose images lie in what the case's prompts share.
        encoded: token ids of those rows.
        cases: for each case its groups of prompts, such as the two orders, for each group the
            token ids of its prompts. What the prompts of a group share is read once, too.

    Returns:
        what was read, to be continued, and the states at the last tokens, [prompts, H].

    Raises:
        ConfigError: the processor changes the words behind the images.
    """
    shared = [shared_length([prompt for group in groups for prompt in group]) for groups in cases]
    ends = prefix_ends(features, encoded, shared)
    device = features["input_ids"].device
    mask = leading_mask(torch.tensor(ends, device=device), max(ends))
    prefix = CachedPrefix.read(model, features, mask)
    # Of each group: its row in the cache, how many token ids of its prompts are read, the prompts.
    branches = [
        (row, start, group)
        for row, (start, groups) in enumerate(zip(shared, cases, strict=True))
        for group in groups
    ]
    if any(len(group) > 1 for _, _, group in branches):
        prefix.select([row for row, _, _ in branches])
        stops = [shared_length(group) for _, _, group in branches]
        middles = [
            group[0][start:stop] for (_, start, group), stop in zip(branches, stops, strict=True)
        ]
        if any(middles):
            prefix.extend(middles)
        branches = [
            (row, stop, group)
            for row, ((_, _, group), stop) in enumerate(zip(branches, stops, strict=True))
        ]
    prefix.select([row for row, _, group in branches for _ in group])
    return prefix, prefix.extend([ids[start:] for _, start, group in branches for ids in group])


def cached_answer_states(
    model: PreTrainedModel, shared_prefix: SharedPrefixBatch, **inputs: Any
) -> Tensor:
    """Returns the states at the last tokens of a shared-prefix batch's answers, [answers, H].

    Prefixes are padded on the left, where the state that the model carries is still empty.

    Args:
        model: a stock or a reward model.
        shared_prefix: of the batch; answers that see each other are not read so.
        inputs: the other keys of the batch.
    """
    ids = inputs["input_ids"]
    spans = [
        slice(start, start + length)
        for start, length in zip(
            shared_prefix.prefix_starts, shared_prefix.prefix_lengths, strict=True
        )
    ]
    features = {
        name: pad_sequence(
            [tensor.flatten(0, 1)[span] for span in spans], batch_first=True, padding_side="left"
        )
        if tensor.shape[:2] == ids.shape
        else tensor
        for name, tensor in inputs.items()
    }
    lengths = torch.tensor(shared_prefix.prefix_lengths, device=ids.device)
    mask = leading_mask(lengths, int(lengths.max())).flip(1)
    prefix = CachedPrefix.read(model, features, mask)
    branches = [
        (case, ids.flatten()[start : start + length].tolist())
        for case, (starts, lengths_of_case) in enumerate(
            zip(shared_prefix.branch_starts, shared_prefix.branch_lengths, strict=True)
        )
        for start, length in zip(starts, lengths_of_case, strict=True)
    ]
    prefix.select([case for case, _ in branches])
    return prefix.extend([tokens for _, tokens in branches])


def leading_mask(lengths: Tensor, width: int) -> Tensor:
    """Returns a mask [rows, width] that is 1 for the first `lengths` tokens of each row."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()
