"""Attention of shared-prefix batches: in each layer two calls, prefixes first, then branches.

No mask over all tokens of the batch is ever built. A layer's queries, keys and values are gathered
by case (`batch.py` has the row they come from) and attended to in two calls:

                       keys and values                      seen by the second token of a branch
    B prefixes         P tokens of the prefix
    B x K branches     P of the prefix, R of the branch     P P P . | a a .

The prefixes attend causally, as stock rows. Each branch attends to its case's prefix and, causally,
to itself. The two outputs are scattered back to where the tokens stand in the batch. All cases may
differ in length: shorter prefixes and branches are padded, and what is computed for the padding is
dropped.

Shape legend: B cases, K answers, P and R tokens of the longest prefix and branch, rows x L tokens
of the batch, A heads, d their size. Indices count through all rows x L tokens.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medrm.errors import ConfigError
from medrm.models.backbone import backbone_of, decoder_of, final_states
from medrm.models.families import family_of
from medrm.models.prefix_sharing.batch import SHARED_ATTENTION, SharedPrefixBatch


@dataclass
class AttentionLayout:
    """A `SharedPrefixBatch` as the attention needs it, on the model's device.

    Attributes:
        prefix_index: [B, P] index of each prefix token, 0 for padding.
        branch_index: [B, K, R] likewise.
        scatter_index: [rows x L] for each token of the batch which of the B x P + B x K x R
            computed ones it is.
        prefix_lengths: [B] tokens of each prefix.
        image_numbers: [B, P] which image of its case a token belongs to, -1 for text; None where
            image tokens see backward only.
        masks: by sliding window, query heads for each key head and precision; made when first
            asked for, and shared by all layers.
    """

    prefix_index: Tensor
    branch_index: Tensor
    scatter_index: Tensor
    prefix_lengths: Tensor
    image_numbers: Tensor | None = None
    masks: dict[tuple[int | None, int, torch.dtype], tuple[Tensor | None, Tensor]] = (
        dataclasses.field(default_factory=dict)
    )

    def masks_of(
        self, window: int | None, groups: int, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        """Returns which keys prefix and branch tokens see.

        Args:
            window: of sliding attention, in tokens; None: all before.
            groups: query heads for each key head, whose queries stand one behind the other.
            dtype: of masks that are added; bool: true where a key is seen.

        Returns:
            [B, 1, P, P], None where that is plainly causal, and one for each branch, [B x K, 1,
            groups x R, P + R].
        """
        key = (window, groups, dtype)
        if key not in self.masks:
            reach = math.inf if window is None else window
            prefix, branch = self._prefix_mask(reach), self._branch_mask(reach, groups)
            self.masks[key] = (
                None if prefix is None else _mask_in(prefix, dtype),
                _mask_in(branch, dtype),
            )
        return self.masks[key]

    def _prefix_mask(self, reach: float) -> Tensor | None:
        length = self.prefix_index.shape[1]
        if self.image_numbers is None and reach >= length:
            return None
        tokens = torch.arange(length, device=self.prefix_lengths.device)
        distance = tokens[:, None] - tokens  # from the query back to the key
        seen = (distance >= 0)[None]
        if self.image_numbers is not None:
            numbers = self.image_numbers
            same_image = (numbers[:, :, None] == numbers[:, None]) & (numbers >= 0)[:, :, None]
            seen = seen | same_image
        return (seen & (distance < reach))[:, None]

    def _branch_mask(self, reach: float, groups: int) -> Tensor:
        _, answers, branch_length = self.branch_index.shape
        prefix_length, lengths = self.prefix_index.shape[1], self.prefix_lengths
        device = lengths.device
        prefix_tokens = torch.arange(prefix_length, device=device)
        branch_tokens = torch.arange(branch_length, device=device)
        # A branch's first token stands one behind the last of its own case's prefix.
        positions = lengths[:, None] + branch_tokens
        # Of the padded prefix [B, P] the branch sees the case's own tokens, of itself those before.
        sees_prefix = (prefix_tokens < lengths[:, None])[:, None]
        sees_prefix = sees_prefix & (positions[:, :, None] - prefix_tokens < reach)
        distance = branch_tokens[:, None] - branch_tokens
        sees_branch = ((distance >= 0) & (distance < reach)).expand(len(lengths), -1, -1)
        seen = torch.cat([sees_prefix, sees_branch], dim=-1).repeat(1, groups, 1)
        return seen.repeat_interleave(answers, dim=0)[:, None]


def _mask_in(seen: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _layout(batch: SharedPrefixBatch, device: torch.device) -> AttentionLayout:
    """Returns the layout of a batch, made in main memory and moved in a single transfer."""
    prefix_lengths = torch.tensor(batch.prefix_lengths)
    prefix_index, is_prefix = _ranges(torch.tensor(batch.prefix_starts), prefix_lengths)
    branch_index, is_branch = _ranges(
        # [B, K]; cases with fewer answers are filled up with branches of no token.
        pad_sequence([torch.tensor(starts) for starts in batch.branch_starts], batch_first=True),
        pad_sequence([torch.tensor(lengths) for lengths in batch.branch_lengths], batch_first=True),
    )
    # The inverse: which of the computed tokens, in the order of the two outputs, each token is.
    index = torch.cat([prefix_index.flatten(), branch_index.flatten()])
    real = torch.cat([is_prefix.flatten(), is_branch.flatten()])
    rows = 1 if batch.packed else len(batch.prefix_lengths)
    scatter_index = torch.zeros(rows * batch.row_length).long()
    scatter_index[index[real]] = torch.arange(len(index))[real]
    return AttentionLayout(
        prefix_index.to(device),
        branch_index.to(device),
        scatter_index.to(device),
        prefix_lengths.to(device),
    )


def _ranges(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ranges of indices, 0 behind their ends, and whether an element is inside its range.

    Args:
        starts: [...] first index of each.
        lengths: [...] of each.

    Returns:
        both [..., longest].
    """
    offsets = torch.arange(int(lengths.max()))
    inside = offsets < lengths[..., None]
    return (starts[..., None] + offsets).where(inside, 0), inside


def _gather(heads: Tensor, layout: AttentionLayout) -> tuple[Tensor, Tensor]:
    """Splits [rows, A, L, d] into prefixes [B, A, P, d] and branches [B, K, A, R, d]."""
    tokens = heads.transpose(1, 2).flatten(0, 1)  # [rows x L, A, d]
    return tokens[layout.prefix_index].transpose(1, 2), tokens[layout.branch_index].transpose(2, 3)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_layout: AttentionLayout | None = None,
    keeps_precision: bool = False,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attends as transformers' sdpa does; with a layout, prefixes first, then branches.

    On a CPU bf16 is computed in fp32. Shared-prefix batches know no dropout (`load_base` turns it
    off).

    Returns:
        [rows, L, A, d], and no weights.
    """
    heads = (query, key, value)
    if keeps_precision or query.device.type != "cpu":
        return _attend(module, heads, attention_mask, settings, prefix_layout), None
    # On a CPU the bf16 kernel's backward is up to eight times slower on short rows.
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        heads = (query.float(), key.float(), value.float())
        output = _attend(module, heads, attention_mask, settings, prefix_layout)
    return output.to(value.dtype), None


def _attend(
    module: nn.Module,
    heads: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    settings: Mapping[str, Any],
    layout: AttentionLayout | None,
) -> Tensor:
    """Returns [rows, L, A, d] of queries, keys and values, each [rows, A or fewer, L, d]."""
    query, key, value = heads
    # Cross-attention to an image has no causal order; each row attends to its own image.
    if layout is None or not vars(module).get("is_causal", False):
        plain, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return plain
    scaling = settings["scaling"]
    _, answers, branch_length = layout.branch_index.shape
    query_heads, key_heads = query.shape[1], key.shape[1]
    queries_per_key = query_heads // key_heads
    # Else the attention would save a float copy of the boolean mask for backward, in every layer.
    dtype = query.dtype if torch.is_grad_enabled() else torch.bool
    prefix_mask, branch_mask = layout.masks_of(
        settings.get("sliding_window"), queries_per_key, dtype
    )
    (prefix_query, branch_query), (prefix_key, branch_key), (prefix_value, branch_value) = (
        _gather(tensor, layout) for tensor in heads
    )
    # [B, P, A, d]
    prefix_output, _ = sdpa_attention_forward(
        module, prefix_query, prefix_key, prefix_value, prefix_mask, scaling=scaling
    )
    # Keys and values [B x K, key heads, P + R, d]: each branch behind a view of its case's prefix.
    keys, values = (
        torch.cat([prefix[:, None].expand(-1, answers, -1, -1, -1), branch], dim=3).flatten(0, 1)
        for prefix, branch in ((prefix_key, branch_key), (prefix_value, branch_value))
    )
    # The queries that share a key head stand one behind the other: no key is copied for them.
    folded = branch_query.reshape(-1, key_heads, queries_per_key * branch_length, query.shape[-1])
    branch_output = scaled_dot_product_attention(
        folded, keys, values, attn_mask=branch_mask, scale=scaling
    )
    branch_output = branch_output.reshape(-1, query_heads, branch_length, value.shape[-1])
    branch_output = branch_output.transpose(1, 2)
    computed = torch.cat([prefix_output.flatten(0, 1), branch_output.flatten(0, 1)])
    return computed[layout.scatter_index].view(query.shape[0], query.shape[2], query_heads, -1)


@contextmanager
def attention_of_gpus() -> Iterator[None]:
    """Lets attention keep its precision on the CPU, for counting what it would hold on a GPU."""
    attend = partial(shared_prefix_attention, keeps_precision=True)
    AttentionInterface.register(SHARED_ATTENTION, attend)
    try:
        yield
    finally:
        AttentionInterface.register(SHARED_ATTENTION, shared_prefix_attention)


AttentionInterface.register(SHARED_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)


def enable_prefix_sharing(model: PreTrainedModel) -> None:
    """Lets a stock model read shared-prefix batches; others are read as before.

    Args:
        model: whose rows may share their prefix (see `sharing_problem`).
    """
    _decoder_settings(model)._attn_implementation = SHARED_ATTENTION


def disable_prefix_sharing(model: PreTrainedModel) -> None:
    """Lets the rows of a stock model run separately."""
    _decoder_settings(model)._attn_implementation = "sdpa"


def shares_prefix(model: PreTrainedModel) -> bool:
    """Returns whether a stock model reads what the answers of a case share once."""
    return bool(_decoder_settings(model)._attn_implementation == SHARED_ATTENTION)


def _decoder_settings(model: PreTrainedModel) -> Any:
    return decoder_of(model).config


def shared_prefix_states(
    model: PreTrainedModel, shared_prefix: SharedPrefixBatch, **inputs: Any
) -> Tensor:
    """Returns the states after the final norm, [rows x L, H]; the LM head is not run.

    Args:
        model: whose attention shares prefixes.
        shared_prefix: of the batch.
        inputs: the other keys of the batch.

    Raises:
        ConfigError: the model's attention cannot share prefixes: the numbers would be wrong.
    """
    if not shares_prefix(model):
        raise ConfigError(
            "A forked batch needs a model whose attention forks; this one's rows run separately. "
            "Make batches of rows (shared_prefix off)."
        )
    ids = inputs["input_ids"]
    layout = _layout(shared_prefix, ids.device)
    # A mask of four dimensions keeps the model from making one; the attention does not look at it.
    unused: Any = ids.new_zeros(1, 1, 1, 1)
    if family_of(model.config).image_blocks:
        unused = dict.fromkeys(("full_attention", "sliding_attention"), unused)
        if "token_type_ids" in inputs:
            layout.image_numbers = _image_numbers(inputs["token_type_ids"].flatten(), layout)
    states = final_states(
        model,
        **inputs,
        attention_mask=unused,
        position_ids=_positions(backbone_of(model), layout, inputs),
        use_cache=False,
        prefix_layout=layout,
    )
    return states.flatten(0, 1)


def _positions(model: Any, layout: AttentionLayout, inputs: Mapping[str, Any]) -> Tensor:
    """Returns the position of each token, [rows, L], or [axes, rows, L] for M-RoPE.

    The model counts each prefix and the token behind it as a row of its own; the n-th token of a
    branch stands n - 1 behind that one.
    """
    ids = inputs["input_ids"]
    _, answers, branch_length = layout.branch_index.shape
    lengths = layout.prefix_lengths[:, None]
    next_token = layout.branch_index[:, :1, 0]  # [B, 1] the first token of a branch, which is text
    index = pad(layout.prefix_index, (0, 1)).scatter(1, lengths, next_token)  # [B, P + 1]
    counted = torch.arange(index.shape[1], device=ids.device).expand(len(index), -1)
    if "pixel_values" in inputs and hasattr(model, "get_rope_index"):
        accepted = inspect.signature(model.get_rope_index).parameters
        rows = {
            name: value.flatten()[index] if value.shape == ids.shape else value
            for name, value in inputs.items()
            if name in accepted
        }
        counted, _ = model.get_rope_index(**rows, attention_mask=(counted <= lengths).long())
    starts = counted.gather(-1, lengths.expand(*counted.shape[:-1], 1))[..., None]
    steps = torch.arange(branch_length, device=ids.device)
    branches = (starts + steps).expand(*counted.shape[:-1], answers, -1)  # [axes, B, K, R]
    computed = torch.cat([counted[..., :-1].flatten(-2), branches.flatten(-3)], dim=-1)
    return computed[..., layout.scatter_index].view(*counted.shape[:-2], *ids.shape)


def _image_numbers(types: Tensor, layout: AttentionLayout) -> Tensor:
    """Returns [B, P], which image of its case each prefix token belongs to, -1 for text.

    Args:
        types: [rows x L] 1 for image tokens; tokens of one image stand next to each other.
        layout: of the batch.
    """
    is_image = types[layout.prefix_index] == 1
    is_first = is_image & ~pad(is_image, (1, 0))[:, :-1]
    return torch.where(is_image, is_first.long().cumsum(dim=1) - 1, -1)
