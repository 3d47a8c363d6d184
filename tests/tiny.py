"""Tiny random models of all eleven families with real processors, built in code, offline.

`from tiny import make_tiny, save_tiny` in any test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from quick import quick
from tiny_text import GEMMA, chatml, train_tokenizer

# Without torchvision older versions of transformers do not export these.
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from medrm.models.prefix_sharing.attention import enable_prefix_sharing
from medrm.models.processors import video_stand_in

Built = tuple[Any, dict[str, Any]]
"""A model config, and the parts of the processor."""


def _text(tokenizer: Any, hidden: int, **changes: Any) -> dict[str, Any]:
    """Returns the settings of a two-layer language model."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | changes


def _tower(hidden: int, **changes: Any) -> dict[str, Any]:
    """Returns the settings of a two-layer vision tower for images of 28 x 28."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    } | changes


_QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def _qwen(name: str, hidden: int) -> Built:
    tokenizer = train_tokenizer(
        _QWEN_SPECIAL,
        chatml("<|vision_start|><|image_pad|><|vision_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    tokens = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    rope: dict[str, Any] = {
        "rope_type": "default",
        "mrope_section": [hidden // 32, hidden // 32, hidden // 16],
        "rope_theta": 1e6,
    }
    text = _text(tokenizer, hidden, rope_parameters=rope)
    tower: dict[str, Any] = {"depth": 2, "hidden_size": hidden, "num_heads": 2, "patch_size": 14}
    patch = 14
    if name == "qwen2_vl":
        config: Any = hf.Qwen2VLConfig(
            text_config=text, vision_config=tower | {"embed_dim": hidden}, **tokens
        )
    elif name == "qwen2_5_vl":
        tower |= {
            "intermediate_size": 2 * hidden,
            "out_hidden_size": hidden,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
        config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **tokens)
    else:
        patch = 16
        text |= {"head_dim": hidden // 4, "rope_parameters": rope | {"mrope_interleaved": True}}
        del text["bos_token_id"], text["eos_token_id"]
        tower |= {
            "intermediate_size": 2 * hidden,
            "out_hidden_size": hidden,
            "patch_size": patch,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        }
        config = hf.Qwen3VLConfig(text_config=text, vision_config=tower, **tokens)
    unit = 2 * patch
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, min_pixels=unit * unit, max_pixels=4 * unit * unit
    )
    return config, {"image_processor": images, "tokenizer": tokenizer}


def _llava(name: str, hidden: int) -> Built:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = train_tokenizer(special, chatml("<image>\n"), eos="<|im_end|>", pad="<|endoftext|>")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    decoder_type = "qwen2" if name == "llava_onevision" else "llama"
    text = _text(tokenizer, hidden, model_type=decoder_type)
    size = {"height": 28, "width": 28}
    grids = [[28, 56], [56, 28], [56, 56]]
    clip = _tower(
        hidden, model_type="clip_vision_model", num_hidden_layers=3, projection_dim=hidden
    )
    components: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if name == "llava":
        config: Any = hf.LlavaConfig(
            text_config=text, vision_config=clip, image_token_index=image_token, image_seq_length=4
        )
        images: Any = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size)
    elif name == "llava_next":
        config = hf.LlavaNextConfig(
            text_config=text,
            vision_config=clip,
            image_token_index=image_token,
            image_grid_pinpoints=grids,
            image_seq_length=4,
        )
        images = hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size=size, image_grid_pinpoints=grids
        )
    else:
        config = hf.LlavaOnevisionConfig(
            text_config=text,
            vision_config=_tower(hidden, model_type="siglip_vision_model"),
            image_token_index=image_token,
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=grids,
        )
        images = hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grids)
        components = {
            "tokenizer": tokenizer,
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        }
    return config, {"image_processor": images} | components


def _internvl(name: str, hidden: int) -> Built:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()],
        chatml("<IMG_CONTEXT>\n"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )
    config = hf.InternVLConfig(
        text_config=_text(tokenizer, hidden, model_type="qwen2"),
        vision_config=_tower(hidden, image_size=[28, 28], patch_size=[14, 14]),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, min_patches=1, max_patches=2, crop_to_patches=True
    )
    return config, {"image_processor": images, "tokenizer": tokenizer, "image_seq_length": 1}


def _gemma3(name: str, hidden: int) -> Built:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = train_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()],
        GEMMA,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        named=named,
    )
    text = _text(
        tokenizer,
        hidden,
        head_dim=hidden // 4,
        query_pre_attn_scalar=hidden // 4,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=_tower(hidden, patch_size=7),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return config, {"image_processor": images, "tokenizer": tokenizer, "image_seq_length": 4}


def _mllama(name: str, hidden: int) -> Built:
    special = ["<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>"]
    tokenizer = train_tokenizer(
        [*special, "<|im_end|>", "<|python_tag|>"],
        chatml("<|image|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
    )
    # The image token lies behind the vocabulary: the LM head has no row for it.
    tokenizer.add_tokens(["<|image|>"], special_tokens=True)
    text = _text(
        tokenizer,
        hidden,
        vocab_size=len(tokenizer) - 1,
        num_hidden_layers=3,
        cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    tower = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 2,
        "vision_output_dim": 2 * hidden,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    image_token = tokenizer.convert_tokens_to_ids("<|image|>")
    config = hf.MllamaConfig(text_config=text, vision_config=tower, image_token_index=image_token)
    images = hf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    return config, {"image_processor": images, "tokenizer": tokenizer}


def _idefics(name: str, hidden: int) -> Built:
    tiles = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    tokenizer = train_tokenizer(
        [
            "<|endoftext|>",
            "<|im_start|>",
            "<end_of_utterance>",
            "<image>",
            "<fake_token_around_image>",
            "<global-img>",
            "<video>",
            *tiles,
        ],
        chatml("<image>", turn_end="<end_of_utterance>"),
        eos="<end_of_utterance>",
        pad="<|endoftext|>",
        vocabulary=440,
    )
    settings = {
        "text_config": _text(tokenizer, hidden, model_type="llama"),
        "vision_config": _tower(hidden, patch_size=7),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
    }
    sizes = {
        "size": {"longest_edge": 56},
        "max_image_size": {"longest_edge": 28},
        "do_image_splitting": False,
    }
    components: dict[str, Any] = {"tokenizer": tokenizer, "image_seq_len": 4}
    if name == "idefics3":
        return hf.Idefics3Config(**settings), components | {
            "image_processor": Idefics3ImageProcessorPil(**sizes)
        }
    return hf.SmolVLMConfig(**settings), components | {
        "image_processor": SmolVLMImageProcessorPil(**sizes)
    }


_BUILDERS: dict[str, Callable[[str, int], Built]] = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "llava": _llava,
    "llava_next": _llava,
    "llava_onevision": _llava,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "mllama": _mllama,
    "idefics3": _idefics,
    "smolvlm": _idefics,
}
TINY_FAMILIES = tuple(_BUILDERS)
SOME_FAMILIES = quick("qwen2_5_vl", "gemma3", "mllama", of=TINY_FAMILIES)
"""All families; by default a test tries three that differ most."""
PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "llava": "LlavaProcessor",
    "llava_next": "LlavaNextProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
    "internvl": "InternVLProcessor",
    "gemma3": "Gemma3Processor",
    "mllama": "MllamaProcessor",
    "idefics3": "Idefics3Processor",
    "smolvlm": "SmolVLMProcessor",
}
VIDEO_PROCESSORS = {
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
}


def make_tiny(
    family: str, seed: int = 0, hidden: int = 32, *, shared_prefix: bool = True
) -> tuple[Any, Any]:
    """Returns a stock model in evaluation mode, as `load_base` would, and its processor.

    Args:
        family: one of `TINY_FAMILIES`.
        seed: of the weights.
        hidden: hidden size; NF4 quantisation needs 64.
        shared_prefix: whether it reads what the answers of a case share once.
    """
    config, components = _BUILDERS[family](family, hidden)
    processor_class: Any = getattr(hf, PROCESSORS[family])
    if "video_processor" in processor_class.get_attributes():
        components["video_processor"] = video_stand_in(VIDEO_PROCESSORS[family])
    tokenizer = components["tokenizer"]
    processor = processor_class(**components, chat_template=tokenizer.chat_template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config)
        _open(model)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    if shared_prefix:
        enable_prefix_sharing(model)
    return model.eval(), processor


def _open(model: Any) -> None:
    """Fills the weights that start at zero and let no image through (mllama, gemma3)."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attn_gate", "mlp_gate")):
            torch.nn.init.constant_(parameter, 0.5)
        elif name.endswith("mm_input_projection_weight"):
            torch.nn.init.normal_(parameter, std=0.1)


def save_tiny(family: str, folder: Path, seed: int = 0, hidden: int = 32) -> Path:
    """Writes a tiny model and its processor where anything can load them by path."""
    model, processor = make_tiny(family, seed, hidden)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_image(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    """Returns an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
