"""Where the parts of a model lie, asked of the model itself through transformers' own interfaces.

The model is built from its config on the meta device: without weights, in a fraction of a second.

    model (stock class)              `AutoModelForImageTextToText`, else `AutoModelForCausalLM`
      |- backbone                    `base_model`: gives the states after the final norm
      |    |- vision                 `get_encoder(modality="image")`, else made of the vision config
      |    |- connectors             what else has weights: projector, merger, audio tower, ...
      |    `- decoder                `get_decoder()`, down to the module whose output is normed
      `- lm_head                     `get_output_embeddings()`
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights
from transformers.integrations import deepspeed
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from medrm.errors import ConfigError, first_line

_VISION_WORDS = ("vision", "image", "visual")


@dataclass(frozen=True, slots=True)
class Parts:
    """Module paths in the stock model; a part that may be lacking is None.

    Attributes:
        decoder: the language model, whose output is the state after the final norm.
        embeddings: of the tokens.
        backbone: what returns those states without running the LM head; None: the model as a whole
            alone takes images.
        lm_head: what turns states into logits.
        vision: the vision tower.
        connectors: what else has weights, such as the projector, each by its outermost module.
        takes_images: whether there is a tower, or another way for pixels into the decoder.
        decoder_class: name of the decoder's class, for messages.
        causal: whether tokens of text see what stands before them alone.
        stateful: whether the decoder carries a state from token to token beside keys and values.
        attention_interface: whether the decoder's attention is looked up in transformers' registry.
        eager_sections: sections of the config whose models know no sdpa, "" for the whole.
        multi_axis_positions: whether an image's tokens have positions in several axes (M-RoPE).
    """

    decoder: str
    embeddings: str
    backbone: str | None
    lm_head: str | None
    vision: str | None
    connectors: tuple[str, ...]
    takes_images: bool
    decoder_class: str
    causal: bool
    stateful: bool
    attention_interface: bool
    eager_sections: tuple[str, ...]
    multi_axis_positions: bool


def auto_class(config: PreTrainedConfig) -> Any:
    """Returns the auto class of transformers that makes the model.

    A class of the checkpoint's own code counts where its config is of such a class, too: then the
    code was trusted. A config of a stock class keeps `auto_map` even where it was not.

    Raises:
        ConfigError: it knows no model of that type which reads images and text, or text.
    """
    auto_classes: tuple[Any, ...] = (AutoModelForImageTextToText, AutoModelForCausalLM)
    for auto in auto_classes:
        if type(config) in auto._model_mapping:
            return auto
    is_trusted = type(config).__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
    remote = (getattr(config, "auto_map", None) or {}) if is_trusted else {}
    for auto in auto_classes:
        if auto.__name__ in remote:
            return auto
    raise ConfigError(
        f"The base model's model_type {config.model_type!r} cannot be used: neither "
        "AutoModelForImageTextToText nor AutoModelForCausalLM of the installed transformers makes "
        "a model of it. Give a model that reads images and text, or text, and writes text; for a "
        "newer architecture install a newer transformers."
    )


@contextmanager
def unpartitioned_weights() -> Iterator[None]:
    """Keeps transformers from splitting weights over processes while a model is made or read.

    With ZeRO-3 on, a model on the meta device cannot be made, and `from_pretrained` leaves empty
    parameters that only a DeepSpeed engine can run; the image check, the scores before training and
    the head's initial weights come before the engine, which splits the model itself when the
    trainer makes it.
    """
    switch: Any = deepspeed
    reference = switch._hf_deepspeed_config_weak_ref
    settings = reference() if reference is not None else None
    switch.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            switch.set_hf_deepspeed_config(settings)


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns the stock model on the meta device: modules and shapes, no weights.

    Raises:
        ConfigError: it cannot be built; says why.
    """
    maker = auto_class(config)
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # another may be code from the hub
    if type(config) in maker._model_mapping:
        find_class: Any = _get_model_class
        model_class: Any = find_class(config, maker._model_mapping)
    else:  # code of the checkpoint, which was trusted when its config class was loaded
        reference = cast(Any, config).auto_map[maker.__name__]
        model_class = get_class_from_dynamic_module(
            reference, str(config.name_or_path), revision=getattr(config, "_commit_hash", None)
        )
    try:
        with torch.device("meta"), no_init_weights(), unpartitioned_weights():
            return cast(PreTrainedModel, model_class(config))
    except (ImportError, ValueError, TypeError, AttributeError, LookupError) as error:
        subject = f"A model of the type {config.model_type!r}"
        raise missing_package(subject, error) or ConfigError(
            f"{subject} cannot be built from its config: {type(error).__name__}: "
            f"{first_line(error).rstrip('.')}. Correct config.json."
        ) from error


_PACKAGE = re.compile(r"requires the (\w+) library|Missing optional dependencies: ([\w, ]+)")
"""How transformers names a package that is not there."""


def missing_package(subject: str, error: Exception) -> ConfigError | None:
    """Returns the error that a package is missing, None where transformers raised another.

    Args:
        subject: what needs it, as the message names it.
        error: of transformers.
    """
    named = _PACKAGE.search(str(error))
    if named is None:
        return None
    package = (named[1] or named[2]).lower()
    return ConfigError(
        f"{subject} needs {package}, which is not installed or cannot be imported here, and medrm "
        f"puts nothing else in its place. Install the {package} that fits the installed torch, or "
        "give a model of another type."
    )


def find_parts(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> Parts:
    """Returns the parts of the model that a config describes.

    Args:
        config: of the whole model.
        overrides: fields of `Parts` that are taken as they are.

    Raises:
        ConfigError: a part is not found; says which one and what was looked for.
    """
    text_config = config.get_text_config(decoder=True)
    if any(getattr(section, "is_encoder_decoder", False) for section in (config, text_config)):
        raise _not_found(config, "decoder", "a text encoder reads the prompt (is_encoder_decoder)")
    model = empty_model(config)
    modules = {
        "decoder": _decoder(model),
        "embeddings": _embeddings(model),
        "backbone": None if model.base_model is model else model.base_model,
        "lm_head": _lm_head(model),
        "vision": _vision(model, config),
    }
    for part in modules.keys() & overrides.keys():
        modules[part] = None if overrides[part] is None else model.get_submodule(overrides[part])
    decoder, vision = modules["decoder"], modules["vision"]
    if decoder is None:
        looked_for = "looked for get_decoder() below the model itself"
        raise _not_found(config, "decoder", looked_for)
    if modules["embeddings"] is None:
        raise _not_found(config, "token embedding", "looked for get_input_embeddings()")
    located = [module for part, module in modules.items() if module and part != "backbone"]
    paths = {id(module): name for name, module in model.named_modules()}
    connectors = tuple(sorted(paths[id(rest)] for rest in _others(model, located, decoder)))
    # Some models have no tower: the connectors take pixels as they are.
    pixels, sections = modules["backbone"] or model, _vision_sections(config)
    projects_pixels = hasattr(pixels, "get_image_features") and bool(connectors)
    takes_images = vision is not None or (projects_pixels and (not sections or any(sections)))
    if any(sections) and not takes_images:
        looked_for = "get_encoder(modality='image') and a module made from the vision config"
        raise _not_found(config, "vision tower", f"looked for {looked_for}")
    causal, name = not _reads_backward(decoder), type(decoder).__name__
    if not (causal or takes_images):
        raise _not_found(config, "decoder", f"the attention of {name} is not causal")
    values = {
        **{part: module and paths[id(module)] for part, module in modules.items()},
        "connectors": connectors,
        "takes_images": takes_images,
        "decoder_class": name,
        "causal": causal,
        "stateful": _is_stateful(decoder),
        "attention_interface": bool(getattr(decoder, "_supports_attention_backend", False)),
        "eager_sections": tuple(_eager_sections(model)),
        "multi_axis_positions": hasattr(pixels, "get_rope_index"),
    }
    return Parts(**{**values, **overrides})


def _not_found(config: PreTrainedConfig, part: str, why: str) -> ConfigError:
    return ConfigError(
        f"The {part} of the base model's model_type {config.model_type!r} was not found: {why}. "
        "Give another base model; where the part lies elsewhere, an entry for the type in "
        "FAMILIES in medrm/models/families.py names it."
    )


def _decoder(model: Any) -> nn.Module | None:
    """Returns the innermost decoder: some wrap it once more, with an LM head of its own."""
    decoder: Any = model.get_decoder()
    while decoder is not model:
        wrapped = [decoder.base_model, decoder.get_decoder()] if _is_model(decoder) else []
        if wrapped and decoder.get_output_embeddings() is not None:
            wrapped += filter(_is_model, decoder.children())
        inner = next((module for module in wrapped if module is not decoder), None)
        if inner is None:
            return cast(nn.Module, decoder)
        decoder = inner
    return None


def _is_model(module: Any) -> bool:
    return isinstance(module, PreTrainedModel)


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    """Returns the token embedding, of the model as a whole or of its decoder."""
    for owner in (model, cast(Any, model).get_decoder()):
        try:
            return cast(nn.Module, owner.get_input_embeddings())
        except (NotImplementedError, AttributeError):
            continue
    return None


def _lm_head(model: PreTrainedModel) -> nn.Module | None:
    """Returns the LM head, of the model as a whole or of a language model inside."""
    inside: Iterator[Any] = filter(_is_model, model.modules())
    heads = (part.get_output_embeddings() for part in inside)
    return next((head for head in heads if head is not None), None)


def _vision(model: PreTrainedModel, config: PreTrainedConfig) -> nn.Module | None:
    """Returns the vision tower: where transformers looks, or what was made from its config."""
    tower: Any = model.get_encoder(modality="image")
    if isinstance(tower, nn.Module) and tower not in (model, model.base_model):
        return tower
    sections = [type(section) for section in _vision_sections(config) if section is not None]
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and type(module.config) in sections:
            return module
    return None


def _vision_sections(config: PreTrainedConfig) -> list[Any]:
    names = [name for name in config.sub_configs if any(word in name for word in _VISION_WORDS)]
    return [getattr(config, name, None) for name in names]


def _others(root: nn.Module, located: list[nn.Module], decoder: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost modules with parameters that hold no located part and lie in none."""
    for child in root.children():
        if child in located:
            continue
        if any(part in set(child.modules()) for part in located) and child is not decoder:
            yield from _others(child, located, decoder)
        elif any(True for _ in child.parameters()):
            yield child


def _eager_sections(model: Any) -> Iterator[str]:
    config = model.config
    sections = {id(getattr(config, name, None)): name for name in config.sub_configs}
    lacking = (part for part in filter(_is_model, model.modules()) if not part._supports_sdpa)
    for part in lacking:
        if part.config is config or id(part.config) in sections:
            yield sections.get(id(part.config), "")


def _reads_backward(decoder: nn.Module) -> bool:
    """Returns whether self-attention of the decoder lets tokens see those behind them."""
    flags = {
        name: vars(module)["is_causal"]
        for name, module in decoder.named_modules()
        if "is_causal" in vars(module) and "cross" not in name and "vision" not in name
    }
    return bool(flags) and not any(flags.values())


def _is_stateful(decoder: nn.Module) -> bool:
    if getattr(decoder, "_is_stateful", False):
        return True
    config: Any = getattr(decoder, "config", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    return any("linear" in name or name in ("conv", "mamba", "recurrent") for name in layer_types)
