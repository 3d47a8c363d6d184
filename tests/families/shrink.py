"""Makes a type's default config tiny: the same architecture in small, by rules over its keys.

Layers of every kind that the default has are kept (sliding and full attention, dense and sparse),
so that what is tested is the type and not its first layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIDDEN = 32
LAYERS = 2

_SIZES: dict[str, Any] = {
    # Widths.
    "hidden_size": HIDDEN,
    "embed_dim": HIDDEN,
    "d_model": HIDDEN,
    "out_hidden_size": HIDDEN,
    "text_hidden_size": HIDDEN,
    "encoder_hidden_size": HIDDEN,
    "projection_dim": HIDDEN,
    "projector_hidden_size": HIDDEN,
    "projection_hidden_size": HIDDEN,
    "projection_intermediate_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "dense_intermediate_size": 2 * HIDDEN,
    "shared_intermediate_size": HIDDEN,
    "moe_intermediate_size": HIDDEN,
    "shared_expert_intermediate_size": HIDDEN,
    "shared_experts_intermediate_size": HIDDEN,
    "intermediate_size_mlp": 2 * HIDDEN,
    "downsample_hidden_size": 8,
    "ffn_dim": 2 * HIDDEN,
    "mlp_dim": 2 * HIDDEN,
    # Depths.
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "depth": LAYERS,
    "encoder_layers": LAYERS,
    # Heads.
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "query_pre_attn_scalar": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # Mixtures of experts.
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Lengths.
    "max_position_embeddings": 2048,
    "sliding_window": 64,
    "max_window_layers": LAYERS,
    "resampler_n_latents": 4,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
}
_TOWER_SIZES: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 14,
    "num_attention_heads": 2,
    "num_heads": 2,
    "head_dim": 16,
    "num_key_value_heads": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 64,
    "position_embedding_size": 64,
}
_BY_LAYER = ("layer_types", "mlp_layer_types", "indexer_types", "layers_block_type")
_DROPPED = ("per_layer_config", "transformers_version", "id2label", "label2id", "architectures")


def _of_every_kind(kinds: list[Any]) -> list[Any]:
    """Returns what LAYERS layers are: each kind in its order, the last one kept at the end."""
    distinct = sorted(set(kinds), key=kinds.index)
    return (distinct + [kinds[-1]] * LAYERS)[: max(LAYERS, len(distinct))]


def shrink(config: Mapping[str, Any], tower: bool = False) -> dict[str, Any]:
    """Returns a config's dictionary with small sizes.

    Args:
        config: `to_dict()` of a config.
        tower: whether it is a tower's, which are narrower in heads and look at 28 x 28 pixels.
    """
    sizes = _SIZES | (_TOWER_SIZES if tower else {})
    small: dict[str, Any] = {}
    for key, setting in config.items():
        if key in _DROPPED:
            continue
        if key.endswith("_config") and isinstance(setting, Mapping):
            small[key] = shrink(setting, tower=tower or key != "text_config")
        elif key in _BY_LAYER and isinstance(setting, list):
            small[key] = _of_every_kind(setting)
        elif key in sizes and setting is not None:
            small[key] = _like(setting, sizes[key])
        else:
            small[key] = setting
    layers = [len(small[key]) for key in _BY_LAYER if isinstance(small.get(key), list)]
    if layers and "num_hidden_layers" in small:
        small["num_hidden_layers"] = max(layers)
        for key in _BY_LAYER:
            if isinstance(small.get(key), list):
                small[key] += [small[key][-1]] * (max(layers) - len(small[key]))
    return small


def _like(setting: Any, size: Any) -> Any:
    """Returns the small size in the form of the setting: a number, or as many of them."""
    if isinstance(setting, (list, tuple)) and not isinstance(size, (list, tuple)):
        return [size] * min(len(setting), LAYERS)
    return size


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with changes; those of sub-configs are merged into them."""
    result = dict(config)
    for key, change in changes.items():
        nested = isinstance(change, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], change) if nested else change
    return result
