"""What a model has read once, to be continued in more than one way: an exact shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, DynamicCache, PreTrainedModel

from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import last_attended


def shares_cache(model: PreTrainedModel) -> bool:
    """Returns whether prompts about a case may continue one cached prefix, with exact numbers."""
    return shares_prefix(model) and family_of(model.config).shared_cache


@dataclass
class Prefix:
    """What a model has read of several rows, to be continued in more than one way.

    Attributes:
        backbone: the model without its LM head.
        cache: keys and values of what was read.
        mask: [rows, W], 1 where there is a token; shorter rows have gaps.
        following: [rows], the position of each row's next token.
        axes: 3 where positions are those of M-RoPE, else None.
    """

    backbone: Any
    cache: DynamicCache
    mask: Tensor
    following: Tensor
    axes: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, features: BatchFeature, lengths: Tensor) -> Prefix:
        """Reads the first `lengths` tokens of each row; all images lie in them."""
        backbone = cast(Any, model).model
        ids = features["input_ids"]
        mask = mask_of(lengths, int(lengths.max()))
        inputs = {
            name: tensor[:, : mask.shape[1]] if tensor.shape[:2] == ids.shape else tensor
            for name, tensor in features.items()
        }
        cache = DynamicCache(config=model.config.get_text_config())
        backbone(**{**inputs, "attention_mask": mask}, past_key_values=cache, use_cache=True)
        # M-RoPE counts an image by its longer side; the model has just noted by how much.
        rotates = "image_grid_thw" in features
        following = lengths + backbone.rope_deltas[:, 0] if rotates else lengths
        return cls(backbone, cache, mask, following, 3 if rotates else None)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps the given rows in that order, each as often as it is named."""
        kept = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.mask = self.mask[kept]
        self.following = self.following[kept]

    def extend(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads on by the given tokens of each row and returns the last one's states, [rows, H]."""
        device = self.mask.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        width = int(lengths.max())
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        new = mask_of(lengths, width)
        positions = self.following[:, None] + torch.arange(width, device=device)
        self.mask = torch.cat([self.mask, new], dim=1)
        states = self.backbone(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions if self.axes is None else positions.expand(self.axes, -1, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.following = self.following + lengths
        return last_attended(states, new)

    def retract(self, tokens: int) -> None:
        """Forgets the last `tokens` tokens, which every row has had."""
        self.cache.crop(-tokens)
        self.mask = self.mask[:, :-tokens]
        self.following = self.following - tokens


def read_branches(
    model: PreTrainedModel,
    features: BatchFeature,
    encoded: Sequence[Sequence[int]],
    cases: Sequence[Sequence[Sequence[Sequence[int]]]],
) -> tuple[Prefix, Tensor]:
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
    starts = [shared_length([prompt for group in groups for prompt in group]) for groups in cases]
    ends = ends_of(features, encoded, starts)
    prefix = Prefix.of(model, features, torch.tensor(ends, device=features["input_ids"].device))
    branches = [
        (row, start, group)
        for row, (start, groups) in enumerate(zip(starts, cases, strict=True))
        for group in groups
    ]
    if any(len(group) > 1 for _, _, group in branches):
        stops = [shared_length(group) for _, _, group in branches]
        prefix.select([row for row, _, _ in branches])
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


def ends_of(
    features: BatchFeature, encoded: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[int]:
    """Returns where the first `starts` token ids of each row end once images are many tokens.

    Args:
        features: the processor's output, padded on the right.
        encoded: token ids of its rows, in which an image is one placeholder.
        starts: a place in each of `encoded`, behind the images.

    Raises:
        ConfigError: the processor changes the words behind the images, or an image stands there.
    """
    ends = []
    lengths = features["attention_mask"].sum(dim=1)
    for row, length, ids, start in zip(
        features["input_ids"].tolist(), lengths.tolist(), encoded, starts, strict=True
    ):
        ends.append(length - len(ids) + start)
        if row[ends[-1] : length] != list(ids[start:]):
            raise ConfigError(
                "The processor tokenises the words behind an image differently from its "
                "tokenizer, or an image stands behind the first token in which the answers of a "
                "case differ. Use the processor and tokenizer of the base model and a chat "
                "template that puts the images first, or shared_prefix off."
            )
    return ends


def continued(
    features: BatchFeature, lengths: Sequence[int], rows: Sequence[Sequence[int]]
) -> BatchFeature:
    """Returns the first `lengths` tokens of each row followed by the tokens of `rows`.

    All that the processor says of a token (a row for Mllama's mask, say) is said of each of the
    following as of the last one before them, which is text.
    """
    ids = features["input_ids"]
    changed = {}
    for name, tensor in features.items():
        if tensor.shape[:2] != ids.shape:
            continue
        parts = []
        for row, length, tokens in zip(tensor, lengths, rows, strict=True):
            more = row[length - 1 : length].repeat_interleave(len(tokens), dim=0)
            if name == "input_ids":
                more = torch.tensor(tokens, device=ids.device)
            parts.append(torch.cat([row[:length], more]))
        changed[name] = pad_sequence(parts, batch_first=True)
    return BatchFeature({**features, **changed})


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens the prompts share, the last token of none among them."""
    return min(first_difference(prompts), min(map(len, prompts)) - 1)


def mask_of(lengths: Tensor, width: int) -> Tensor:
    """Returns a mask [rows, width] whose first `lengths` places of each row are 1."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def first_difference(rows: Sequence[Sequence[int]]) -> int:
    """Returns the first place at which the rows are not all equal, or the shortest one's length."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, rows))
