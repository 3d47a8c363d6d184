"""Builds a tiny random model of a type with its own processor, and writes it as a folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from families.dialogue import CHATML, Style
from families.shrink import merged, shrink
from tiny_text import train_tokenizer
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,
    model_type_to_module_name,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from medrm.models.processors import video_stand_in

TOKEN = "token:"
"""What a setting of a config begins with that stands for the id of the token named after it."""


@dataclass(frozen=True)
class TinyType:
    """What a tiny model of a type takes beside its shrunk default config.

    Attributes:
        processor: name of its processor class.
        images: name of its image processor class without torchvision, the empty string where the
            type has none.
        sizes: settings of the image processor.
        image: what the chat template writes for an image.
        style: how conversations are written.
        tokens: special tokens by the names that configs and tokenizers give them.
        special: further special tokens.
        config: changes to the shrunk config; sub-configs are merged into it.
        parts: further settings of the processor.
        module: where processor and image processor are defined, if not in the type's own module.
        images_module: where the image processor is defined, if not with the processor.
        fill: endings of parameters that start at zero and would let no image through.
        audio: class, module and settings of the feature extractor, where the processor has one.
        needs: packages that processor or tower take and that CI does not have.
        default: the config that is shrunk, where the class's own default cannot be made here.
    """

    processor: str
    images: str
    sizes: Mapping[str, Any]
    image: str
    style: Style = CHATML
    tokens: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None
    images_module: str | None = None
    fill: tuple[str, ...] = ()
    audio: tuple[str, str, Mapping[str, Any]] | None = None
    default: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def _class(name: str, module: str) -> Any:
    """Returns a class of transformers by its name, also where the package does not export it."""
    folder = importlib.import_module(f"transformers.models.{module}")
    for file in Path(folder.__path__[0]).glob("*.py"):
        if "modular" not in file.stem and f"class {name}(" in file.read_text(encoding="utf-8"):
            return getattr(importlib.import_module(f"{folder.__name__}.{file.stem}"), name)
    return getattr(hf, name)


def _token_names(config: Mapping[str, Any]) -> set[str]:
    """Returns the names that a config gives to tokens, sub-configs included."""
    names = set()
    for key, setting in config.items():
        if isinstance(setting, Mapping):
            names |= _token_names(setting)
        for ending in ("_token_id", "_token_index"):
            if str(key).endswith(ending):
                names.add(key.removesuffix(ending) + "_token")
    return names - {"bos_token", "eos_token", "pad_token", "sep_token", "mask_token"}


def _id(tokenizer: Any, setting: str) -> int:
    return tokenizer.convert_tokens_to_ids(setting.removeprefix(TOKEN))


def _with_ids(config: Mapping[str, Any], tokenizer: Any, tokens: Mapping[str, str]) -> Any:
    """Returns a config with this tokenizer's ids and number of tokens."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    ids |= {
        f"{name}_token": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    result: dict[str, Any] = {}
    for key, setting in config.items():
        result[key] = setting
        if isinstance(setting, Mapping):
            result[key] = _with_ids(setting, tokenizer, tokens)
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            result[key] = len(tokenizer)
        elif isinstance(setting, list) and setting and str(setting[0]).startswith(TOKEN):
            result[key] = [_id(tokenizer, token) for token in setting]
        elif isinstance(setting, str) and setting.startswith(TOKEN):
            result[key] = _id(tokenizer, setting)
        else:
            for ending in ("_token_id", "_token_index"):
                name = f"{str(key).removesuffix(ending)}_token"
                if str(key).endswith(ending) and (setting is not None or name in tokens):
                    result[key] = ids.get(name, 0)
    return result


def build(model_type: str, tiny: TinyType, seed: int = 0) -> tuple[Any, Any]:
    """Returns a random model of the type in evaluation mode, and its processor."""
    config_class = getattr(hf, CONFIG_MAPPING_NAMES[model_type])
    default = config_class(**tiny.default).to_dict()
    settings = merged(shrink(default), tiny.config)
    tokens = {name: f"<|{name}|>" for name in sorted(_token_names(settings))} | dict(tiny.tokens)
    style = tiny.style
    known = (style.bos, style.eos, style.pad)
    special = [*filter(None, known), *style.special, *tiny.special, *tokens.values()]
    tokenizer = train_tokenizer(
        list(dict.fromkeys(special)),
        style.template(tiny.image),
        eos=style.eos,
        pad=style.pad,
        bos=style.bos,
        named={name: token for name, token in tokens.items() if token not in known},
        vocabulary=len(special) + 300,
    )
    config = config_class.from_dict(_with_ids(settings, tokenizer, tokens))
    module = tiny.module or model_type_to_module_name(model_type)
    processor_class = _class(tiny.processor, module)
    parts: dict[str, Any] = {"tokenizer": tokenizer, **tiny.parts}
    if tiny.images:
        images = _class(tiny.images, tiny.images_module or module)
        parts["image_processor"] = images(**tiny.sizes)
    if tiny.audio:
        name, audio_module, audio_settings = tiny.audio
        parts["feature_extractor"] = _class(name, audio_module)(**audio_settings)
    if "video_processor" in processor_class.get_attributes():
        parts["video_processor"] = video_stand_in(f"{model_type}VideoProcessor")
    processor = processor_class(**parts, chat_template=tokenizer.chat_template)
    model_class = getattr(hf, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if tiny.fill and name.endswith(tiny.fill):
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval(), processor


def save(model_type: str, tiny: TinyType, folder: Path) -> Path:
    """Writes model and processor where anything can load them by path."""
    model, processor = build(model_type, tiny)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
