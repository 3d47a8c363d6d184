"""Tiny types of the Gemma line: Gemma 3, 3n and 4, PaliGemma."""

from __future__ import annotations

from families.build import TinyType
from families.dialogue import GEMMA, GEMMA4, PALIGEMMA
from families.torchvision_types import TIMM

_SQUARE = {"height": 28, "width": 28}
_GEMMA_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}

GEMMAS: dict[str, TinyType] = {
    "gemma3": TinyType(
        "Gemma3Processor",
        "Gemma3ImageProcessorPil",
        {"size": _SQUARE},
        "<start_of_image>",
        GEMMA,
        _GEMMA_TOKENS,
        config={"vision_config": {"patch_size": 7}, "mm_tokens_per_image": 4},
        parts={"image_seq_length": 4},
        fill=("mm_input_projection_weight",),
    ),
    "gemma3n": TinyType(
        "Gemma3nProcessor",
        "SiglipImageProcessorPil",
        {"size": {"height": 64, "width": 64}},
        "<image_soft_token>",
        GEMMA,
        _GEMMA_TOKENS
        | {
            "audio_token": "<audio_soft_token>",
            "boa_token": "<start_of_audio>",
            "eoa_token": "<end_of_audio>",
        },
        config={
            "text_config": {
                "activation_sparsity_pattern": [0.95, 0.0],
                "num_kv_shared_layers": 0,
                "laurel_rank": 4,
                "hidden_size_per_layer_input": 8,
                "altup_num_inputs": 2,
            },
            "vision_config": TIMM,
            "vision_soft_tokens_per_image": 4,
        },
        parts={"image_seq_length": 4},
        audio=("Gemma3nAudioFeatureExtractor", "gemma3n", {}),
        needs=("torchvision", "timm"),
    ),
    "gemma4": TinyType(
        "Gemma4Processor",
        "Gemma4ImageProcessorPil",
        {"patch_size": 4, "max_soft_tokens": 70},
        "<|image|>",
        GEMMA4,
        {
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        config={
            "vision_config": {"patch_size": 4},
            "text_config": {"hidden_size_per_layer_input": 8},
        },
        audio=("Gemma4AudioFeatureExtractor", "gemma4", {}),
        default={"vision_config": {}},
    ),
    "paligemma": TinyType(
        "PaliGemmaProcessor",
        "SiglipImageProcessorPil",
        {"size": _SQUARE, "image_seq_length": 4},
        "<image>",
        PALIGEMMA,
        {"image_token": "<image>"},
    ),
}
