"""Tiny types that scale an image to one size: LLaVA and its kin, Pixtral's."""

from __future__ import annotations

from typing import Any

from families.build import TinyType
from families.dialogue import CHATML, GRANITE, MISTRAL, VICUNA

_SQUARE = {"height": 28, "width": 28}
_GRIDS = [[28, 56], [56, 28], [56, 56]]
_CLIP = {"size": {"shortest_edge": 28}, "crop_size": _SQUARE}
_LLAVA_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
_FOUR_PATCHES: dict[str, Any] = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def _llava(processor: str, images: str, sizes: dict[str, Any], **options: Any) -> TinyType:
    settings: dict[str, Any] = {
        "image": "<image>\n",
        "style": VICUNA,
        "tokens": _LLAVA_TOKENS,
        "config": {"image_seq_length": 4},
        "parts": _FOUR_PATCHES,
    }
    return TinyType(processor, images, sizes, **(settings | options))


LLAVA: dict[str, TinyType] = {
    "llava": _llava("LlavaProcessor", "CLIPImageProcessorPil", _CLIP),
    "vipllava": _llava(
        "LlavaProcessor",
        "CLIPImageProcessorPil",
        _CLIP,
        config={
            "image_seq_length": 4,
            "vision_feature_layers": [-1, 1],
            "vision_feature_layer": [-1, 1],
        },
        module="llava",
    ),
    "llava_next": _llava(
        "LlavaNextProcessor",
        "LlavaNextImageProcessorPil",
        _CLIP | {"image_grid_pinpoints": _GRIDS},
        style=MISTRAL,
        config={"image_seq_length": 4, "image_grid_pinpoints": _GRIDS},
    ),
    "llava_next_video": _llava(
        "LlavaNextVideoProcessor",
        "LlavaNextImageProcessorPil",
        _CLIP | {"image_grid_pinpoints": _GRIDS},
        config={"image_seq_length": 4, "image_grid_pinpoints": _GRIDS},
    ),
    "llava_onevision": _llava(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessorPil",
        {"size": _SQUARE, "image_grid_pinpoints": _GRIDS},
        style=CHATML,
        config={"image_grid_pinpoints": _GRIDS},
        parts={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "video_llava": _llava("VideoLlavaProcessor", "VideoLlavaImageProcessor", _CLIP),
    "granite4_vision": _llava(
        "Granite4VisionProcessor",
        "LlavaNextImageProcessorPil",
        {
            "size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56},
            "image_grid_pinpoints": [[56, 56], [56, 112]],
        },
        image="<image>\n",
        style=GRANITE,
        config={
            "image_grid_pinpoints": [[56, 56], [56, 112]],
            "vision_config": {"image_size": 56, "hidden_size": 64, "projection_dim": 64},
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0]],
            "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
        },
        parts={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        },
    ),
    "mistral3": TinyType(
        "PixtralProcessor",
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 56}, "patch_size": {"height": 28, "width": 28}},
        "[IMG]",
        MISTRAL,
        {"image_token": "[IMG]"},
        ("[IMG_BREAK]", "[IMG_END]"),
        config={"vision_config": {"image_size": 56}},
        parts={"patch_size": 14, "spatial_merge_size": 2},
        module="pixtral",
        needs=("torchvision",),
    ),
    "mistral_large4": TinyType(
        "PixtralProcessor",
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 56}, "patch_size": {"height": 28, "width": 28}},
        "[IMG]",
        MISTRAL,
        {"image_token": "[IMG]"},
        ("[IMG_BREAK]", "[IMG_END]"),
        config={
            "vision_config": {"image_size": 56},
            "text_config": {
                "kv_source_layers": [0, 1],
                "no_rope_layers": [1, 1],
                "num_key_value_heads": 4,
                "index_n_heads": 2,
                "index_head_dim": 16,
            },
        },
        parts={"patch_size": 14, "spatial_merge_size": 2},
        module="pixtral",
        needs=("torchvision",),
    ),
    "lighton_ocr": TinyType(
        "LightOnOcrProcessor",
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 56}, "patch_size": {"height": 28, "width": 28}},
        "<|image_pad|>",
        CHATML,
        {
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        config={"vision_config": {"image_size": 56}},
        parts={"patch_size": 14, "spatial_merge_size": 2},
    ),
}
