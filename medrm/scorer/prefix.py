"""What a model has read once, to be continued in more than one way: an exact shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache, PreTrainedModel

from medrm.models.reward_model import last_attended


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

    def repeat(self, times: int) -> None:
        """Puts each row `times` times in succession."""
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, dim=0)
        self.following = self.following.repeat_interleave(times)

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


def mask_of(lengths: Tensor, width: int) -> Tensor:
    """Returns a mask [rows, width] whose first `lengths` places of each row are 1."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def first_difference(rows: Sequence[Sequence[int]]) -> int:
    """Returns the first place at which the rows are not all equal, or the shortest one's length."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, rows))
