"""Qwen2.5-VL models with random weights, and batches for them without a tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedModel,
    Qwen2_5_VLConfig,
)

from medrm.models.families import FAMILIES
from medrm.models.prefix_sharing.batch import share_prefixes
from medrm.throughput.batches import Batches

_MERGED = 2
"""Patches along each side of what becomes one image token."""

_PATCH_VALUES = 3 * 2 * 14 * 14
"""Values of a patch: colours x frames x height x width."""

_SPECIAL = 16
"""Ids at the end of the vocabulary that text never has."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen2.5-VL model.

    Attributes:
        hidden: width of the decoder.
        intermediate: of its MLP.
        layers: of it.
        heads: of its queries.
        key_heads: of its keys and values.
        vocabulary: tokens.
        tower: width, MLP width, layers and heads of the vision tower, whose `full` layers attend to
            the whole image, the others within windows.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tower: tuple[int, int, int, int]
    full: tuple[int, ...]


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 1, 256, (32, 64, 2, 2), (1,)),
    # The MLP is as wide beside the decoder as in the 7B model.
    "small": Shape(512, 2816, 5, 8, 2, 2048, (96, 256, 3, 3), (2,)),
    # https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json
    "qwen2_5_vl_7b": Shape(3584, 18944, 28, 28, 4, 152064, (1280, 3420, 32, 16), (7, 15, 23, 31)),
}


def config_of(shape: Shape) -> Qwen2_5_VLConfig:
    """Returns the model config of a shape.

    The weights are drawn so wide that attention moves the rewards of random tokens.
    """
    eighth = shape.hidden // shape.heads // 8
    width, intermediate, layers, heads = shape.tower
    text: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "vocab_size": shape.vocabulary,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": shape.hidden**-0.5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [eighth, 3 * eighth // 2, 3 * eighth // 2],
        },
    }
    vision: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "depth": layers,
        "num_heads": heads,
        "out_hidden_size": shape.hidden,
        "fullatt_block_indexes": list(shape.full),
        "initializer_range": width**-0.5,
    }
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    special: dict[str, Any] = {name: shape.vocabulary - 1 - place for place, name in enumerate(ids)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)


def random_model(
    shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> PreTrainedModel:
    """Returns a stock model with random weights, made on its device."""
    devices = [device] if device.type == "cuda" else []
    loader: Any = AutoModelForImageTextToText
    with torch.random.fork_rng(devices), device:
        torch.manual_seed(seed)
        model = loader.from_config(config_of(shape), dtype=dtype, attn_implementation="sdpa")
    return model.eval()  # type: ignore[no-any-return]


def random_batches(
    config: Any, tokens: tuple[int, int, int], cases: int, answers: int, seed: int = 0
) -> Batches:
    """Returns the same random cases as rows and as forks, in the processor's form.

    Args:
        config: from `config_of`.
        tokens: image tokens, question tokens (start and end of the image included), answer tokens.
        cases: B.
        answers: K.
        seed: of tokens and pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    image, question, answer = tokens
    words = config.text_config.vocab_size - _SPECIAL
    prefixes = []
    for _ in range(cases):
        text = torch.randint(words, (question - 2,), generator=generator)
        start, end = config.vision_start_token_id, config.vision_end_token_id
        pictured = torch.tensor([start, *[config.image_token_id] * image, end])
        prefixes.append(torch.cat([pictured, text]))
    branches = torch.randint(words, (cases, answers, answer), generator=generator)
    pixels = torch.randn(cases, image * _MERGED**2, _PATCH_VALUES, generator=generator)
    first = _rows(config, prefixes, branches[:, :1], pixels)
    shared = share_prefixes(
        first, FAMILIES["qwen2_5_vl"], [len(prefix) for prefix in prefixes], branches.tolist()
    )
    return Batches(_rows(config, prefixes, branches, pixels), shared)


def _rows(config: Any, prefixes: list[Tensor], branches: Tensor, pixels: Tensor) -> BatchFeature:
    """Returns a row for each branch, with its own copy of the image."""
    ids = torch.stack(
        [
            torch.cat([prefix, branch])
            for prefix, own in zip(prefixes, branches, strict=True)
            for branch in own
        ]
    )
    image = pixels.shape[1] // _MERGED**2
    height = next(side for side in range(math.isqrt(image), 0, -1) if image % side == 0)
    grid = [1, height * _MERGED, image // height * _MERGED]
    return BatchFeature(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == config.image_token_id).long(),
            "pixel_values": pixels.repeat_interleave(branches.shape[1], dim=0).flatten(0, 1),
            "image_grid_thw": torch.tensor([grid] * len(ids)),
        }
    )
