"""Tiny types that cut an image into tiles or slices, or see it through encoders of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from families.build import TOKEN, TinyType
from families.dialogue import CHATML, COHERE, DEEPSEEK, GRANITE, IDEFICS, LLAMA3, VICUNA

_SQUARE = {"height": 28, "width": 28}
_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_TILES = {"size": _SQUARE, "min_patches": 1, "max_patches": 2, "crop_to_patches": True}
_INTERNVL_CONFIG: dict[str, Any] = {
    "image_seq_length": 1,
    "vision_config": {"image_size": [28, 28], "patch_size": [14, 14]},
}
_IDEFICS_TOKENS = {"image_token": "<image>"}
_FAKE = "<fake_token_around_image>"
_CELLS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS_SIZES = {
    "size": {"longest_edge": 56},
    "max_image_size": {"longest_edge": 28},
    "do_image_splitting": False,
}


def _idefics(processor: str, images: str, **options: Any) -> TinyType:
    sizes = options.pop("sizes", _IDEFICS_SIZES)
    settings: dict[str, Any] = {
        "image": "<image>",
        "style": IDEFICS,
        "tokens": _IDEFICS_TOKENS,
        "special": (_FAKE, "<global-img>", "<video>", *_CELLS),
        "config": {"vision_config": {"patch_size": 7}, "scale_factor": 2},
        "parts": {"image_seq_len": 4},
    }
    return TinyType(processor, images, sizes, **(settings | options))


_SLICES = {"scale_resolution": 56, "patch_size": 14, "max_slice_nums": 2}
_MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
_MINICPM_CONFIG = {
    "insert_layer_id": 0,
    "image_size": 56,
    "patch_size": 14,
    "vision_config": {"insert_layer_id": 0, "image_size": 56},
}
_VISUAL = tuple(f"<|visual token {number:06d}|>" for number in range(16))
_EMU = replace(
    VICUNA,
    begin="",
    bos="<|extra_203|>",
    eos="<|extra_204|>",
    pad="<|endoftext|>",
    assistant=("ASSISTANT:", "<|extra_204|>"),
)

TILES: dict[str, TinyType] = {
    "internvl": TinyType(
        "InternVLProcessor",
        "GotOcr2ImageProcessorPil",
        _TILES,
        "<IMG_CONTEXT>\n",
        tokens=_INTERNVL_TOKENS,
        config=_INTERNVL_CONFIG,
        parts={"image_seq_length": 1},
        module="internvl",
    ),
    "qianfan_ocr": TinyType(
        "QianfanOCRProcessor",
        "GotOcr2ImageProcessorPil",
        _TILES,
        "<image>\n",
        tokens=_INTERNVL_TOKENS,
        special=("<image>",),
        config=_INTERNVL_CONFIG,
        parts={"image_seq_length": 1},
    ),
    "aya_vision": TinyType(
        "AyaVisionProcessor",
        "GotOcr2ImageProcessorPil",
        _TILES,
        "<image>",
        COHERE,
        {"image_token": "<|IMG_PATCH|>"},
        (
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_LINE_BREAK|>",
            "TILE",
            "TILE_GLOBAL",
        ),
        parts={"patch_size": 14, "img_size": 28, "downsample_factor": 2},
    ),
    "ovis2": TinyType(
        "Ovis2Processor",
        "Ovis2ImageProcessorPil",
        {"size": _SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 2},
        "<image>\n",
        CHATML,
        {"image_token": "<IMG_ATOM>"},
        ("<image>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        config={
            "vision_config": {"vocab_size": 32, "hidden_stride": 2},
            "visual_indicator_token_ids": [
                f"{TOKEN}<IMG_START>",
                f"{TOKEN}<IMG_GRID>",
                f"{TOKEN}<IMG_COL>",
                f"{TOKEN}<IMG_ROW>",
                f"{TOKEN}<IMG_END>",
            ],
        },
        parts={"image_seq_length": 1},
    ),
    "idefics2": _idefics(
        "Idefics2Processor",
        "Idefics2ImageProcessorPil",
        config={
            "text_config": {"sliding_window": None},
            "perceiver_config": {"num_key_value_heads": 2},
            "vision_config": {"patch_size": 7},
        },
        fill=("perceiver_resampler.latents",),
        sizes={"size": {"shortest_edge": 28, "longest_edge": 56}, "do_image_splitting": False},
        tokens=_IDEFICS_TOKENS | {"image_boundary_token": _FAKE},
        special=(),
    ),
    "idefics3": _idefics("Idefics3Processor", "Idefics3ImageProcessorPil"),
    "smolvlm": _idefics(
        "SmolVLMProcessor",
        "SmolVLMImageProcessorPil",
        style=CHATML,
        special=(_FAKE, "<global-img>", "<video>", "<end_of_utterance>", *_CELLS),
    ),
    "granite_docling": TinyType(
        "GraniteDoclingProcessor",
        "GraniteDoclingImageProcessorPil",
        {"size": _SQUARE, "max_patches": 2},
        "<image>",
        GRANITE,
        {"image_token": "<image>"},
        (_FAKE, "<global-img>", *_CELLS),
        config={
            "vision_config": {"patch_size": 7, "scale_factor": 2, "deepstack_visual_indexes": [0]}
        },
        parts={"image_seq_len": 4},
    ),
    "mllama": TinyType(
        "MllamaProcessor",
        "MllamaImageProcessorPil",
        {"size": _SQUARE, "max_image_tiles": 2},
        "<|image|>",
        LLAMA3,
        {"image_token": "<|image|>"},
        ("<|python_tag|>",),
        config={
            "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
            "vision_config": {
                "num_global_layers": 1,
                "attention_heads": 2,
                "max_num_tiles": 2,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
        },
        fill=("attn_gate", "mlp_gate"),
    ),
    "deepseek_vl": TinyType(
        "DeepseekVLProcessor",
        "DeepseekVLImageProcessorPil",
        {"size": _SQUARE},
        "<image_placeholder>",
        DEEPSEEK,
        {"image_token": "<image_placeholder>"},
        parts={"num_image_tokens": 4},
    ),
    "deepseek_vl_hybrid": TinyType(
        "DeepseekVLHybridProcessor",
        "DeepseekVLHybridImageProcessorPil",
        {"size": _SQUARE, "high_res_size": {"height": 64, "width": 64}},
        "<image_placeholder>",
        DEEPSEEK,
        {"image_token": "<image_placeholder>"},
        config={
            "high_res_vision_config": {
                "image_size": 64,
                "patch_size": 16,
                "window_size": 2,
                "output_channels": 32,
                "global_attn_indexes": [1],
                "num_pos_feats": 16,
            }
        },
        parts={"num_image_tokens": 4},
    ),
    "janus": TinyType(
        "JanusProcessor",
        "JanusImageProcessorPil",
        {"size": _SQUARE},
        "<image_placeholder>\n",
        DEEPSEEK,
        {
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        config={
            "vision_config": {"num_image_tokens": 4, "projection_dim": 32},
            "vq_config": {
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_patches": 4,
                "latent_channels": 32,
                "num_embeddings": 16,
                "image_token_embed_dim": 32,
            },
        },
        parts={"num_image_tokens": 4},
    ),
    "aria": TinyType(
        "AriaProcessor",
        "AriaImageProcessorPil",
        {"max_image_size": 980, "min_image_size": 28},
        "<fim_prefix><|img|><fim_suffix>",
        CHATML,
        {"image_token": "<|img|>"},
        ("<fim_prefix>", "<fim_suffix>"),
        config={
            "vision_config": {"image_size": 980, "patch_size": 196},
            "projector_patch_to_query_dict": {25: 4},
            "max_value_projector_patch_to_query_dict": 4,
        },
        # The processor's own largest size stands in its class.
        parts={"size_conversion": {980: 4}},
    ),
    "minicpmv4_6": TinyType(
        "MiniCPMV4_6Processor",
        "MiniCPMV4_6ImageProcessorPil",
        _SLICES,
        "<|image_pad|>",
        CHATML,
        _MINICPM_TOKENS,
        config=_MINICPM_CONFIG,
        module="minicpmv4_6",
    ),
    "minicpmv4_7": TinyType(
        "MiniCPMV4_7Processor",
        "MiniCPMV4_6ImageProcessorPil",
        _SLICES,
        "<|image_pad|>",
        CHATML,
        _MINICPM_TOKENS,
        config=_MINICPM_CONFIG,
        module="minicpmv4_7",
        images_module="minicpmv4_6",
    ),
    "emu3": TinyType(
        "Emu3Processor",
        "Emu3ImageProcessor",
        {"min_pixels": 256, "max_pixels": 1024},
        "<image>",
        _EMU,
        {
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
        ("<|extra_200|>", *_VISUAL),
        config={
            "vocabulary_map": {
                token: f"{TOKEN}{token}" for token in ("<image>", "<|extra_200|>", *_VISUAL)
            },
            "vq_config": {
                "base_channels": 32,
                "codebook_size": len(_VISUAL),
                "hidden_size": 32,
                "channel_multiplier": [1, 1, 1, 1],
            },
        },
    ),
}
