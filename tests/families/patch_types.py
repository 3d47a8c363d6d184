"""Tiny types that keep an image's own size and cut it into patches: Qwen-VL, GLM-V and kin."""

from __future__ import annotations

from typing import Any

from families.build import TinyType
from families.dialogue import CHATML, COHERE, ERNIE, EXAONE, GLM, HUNYUAN

_MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _pixels(patch: int) -> dict[str, Any]:
    """Returns one to four tokens for an image, each of 2 x 2 patches."""
    unit = 2 * patch
    return {"patch_size": patch, "merge_size": 2, "min_pixels": unit**2, "max_pixels": 4 * unit**2}


def _area(patch: int, **further: Any) -> dict[str, Any]:
    """Returns the same where the limits are written as edges."""
    unit = 2 * patch
    size = {"shortest_edge": unit**2, "longest_edge": 4 * unit**2}
    return {"patch_size": patch, "merge_size": 2, "size": size, **further}


def _qwen(processor: str, patch: int, config: dict[str, Any], **options: Any) -> TinyType:
    settings: dict[str, Any] = {
        "image": _QWEN_IMAGE,
        "tokens": _QWEN_TOKENS,
        "config": {"vision_config": {"patch_size": patch}} | config,
        "module": "qwen2_vl",
    }
    sizes = _pixels(patch) | options.pop("sizes", {})
    return TinyType(processor, "Qwen2VLImageProcessorPil", sizes, **(settings | options))


def _tower(patch: int, **further: Any) -> dict[str, Any]:
    return {"patch_size": patch, **further}


_HYBRID: dict[str, Any] = {
    # A quarter of the head is rotated.
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 2],
        "mrope_interleaved": True,
    },
}
_VISION_IDS = {"vision_start_token_id": 0, "vision_end_token_id": 0}
"""Which the real configs have and the class has no default for."""
_HEARING = {"num_mel_bins": 16, "output_dim": 32}
_WHISPER = ("WhisperFeatureExtractor", "whisper", {"feature_size": 16})
_OMNI_TOKENS = {
    "vision_bos_token": "<|vision_bos|>",
    "vision_start_token": "<|vision_bos|>",
    "vision_end_token": "<|vision_eos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_INTERLEAVED = {"rope_parameters": _MROPE | {"mrope_interleaved": True}}

QWEN: dict[str, TinyType] = {
    "qwen2_vl": _qwen(
        "Qwen2VLProcessor",
        14,
        {"text_config": {"rope_parameters": _MROPE}, "vision_config": _tower(14)},
    ),
    "qwen2_5_vl": _qwen(
        "Qwen2_5_VLProcessor",
        14,
        {"text_config": {"rope_parameters": _MROPE}, "vision_config": _tower(14)},
    ),
    "qwen3_vl": _qwen(
        "Qwen3VLProcessor", 16, {"text_config": _INTERLEAVED, "vision_config": _tower(16)}
    ),
    "qwen3_vl_moe": _qwen(
        "Qwen3VLProcessor", 16, {"text_config": _INTERLEAVED, "vision_config": _tower(16)}
    ),
    "cosmos3_omni": _qwen(
        "Qwen3VLProcessor", 16, {"text_config": _INTERLEAVED, "vision_config": _tower(16)}
    ),
    "qwen3_5": _qwen("Qwen3VLProcessor", 16, {"text_config": _HYBRID, "vision_config": _tower(16)}),
    "qwen3_5_moe": _qwen(
        "Qwen3VLProcessor", 16, {"text_config": _HYBRID, "vision_config": _tower(16)}
    ),
    "qwen4_exp": _qwen(
        "Qwen3VLProcessor",
        16,
        {
            "text_config": _HYBRID
            | {
                "hc_lowrank": 4,
                "ple_embed_dim": 8,
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 32,
                "indexer_budget": 512,
                "indexer_compress_ratio": 4,
            },
            "vision_config": _tower(16),
        },
    ),
    "qwen2_5_omni_thinker": _qwen(
        "Qwen2_5OmniProcessor",
        14,
        {"text_config": {"rope_parameters": _MROPE}, "audio_config": _HEARING} | _VISION_IDS,
        audio=_WHISPER,
        image="<|vision_bos|><|IMAGE|><|vision_eos|>",
        tokens=_OMNI_TOKENS
        | {
            "image_token": "<|IMAGE|>",
            "video_token": "<|VIDEO|>",
            "audio_token": "<|AUDIO|>",
        },
        module="qwen2_5_omni",
    ),
    "qwen3_omni_moe_thinker": _qwen(
        "Qwen3OmniMoeProcessor",
        16,
        {"text_config": _INTERLEAVED, "audio_config": _HEARING} | _VISION_IDS,
        audio=_WHISPER,
        tokens=_OMNI_TOKENS | _QWEN_TOKENS | {"audio_token": "<|audio_pad|>"},
        module="qwen3_omni_moe",
    ),
    "hyperclovax_vision_v2": _qwen("HyperCLOVAXVisionV2Processor", 14, {}),
    "exaone4_5": _qwen("Exaone4_5_Processor", 14, {}, style=EXAONE),
    "dots3_note": _qwen(
        "Dots3NoteProcessor",
        14,
        {
            "text_config": {
                "num_key_value_heads": 4,
                "index_n_heads": 2,
                "index_head_dim": 8,
                "head_dim": 16,
                "per_layer_config": {},
            },
            "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
            "audio_config": {
                "adapter_input_size": 32,
                "adapter_out_dim": 32,
                "conv_output_size": 128,
            },
        },
        image="<|img|><|imgpad|><|endofimg|>",
        tokens={
            "image_token": "<|imgpad|>",
            "video_token": "<|video_pad|>",
            "audio_token": "<|audio_comp_pad|>",
        },
        special=("<|img|>", "<|endofimg|>"),
        sizes={"temporal_patch_size": 1},
        audio=("Dots3NoteFeatureExtractor", "dots3_note", {}),
    ),
    "lfm3_vl": _qwen("Lfm3VlProcessor", 16, {}),
}

_GLM_TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}


def _glm(name: str, module: str, text: dict[str, Any] | None = None, **options: Any) -> TinyType:
    settings: dict[str, Any] = {
        "image": "<|begin_of_image|><|image|><|end_of_image|>",
        "style": GLM,
        "tokens": _GLM_TOKENS,
        "config": {
            "text_config": text or {},
            "vision_config": {"spatial_merge_size": 2, "image_size": 56},
        },
        "module": module,
    }
    sizes = options.pop("sizes", _area(14))
    return TinyType(f"{name}Processor", f"{name}ImageProcessorPil", sizes, **(settings | options))


_GLM_ROPE = {"rope_parameters": _MROPE}

GLM_V: dict[str, TinyType] = {
    "glmga": TinyType(
        "Glm46VProcessor",
        "GlmgaImageProcessorPil",
        _area(14),
        "<|begin_of_image|><|image|><|end_of_image|>",
        GLM,
        _GLM_TOKENS,
        config={
            "text_config": _GLM_ROPE,
            "vision_config": {"spatial_merge_size": 2, "image_size": 56},
        },
        module="glm46v",
        images_module="glmga",
    ),
    "glm4v": _glm("Glm4v", "glm4v", _GLM_ROPE),
    "glm46v": _glm("Glm46V", "glm46v", _GLM_ROPE),
    "glm4v_moe": _glm("Glm4v", "glm4v", {"head_dim": 16} | _GLM_ROPE),
    "glm_ocr": _glm("Glm46V", "glm46v", _GLM_ROPE),
    "glm5_next": _glm(
        "Glm5Next",
        "glm5_next",
        {
            "num_key_value_heads": 4,
            "qk_rope_head_dim": 0,
            "head_dim": 0,
            "qk_head_dim": 8,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
        },
        sizes={"patch_size": 14, "merge_size": 2, "min_image_tokens": 1, "max_image_tokens": 4},
    ),
    "ernie4_5_vl_moe": TinyType(
        "Ernie4_5_VLMoeProcessor",
        "Ernie4_5_VLMoeImageProcessorPil",
        _area(14),
        "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        ERNIE,
        {
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "image_start_token": "<|IMAGE_START|>",
            "image_end_token": "<|IMAGE_END|>",
            "video_token": "<|VIDEO_PLACEHOLDER|>",
            "video_start_token": "<|VIDEO_START|>",
            "video_end_token": "<|VIDEO_END|>",
        },
        config={"text_config": {"rope_parameters": _MROPE}, "vision_config": {"num_heads": 4}},
    ),
    "paddleocr_vl": TinyType(
        "PaddleOCRVLProcessor",
        "PaddleOCRVLImageProcessorPil",
        _area(14),
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        ERNIE,
        {
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "vision_start_token": "<|IMAGE_START|>",
            "vision_end_token": "<|IMAGE_END|>",
        },
        config={"text_config": {"rope_parameters": _MROPE}},
    ),
    "video_llama_3": TinyType(
        "VideoLlama3Processor",
        "VideoLlama3ImageProcessorPil",
        _area(14) | {"merge_size": 1},
        "<image>",
        CHATML,
        {"image_token": "<image>", "video_token": "<video>"},
    ),
    "cohere_compass": TinyType(
        "CohereCompassProcessor",
        "CohereCompassImageProcessorPil",
        _area(16),
        "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
        COHERE,
        {
            "image_token": "<|IMAGE_PAD|>",
            "video_token": "<|VIDEO_PAD|>",
            "vision_start_token": "<|VISION_START|>",
            "vision_end_token": "<|VISION_END|>",
        },
        config={
            "text_config": {"rope_parameters": {"full_attention": _MROPE}},
            "vision_config": {"patch_size": 16},
        },
    ),
    "cosmos3_edge": TinyType(
        "Cosmos3EdgeProcessor",
        "Cosmos3EdgeImageProcessorPil",
        _area(16),
        _QWEN_IMAGE,
        CHATML,
        _QWEN_TOKENS,
        config={
            "text_config": {"rope_parameters": _MROPE},
            "vision_config": {"patch_size": 16, "num_patches": 16},
        },
    ),
    "hunyuan_vl": TinyType(
        "HunYuanVLProcessor",
        "HunYuanVLImageProcessorPil",
        _area(16),
        "<|image_start|><|image|><|image_end|>",
        HUNYUAN,
        {
            "image_token": "<|image|>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
        },
        config={
            "text_config": {"head_dim": 8, "rope_parameters": _MROPE},
            "vision_config": {"patch_size": 16, "max_image_size": 64, "img_max_token_num": 16},
        },
    ),
}
