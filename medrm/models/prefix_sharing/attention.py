"""Attention of forked batches: in each layer two stock calls, prefixes first, then branches.

The prefixes attend causally; the keys of a branch are [prefix, own]. No mask over the whole batch
is ever built.

Shape legend: B cases, K answers, P and R tokens of the longest prefix and branch, rows x L tokens
of the batch, A heads, d their size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.prefix_sharing.batch import SHARED_ATTENTION, SharedPrefixBatch


@dataclass
class _Layout:
    """A `SharedPrefixBatch` as the attention needs it, on the model's device.

    Attributes:
        prefix: [B, P] place of each prefix token, 0 where there is none; None: they are the first
            B x P tokens as they stand.
        branch: [B, K, R] likewise; None: the tokens behind them as they stand.
        back: [rows x L] place of each token among the B x P + B x K x R computed ones; None: as
            they stand.
        shape: B, K, P, R.
        prefixes: [B] tokens of each prefix.
        blocks: [B, P] number of the image block that a token belongs to, -1 for text; None where
            image tokens see backward only.
        masks: by window, times of repetition and precision, made when first asked for.
    """

    prefix: Tensor | None
    branch: Tensor | None
    back: Tensor | None
    shape: tuple[int, int, int, int]
    prefixes: Tensor
    blocks: Tensor | None = None
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
            [B, 1, P, P], None where that is plainly causal, and one for each branch, [B x K or 1,
            1, groups x R, P + R].
        """
        key = (window, groups, dtype)
        if key not in self.masks:
            prefix, branch = self._prefix_mask(window), self._branch_mask(window, groups)
            self.masks[key] = (
                None if prefix is None else _mask_in(prefix, dtype),
                _mask_in(branch, dtype),
            )
        return self.masks[key]

    def _prefix_mask(self, window: int | None) -> Tensor | None:
        length = self.shape[2]
        if self.blocks is None and (window is None or window >= length):
            return None
        places = torch.arange(length, device=self.prefixes.device)
        behind = places[:, None] - places
        seen = (behind >= 0)[None]
        if self.blocks is not None:
            same = self.blocks[:, :, None] == self.blocks[:, None]
            seen = seen | (same & (self.blocks >= 0)[:, :, None])
        if window is not None:
            seen = seen & (behind < window)
        return seen[:, None]

    def _branch_mask(self, window: int | None, groups: int) -> Tensor:
        _, answers, length, own = self.shape
        device = self.prefixes.device
        # Cases alike need one mask, which the attention spreads over them.
        prefixes = self.prefixes[:1] if self.prefix is None else self.prefixes
        places, tokens = torch.arange(length, device=device), torch.arange(own, device=device)
        query = prefixes[:, None] + tokens
        shared = (places < prefixes[:, None])[:, None].expand(-1, own, -1)
        behind = tokens[:, None] - tokens
        mine = (behind >= 0)[None].expand(len(prefixes), -1, -1)
        if window is not None:
            shared = shared & (query[:, :, None] - places < window)
            mine = mine & (behind < window)
        seen = torch.cat([shared, mine], dim=-1).repeat(1, groups, 1)
        return seen.repeat_interleave(1 if self.prefix is None else answers, dim=0)[:, None]


def _mask_in(seen: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _layout(shared_prefix: SharedPrefixBatch, device: torch.device) -> _Layout:
    cases, answers = len(shared_prefix.prefix_lengths), max(map(len, shared_prefix.branch_lengths))
    prefix = max(shared_prefix.prefix_lengths)
    lengths = set(itertools.chain.from_iterable(shared_prefix.branch_lengths))
    branch = max(lengths)
    shape = (cases, answers, prefix, branch)
    tokens = torch.tensor(shared_prefix.prefix_lengths, device=device)
    alike = set(shared_prefix.prefix_lengths) == {prefix} and lengths == {branch}
    if (
        shared_prefix.packed
        and alike
        and {len(own) for own in shared_prefix.branch_lengths} == {answers}
    ):
        return _Layout(None, None, None, shape, tokens)
    prefixes, branches = (
        torch.zeros(cases, prefix).long(),
        torch.zeros(cases, answers, branch).long(),
    )
    back = torch.zeros(
        shared_prefix.row_length if shared_prefix.packed else cases * shared_prefix.row_length
    ).long()
    for case, (start, length) in enumerate(
        zip(shared_prefix.prefix_starts, shared_prefix.prefix_lengths, strict=True)
    ):
        prefixes[case, :length] = torch.arange(start, start + length)
        first = case * prefix
        back[start : start + length] = torch.arange(first, first + length)
    for case, (starts, own) in enumerate(
        zip(shared_prefix.branch_starts, shared_prefix.branch_lengths, strict=True)
    ):
        for answer, (start, length) in enumerate(zip(starts, own, strict=True)):
            branches[case, answer, :length] = torch.arange(start, start + length)
            first = cases * prefix + (case * answers + answer) * branch
            back[start : start + length] = torch.arange(first, first + length)
    prefixes, branches, back = (index.to(device) for index in (prefixes, branches, back))
    return _Layout(prefixes, branches, back, shape, tokens)


def _parts(heads: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
    """Splits [rows, A, L, d] into prefixes [B, A, P, d] and branches [B, K, A, R, d]."""
    cases, answers, prefix, branch = layout.shape
    if layout.prefix is None or layout.branch is None:
        size = heads.shape[-1]
        first, rest = torch.split(heads[0], [cases * prefix, cases * answers * branch], dim=1)
        return (
            first.reshape(-1, cases, prefix, size).transpose(0, 1),
            rest.reshape(-1, cases, answers, branch, size).permute(1, 2, 0, 3, 4),
        )
    tokens = heads.transpose(1, 2).flatten(0, 1)
    return tokens[layout.prefix].transpose(1, 2), tokens[layout.branch].transpose(2, 3)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_layout: _Layout | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attends as transformers' sdpa does; where a batch is forked, prefix first, then branches.

    On a CPU bf16 is computed in fp32. A forked batch knows no dropout (`load_base` turns it off).

    Returns:
        [rows, L, A, d], and no weights.
    """
    parts = (query, key, value)
    if query.device.type != "cpu":
        return _attend(module, parts, attention_mask, settings, prefix_layout), None
    # On a CPU the kernel for bf16 takes short rows up to eight times as long backward.
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        wide = (query.float(), key.float(), value.float())
        output = _attend(module, wide, attention_mask, settings, prefix_layout)
    return output.to(value.dtype), None


def _attend(
    module: nn.Module,
    parts: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    settings: Mapping[str, Any],
    prefix_layout: _Layout | None,
) -> Tensor:
    """Returns [rows, L, A, d] of queries, keys and values, each [rows, A or fewer, L, d]."""
    query, key, value = parts
    # Cross-attention to an image has no causal order; each row attends to its own image.
    if prefix_layout is None or not vars(module).get("is_causal", False):
        plain, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return plain
    scaling = settings["scaling"]
    _, answers, _, branch = prefix_layout.shape
    heads, size = query.shape[1], query.shape[-1]
    groups = heads // key.shape[1]
    # For its backward the attention would keep what it makes of a boolean mask, in every layer.
    dtype = query.dtype if torch.is_grad_enabled() else torch.bool
    prefix_mask, branch_mask = prefix_layout.masks_of(settings.get("sliding_window"), groups, dtype)
    (shared_query, own_query), (shared_key, own_key), (shared_value, own_value) = (
        _parts(part, prefix_layout) for part in parts
    )
    shared, _ = sdpa_attention_forward(
        module, shared_query, shared_key, shared_value, prefix_mask, scaling=scaling
    )
    keys, values = (
        torch.cat([before[:, None].expand(-1, answers, -1, -1, -1), after], dim=3).flatten(0, 1)
        for before, after in ((shared_key, own_key), (shared_value, own_value))
    )
    # The queries that share a key head stand one behind the other: no key is copied for them.
    folded = own_query.reshape(-1, key.shape[1], groups * branch, size)
    own = scaled_dot_product_attention(folded, keys, values, attn_mask=branch_mask, scale=scaling)
    own = own.reshape(-1, heads, branch, size).transpose(1, 2)
    computed = torch.cat([shared.flatten(0, 1), own.flatten(0, 1)])
    if prefix_layout.back is not None:
        computed = computed[prefix_layout.back]
    return computed.view(query.shape[0], query.shape[2], heads, size)


AttentionInterface.register(SHARED_ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)


def enable_prefix_sharing(model: PreTrainedModel) -> None:
    """Lets a stock model read forked batches; other batches are read as before, to the bit.

    Args:
        model: whose rows may share their prefix (see `sharing_problem`).
    """
    _decoder_settings(model)._attn_implementation = SHARED_ATTENTION


def shares_prefix(model: PreTrainedModel) -> bool:
    """Returns whether a stock model reads what the answers of a case share once."""
    return bool(_decoder_settings(model)._attn_implementation == SHARED_ATTENTION)


def _decoder_settings(model: PreTrainedModel) -> Any:
    return cast(Any, model.get_submodule(family_of(model.config).decoder)).config


def _positions(model: Any, shared_prefix: SharedPrefixBatch, inputs: Mapping[str, Any]) -> Tensor:
    """Returns the position of each token, [rows, L] or [3, rows, L] for M-RoPE.

    The model's own positions of the tokens as they stand, counted from each case's first token;
    those of a branch follow its case's prefix.
    """
    ids = inputs["input_ids"]
    rows, width = ids.shape
    if "image_grid_thw" in inputs:
        standing, _ = model.get_rope_index(
            ids,
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
    else:
        standing = torch.arange(width, device=ids.device).expand(rows, -1)
    source, origin, ahead = torch.zeros(3, rows * width).long()
    source[:] = torch.arange(rows * width)
    origin[:] = source
    for start, length, starts, own in zip(
        shared_prefix.prefix_starts,
        shared_prefix.prefix_lengths,
        shared_prefix.branch_starts,
        shared_prefix.branch_lengths,
        strict=True,
    ):
        origin[start : start + length] = start
        for first, tokens in zip(starts, own, strict=True):
            source[first : first + tokens] = start + length - 1
            origin[first : first + tokens] = start
            ahead[first : first + tokens] = torch.arange(1, tokens + 1)
    flat = standing.flatten(-2)
    source, origin, ahead = (part.to(ids.device) for part in (source, origin, ahead))
    places = flat[..., source]
    if places.ndim > 1:  # M-RoPE goes on from the longest side of an image
        places = torch.where(ahead > 0, places.amax(dim=0), places)
    positions: Tensor = places - flat[..., origin] + ahead
    return positions.view(*flat.shape[:-1], rows, width)


def shared_prefix_states(
    model: PreTrainedModel, shared_prefix: SharedPrefixBatch, **inputs: Any
) -> Tensor:
    """Returns the states after the final norm, [rows x L, H]; the LM head is not run.

    Args:
        model: with forks enabled.
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
    backbone = cast(Any, model).model
    ids = inputs["input_ids"]
    layout = _layout(shared_prefix, ids.device)
    if family_of(model.config).image_blocks and "token_type_ids" in inputs:
        layout.blocks = _image_blocks(inputs["token_type_ids"].flatten(), shared_prefix, layout)
    # A mask of four dimensions keeps the model from making one; the attention does not look at it.
    unused: Any = ids.new_zeros(1, 1, 1, 1)
    if family_of(model.config).image_blocks:
        unused = dict.fromkeys(("full_attention", "sliding_attention"), unused)
    output = backbone(
        **inputs,
        attention_mask=unused,
        position_ids=_positions(backbone, shared_prefix, inputs),
        use_cache=False,
        prefix_layout=layout,
    )
    states: Tensor = output.last_hidden_state.flatten(0, 1)
    return states


def _image_blocks(types: Tensor, shared_prefix: SharedPrefixBatch, layout: _Layout) -> Tensor:
    """Returns [B, P], the number of each token's image in its case, -1 for text."""
    cases, _, prefix, _ = layout.shape
    own = (
        types[: cases * prefix].view(cases, prefix)
        if layout.prefix is None
        else types[layout.prefix]
    )
    pictured = own == 1
    before = pad(pictured, (1, 0))[:, :-1]
    number = (pictured & ~before).long().cumsum(dim=1) - 1
    return torch.where(pictured, number, -1)
