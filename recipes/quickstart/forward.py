"""Fast exact passes through the phantom base, for grey images of one size and many short exchanges.

The stock forward attends image by image and reads one exchange a row. Here images run in one batch,
each image is read once, and all exchanges about it go on from its cache. On a CPU that is several
times faster; `tests/test_phantom_base.py` holds it against the stock forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from exchanges import Exchange, draw_exchanges
from network import MERGE, PATCH, Model, TextTokenizer
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from medrm.data.phantom import pictures as phantom
from medrm.data.phantom.pictures import SIDE_PIXELS, Picture, render

CELL = PATCH * MERGE
GRID = SIDE_PIXELS // CELL  # 4 x 4 visual tokens
OPENING = "<|im_start|>user\n<|vision_start|>"
TURN = "<|im_end|>\n<|im_start|>assistant\n"
CELL_TARGETS = 8
GROUPS = 4
WEIGHTS = {
    "description": 0.3,
    "word": 0.5,
    "json": 0.3,
    "check": 1.0,
    "letter": 1.0,
    "pair": 1.0,
    "choice": 0.6,
}
END_WEIGHT = 0.02


def patches(pixels: np.ndarray) -> Tensor:
    """(B, 112, 112) uint8 -> (B, 64, 196): patches in the processor's order, one colour plane."""
    blocks = pixels.reshape(-1, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    blocks = blocks.transpose(0, 1, 4, 2, 5, 3, 6).reshape(len(pixels), -1, PATCH * PATCH)
    return torch.from_numpy(blocks.astype(np.float32) / 127.5 - 1)


def see(model: Model, planes: Tensor) -> Tensor:
    """(B, 64, 196) -> (B, 16, H): the stock vision tower for grey images of one size, in one batch.

    The stock forward attends image by image and convolves six equal planes; the sums are the same.
    """
    visual = model.model.visual
    kernel = visual.patch_embed.proj.weight.sum((1, 2)).flatten(1)
    hidden = functional.linear(planes, kernel)
    batch, tokens, _ = hidden.shape
    where = torch.arange(tokens)
    cell, inner = where // MERGE**2, where % MERGE**2
    places = torch.stack(
        [cell // GRID * MERGE + inner // MERGE, cell % GRID * MERGE + inner % MERGE], 1
    )
    angles = torch.cat(
        [
            places[:, :1] * visual.rotary_pos_emb.inv_freq,
            places[:, 1:] * visual.rotary_pos_emb.inv_freq,
        ],
        1,
    ).repeat(1, 2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    for block in visual.blocks:
        heads = block.attn.num_heads
        query, key, value = (
            block.attn.qkv(block.norm1(hidden)).view(batch, tokens, 3, heads, -1).unbind(2)
        )
        query, key = (side * cos + rotate_half(side) * sin for side in (query.float(), key.float()))
        query, key, value = (side.to(value.dtype).transpose(1, 2) for side in (query, key, value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        mixed = scores.softmax(-1).to(value.dtype) @ value
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.flatten(0, 1)).view(batch, GRID * GRID, -1)


def cell_targets(true: phantom.Facts, picture: Picture) -> np.ndarray:
    """Returns (16, 8): what lies under each visual token.

    Bright and dark lesion area, lesions by shade and size (each lesion's share, so that the cells
    sum to the count), and the area of the left and right region.
    """

    def mean(plane: np.ndarray) -> np.ndarray:
        return plane.reshape(GRID, CELL, GRID, CELL).mean((1, 3)).ravel()

    targets = np.zeros((GRID * GRID, CELL_TARGETS), np.float32)
    shade, size = phantom.SHADES.index(true.shade), phantom.SIZES.index(true.size)
    for lesion in picture.lesions:
        targets[:, shade] += 4 * mean(lesion)
        targets[:, 2 + 2 * shade + size] += mean(lesion / lesion.sum()) * CELL**2
    targets[:, 6] = mean(picture.regions[0])
    targets[:, 7] = mean(picture.regions[1])
    return targets


@dataclass
class Group:
    """Exchanges of similar length: which image, tokens, and what is to be answered where."""

    owner: Tensor  # (N,) image of each exchange
    ids: Tensor  # (N, L)
    kinds: list[str]
    exchange: Tensor  # (T,) exchange of each target
    place: Tensor  # (T,) position whose next token is the target
    token: Tensor  # (T,)
    weight: Tensor  # (T,)


@dataclass
class Batch:
    """Images with their cells' targets and the exchanges about them."""

    planes: Tensor  # (B, 64, 196)
    cells: Tensor  # (B, 16, 8)
    groups: list[Group]


class Reader:
    """Draws pictures and the exchanges about them, always on from one random generator."""

    def __init__(self, tokenizer: TextTokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = np.random.default_rng(seed)

    def encode(self, piece: str) -> list[int]:
        """Returns the token ids of a piece of text, special tokens included where written."""
        return self.tokenizer(piece, add_special_tokens=False)["input_ids"]

    def pictures(self, count: int) -> tuple[list[phantom.Facts], Tensor, Tensor]:
        """Returns the facts, the patches (B, 64, 196) and the cell targets (B, 16, 8)."""
        true = [phantom.draw_facts(self.rng) for _ in range(count)]
        drawn = [render(facts, self.rng) for facts in true]
        cells = [cell_targets(*pair) for pair in zip(true, drawn, strict=True)]
        planes = patches(np.stack([picture.pixels for picture in drawn]))
        return true, planes, torch.from_numpy(np.stack(cells))

    def batch(self, count: int) -> Batch:
        """Returns `count` images with all their exchanges, in groups of similar length."""
        true, planes, cells = self.pictures(count)
        exchanges = [
            (image, exchange.kind, *self._tokens(exchange))
            for image, facts in enumerate(true)
            for exchange in draw_exchanges(facts, self.rng)
        ]
        exchanges.sort(key=lambda entry: len(entry[2]) + len(entry[3]))
        size = -(-len(exchanges) // GROUPS)
        groups = [self._group(exchanges[at : at + size]) for at in range(0, len(exchanges), size)]
        return Batch(planes, cells, groups)

    def _tokens(self, exchange: Exchange) -> tuple[list[int], list[int]]:
        asked = self.encode(f"<|vision_end|>{exchange.asked}{TURN}")
        return asked, self.encode(f"{exchange.answer}<|im_end|>")

    def _group(self, entries: list[tuple[int, str, list[int], list[int]]]) -> Group:
        length = max(len(asked) + len(answer) for _, _, asked, answer in entries)
        ids = torch.full((len(entries), length), self.tokenizer.pad_token_id)
        targets = []
        for number, (_, kind, asked, answer) in enumerate(entries):
            ids[number, : len(asked) + len(answer)] = torch.tensor(asked + answer)
            weights = [WEIGHTS[kind.split()[0]]] * (len(answer) - 1) + [END_WEIGHT]
            places = range(len(asked) - 1, len(asked) + len(answer) - 1)
            targets += [(number, *rest) for rest in zip(places, answer, weights, strict=True)]
        exchange, place, token, weight = (torch.tensor(row) for row in zip(*targets, strict=True))
        owner = torch.tensor([image for image, *_ in entries])
        kinds = [kind for _, kind, *_ in entries]
        return Group(owner, ids, kinds, exchange, place, token, weight)


def read(
    model: Model, opening: list[int], features: Tensor
) -> tuple[transformers.DynamicCache, int]:
    """Returns the cache of `opening` (token ids) and the images' features (B, 16, H), its length.

    M-RoPE: time stands still over the image, height and width go on from the opening.
    """
    embed, count = model.get_input_embeddings(), len(features)
    words = embed(torch.tensor(opening)).expand(count, -1, -1)
    first, cell = len(opening), torch.arange(GRID * GRID)
    start = torch.arange(first)
    positions = torch.stack(
        [
            torch.cat([start, first + part])
            for part in (torch.zeros_like(cell), cell // GRID, cell % GRID)
        ]
    )
    length = first + GRID * GRID
    cache = transformers.DynamicCache()
    model.model.language_model(
        inputs_embeds=torch.cat([words, features.to(words.dtype)], 1),
        attention_mask={"full_attention": causal(length, length)},
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return cache, length


def causal(queries: int, keys: int) -> Tensor:
    """Returns the additive mask (1, 1, Q, K) in which the last query sees all keys."""
    mask = torch.full((queries, keys), torch.finfo(torch.float32).min)
    return mask.triu(keys - queries + 1)[None, None]


def answer(
    model: Model,
    group: Group,
    seen: transformers.DynamicCache,
    opening: int,
    length: int,
) -> Tensor:
    """Returns the logits (T, V) at the group's targets; each exchange sees its image and itself."""
    cache = transformers.DynamicCache()
    for number, layer in enumerate(seen.layers):
        cache.update(layer.keys[group.owner], layer.values[group.owner], number)
    own = group.ids.shape[1]
    hidden = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(group.ids),
        attention_mask={"full_attention": causal(own, length + own)},
        position_ids=(opening + GRID + torch.arange(own)).expand(3, 1, -1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return model.lm_head(hidden[group.exchange, group.place])


def forward(model: Model, opening: list[int], batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Returns the visual features (B, 16, H) and each group's logits (T, V)."""
    features = see(model, batch.planes)
    seen, length = read(model, opening, features)
    logits = [answer(model, group, seen, len(opening), length) for group in batch.groups]
    return features, logits
