"""The adapter folder: written, and read back without making anything up.

Nobody knows who wrote what is read. What costs little is checked first: the contract, the settings,
the weights' file, the processor and its template; the base is loaded for what has passed. What is
refused, is refused in bounded time and memory (tests/models/test_hostile_adapters.py).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config.options import ModelOptions
from medrm.errors import FOREIGN_ERRORS, AdapterError, first_line
from medrm.failures import is_out_of_memory, naming
from medrm.files import PEFT_CONFIG, atomic_folder
from medrm.integrity import seal
from medrm.models import adapter_files
from medrm.models.adapter_config import (
    AdapterConfig,
    read_adapter_config,
    template_digest,
    write_adapter_config,
)
from medrm.models.adapter_files import (
    ADAPTER_FILE,
    HEAD_FILE,
    MEDRM_FILE,
    check_settings,
    check_undamaged,
    is_needed,
)
from medrm.models.adapter_tensors import (
    check_finite,
    check_rank,
    check_tensors,
    fill,
    read_tensors,
    tensors_of,
    write_tensors,
)
from medrm.models.base_model import load_base
from medrm.models.base_reference import weights_digest
from medrm.models.families import family_of
from medrm.models.find_base import find_base
from medrm.models.lora_settings import check_targets, read_lora
from medrm.models.processors import check_on_blank_image, load_processor, save_processor
from medrm.models.reward_model import attach_head
from medrm.models.trainable import wrap


def _weights_file(config: AdapterConfig) -> str:
    return ADAPTER_FILE if config.trained == "lora" else HEAD_FILE


def save_adapter(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    config: AdapterConfig,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes everything `load_adapter` needs, as a sealed folder that appears whole.

    Args:
        folder: to make; what lies there is replaced.
        model: the trained model.
        processor: its processor.
        config: from `new_adapter_config`.
        state_dict: the gathered weights where processes hold parts of them (ZeRO-3); call it on
            the main process alone.

    Raises:
        OSError: the folder cannot be written; the error names it.
    """
    with naming(folder), atomic_folder(folder, replace=True) as draft:
        _write_files(draft, model, processor, config, state_dict)
        seal(draft, is_needed)


def _write_files(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    config: AdapterConfig,
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    tensors = tensors_of(model, state_dict)
    if isinstance(model, PeftModel):
        lora = copy.copy(model.peft_config["default"])
        lora.base_model_name_or_path = config.base_model
        lora.revision = config.base_revision
        lora.inference_mode = True
        lora.target_modules = sorted(lora.target_modules)
        lora.save_pretrained(str(folder))
    elif config.trained == "full":
        state = model.state_dict() if state_dict is None else state_dict
        stock = {name: tensor for name, tensor in state.items() if name not in tensors}
        model.save_pretrained(folder, state_dict=stock, max_shard_size=adapter_files.SHARD_SIZE)
    write_tensors(folder / _weights_file(config), tensors, config)
    save_processor(processor, folder)
    write_adapter_config(folder, config)


def _check_template(folder: Path, processor: ProcessorMixin, config: AdapterConfig) -> None:
    saved = folder / "chat_template.jinja"
    # Earlier versions left a template's date as it was, and recorded the template so.
    written = [saved.read_text(encoding="utf-8")] if saved.is_file() else []
    if config.chat_template_digest not in map(template_digest, [processor.chat_template, *written]):
        raise AdapterError(
            f"The chat template in {folder} is not the one that {MEDRM_FILE} records, and other "
            "prompts give other scores. Restore the template, or save the adapter again."
        )


def load_adapter(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    shared_prefix: Literal["on", "off"] = "on",
    base: str | Path | None = None,
    dequantise: bool = False,
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin, AdapterConfig]:
    """Loads a saved model, ready to score; nothing is ever made up for a missing part.

    Args:
        folder: as written by `save_adapter`.
        device: where it goes.
        dtype: precision of the base's weights; None: as trained, which gives the same scores.
        attn_implementation: attention of transformers; None: as trained, which gives the same.
        shared_prefix: as in `ModelOptions`.
        base: where the base lies now, as `find_base` takes it.
        dequantise: as in `load_base`.

    Raises:
        AdapterError: the folder does not match its config, or the base is another one.
        ConfigError: the base model cannot be loaded.
    """
    config = read_adapter_config(folder)
    check_undamaged(folder)
    check_settings(folder)
    lora = read_lora(folder, config) if config.trained == "lora" else None
    tensors = read_tensors(folder / _weights_file(config), config)
    processor = load_processor(str(folder))
    _check_template(folder, processor, config)
    check_on_blank_image(processor)
    options = ModelOptions(
        model_name_or_path=find_base(config, folder, base),
        model_revision=config.base_revision or "main",
        attn_implementation=attn_implementation or config.attn_implementation,
        shared_prefix=shared_prefix,
        load_in_4bit=config.quantisation == "nf4",
        load_in_8bit=config.quantisation == "int8",
    )
    stock = load_base(options, device, dtype or getattr(torch, config.dtype), dequantise=dequantise)
    if family_of(stock.config).name != config.family:
        raise AdapterError(
            f"{MEDRM_FILE} in {folder} records the family {config.family!r}, the base is "
            f"{family_of(stock.config).name!r}. Give the base it was trained on."
        )
    if config.head is not None:
        stock = attach_head(stock, config.head, seed=0)
    model = _filled(stock, lora, tensors, folder / _weights_file(config))
    if config.trained == "full":
        check_finite(folder, stock)
    return model.requires_grad_(False).eval(), processor, config


def _filled(
    model: PreTrainedModel, lora: LoraConfig | None, tensors: Mapping[str, Tensor], path: Path
) -> PreTrainedModel | PeftModel:
    """Returns a model with the weights of the adapter's or the head's file, at `path`.

    Raises:
        AdapterError: the settings or the weights are not for this model.
    """
    if lora is None:
        check_tensors(path, tensors, tensors_of(model))
        model.load_state_dict(tensors, strict=False)
        return model
    check_rank(path, tensors, lora.r)
    adapted = _adapted(model, lora, path.parent)
    check_tensors(path, tensors, tensors_of(adapted))
    fill(adapted, tensors)
    return adapted


def _adapted(model: PreTrainedModel, lora: LoraConfig, folder: Path) -> PeftModel:
    """Returns a model with the layers of saved settings.

    Raises:
        AdapterError: they are not for this model.
    """
    check_targets(model, lora, folder / PEFT_CONFIG)
    try:
        return wrap(model, lora, seed=0)
    except FOREIGN_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise AdapterError(
            f"The settings in {folder / PEFT_CONFIG} do not fit the base: {first_line(error)} "
            "Give the base it was trained on, or save the adapter again."
        ) from error


def saved_identity(folder: Path) -> str:
    """Returns which weights a saved model has: its base, and the digest of what was trained.

    The digest covers the weights and, of a LoRA adapter, by how much they count.

    Raises:
        AdapterError: the folder has no valid config.
    """
    config = read_adapter_config(folder)
    digest = hashlib.sha256(weights_digest(folder).encode())
    if (folder / PEFT_CONFIG).is_file():
        digest.update((folder / PEFT_CONFIG).read_bytes())
    return f"{config.base.identity} + {config.trained} sha256:{digest.hexdigest()}"
