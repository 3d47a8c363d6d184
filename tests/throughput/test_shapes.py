"""The shape of the 7B model is that of the checkpoint on the hub."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medrm.throughput_model import config_of, count_flops, random_model


def linear(inputs: int, outputs: int, bias: bool = False) -> int:
    return (inputs + bias) * outputs


def test_the_large_shape_is_the_true_one() -> None:
    """Counted from the architecture's sizes, layer by layer, and from the model itself."""
    width, mlp, layers, heads, key_heads, vocabulary = 3584, 18944, 28, 28, 4, 152064
    tower, tower_mlp, tower_layers = 1280, 3420, 32
    keys = width // heads * key_heads
    attention = linear(width, width, True) + 2 * linear(width, keys, True) + linear(width, width)
    layer = attention + 3 * linear(width, mlp) + 2 * width
    block = linear(tower, 3 * tower, True) + linear(tower, tower, True) + 2 * tower
    block += 2 * linear(tower, tower_mlp, True) + linear(tower_mlp, tower, True)
    merged = 4 * tower
    merger = tower + linear(merged, merged, True) + linear(merged, width, True)
    patches = 3 * 2 * 14 * 14 * tower
    expected = layers * layer + width + 2 * vocabulary * width  # head and embedding are not tied
    expected += tower_layers * block + merger + patches
    assert expected == 8_292_166_656  # as on the hub: "total_size": 16584333312 bytes in bfloat16
    config = config_of("qwen2_5_vl_7b")
    model: Any = random_model(config, torch.bfloat16, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    decoder, vision = model.model.language_model, model.model.visual
    assert (len(decoder.layers), len(vision.blocks)) == (layers, tower_layers)
    assert sum(parameter.numel() for parameter in decoder.layers.parameters()) == layers * layer
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.vision_config.fullatt_block_indexes == [7, 15, 23, 31]


def test_a_token_of_the_large_shape_costs_two_operations_for_each_weight() -> None:
    """And those of attention: every layer runs."""
    model: Any = random_model(config_of("qwen2_5_vl_7b"), torch.bfloat16, torch.device("meta"))
    tokens = 64
    ids = torch.ones(1, tokens, dtype=torch.long, device="meta")

    def step() -> None:
        with torch.no_grad():
            model.model.language_model(input_ids=ids)

    matrices = [
        weight for weight in model.model.language_model.layers.parameters() if weight.ndim == 2
    ]
    products = 2 * tokens * sum(weight.numel() for weight in matrices)
    attention = 28 * 4 * 28 * 128 * tokens**2  # the meta device computes masked positions, too
    assert products / tokens == pytest.approx(2 * 6.5e9, rel=0.01)
    flops, _ = count_flops(step, "visual")
    assert flops == products + attention
