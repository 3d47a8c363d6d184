"""The adapter folder: what is published, written and read back without making anything up."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config import ModelOptions
from medrm.errors import AdapterError, report
from medrm.models.adapter import wrap
from medrm.models.adapter_config import (
    MEDRM_FILE,
    AdapterConfig,
    read_adapter_config,
    template_digest,
    write_adapter_config,
)
from medrm.models.base_model import load_base, load_processor
from medrm.models.base_reference import Origin, find
from medrm.models.families import family_of
from medrm.models.reward_model import HEAD, attach_head

ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
"""The head where there is no adapter file: full fine-tuning and the frozen probe."""


def _tensors(
    model: PreTrainedModel | PeftModel, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns what the adapter or head file holds, by its names in the file."""
    if isinstance(model, PeftModel):
        # Otherwise PEFT asks the hub whether the base's vocabulary has grown.
        return dict(
            get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
        )
    state = model.state_dict() if state_dict is None else state_dict
    return {name: tensor for name, tensor in state.items() if name.startswith(f"{HEAD}.")}


def _weights_file(contract: AdapterConfig) -> str:
    return ADAPTER_FILE if contract.trained == "lora" else HEAD_FILE


def save_adapter(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    contract: AdapterConfig,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes everything `load_adapter` needs; `medrm.json` last, so that a torn folder is refused.

    Args:
        folder: made where it does not exist.
        model: the trained model.
        processor: its processor.
        contract: from `new_adapter_config`.
        state_dict: the gathered weights where processes hold parts of them (ZeRO-3); call it on
            the main process alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MEDRM_FILE).unlink(missing_ok=True)
    tensors = _tensors(model, state_dict)
    if isinstance(model, PeftModel):
        config = copy.copy(model.peft_config["default"])
        config.base_model_name_or_path = contract.base_model
        config.revision = contract.base_revision
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))
    elif contract.trained == "full":
        state = model.state_dict() if state_dict is None else state_dict
        stock = {name: tensor for name, tensor in state.items() if name not in tensors}
        model.save_pretrained(folder, state_dict=stock)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        folder / _weights_file(contract),
        # One entry: with two their order, and so the bytes of the file, would vary.
        metadata={"dimensions": json.dumps(contract.dimensions)},
    )
    processor.save_pretrained(folder)
    write_adapter_config(folder, contract)


def _read_tensors(path: Path, contract: AdapterConfig) -> dict[str, Tensor]:
    """Reads the adapter or head file.

    Raises:
        AdapterError: missing, unreadable, or of other dimensions than the contract.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        dimensions = json.loads(metadata.get("dimensions", "null"))
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Save the adapter again.") from error
    if dimensions != list(contract.dimensions):
        raise AdapterError(
            f"{path} was saved for the dimensions {dimensions}, {MEDRM_FILE} names "
            f"{list(contract.dimensions)}. The two files do not belong together; save again."
        )
    return tensors


def _read_lora(folder: Path) -> LoraConfig:
    """Reads adapter_config.json.

    Raises:
        AdapterError: missing or unreadable.
    """
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        # The base is named by the contract; PEFT warns when this name is not the path it sees.
        return LoraConfig.from_peft_type(**{**settings, "base_model_name_or_path": None})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Save the adapter again.") from error


def _check_tensors(path: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises AdapterError unless both hold the same names with the same shapes."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    problems += [f"{name} is not expected" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(given[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(given.keys() & expected.keys())
        if given[name].shape != expected[name].shape
    ]
    if problems:
        raise AdapterError(
            report(f"{path} does not fit the base model and {MEDRM_FILE}. Save it again:", problems)
        )


def load_adapter(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    shared_prefix: Literal["on", "off"] = "on",
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin, AdapterConfig]:
    """Loads a saved model, ready to score; nothing is ever made up for a missing part.

    Args:
        folder: as written by `save_adapter`.
        device: where it goes.
        dtype: precision of the base's weights; None: as trained, which gives the same scores.
        attn_implementation: attention of transformers; None: as trained, which gives the same.
        shared_prefix: as in `ModelOptions`.

    Raises:
        AdapterError: the folder does not match its contract, or the base is another one.
        ConfigError: the base model cannot be loaded.
    """
    contract = read_adapter_config(folder)
    processor = load_processor(str(folder))
    if template_digest(processor) != contract.chat_template_digest:
        raise AdapterError(
            f"The chat template in {folder} is not the one that {MEDRM_FILE} records, and other "
            "prompts give other scores. Restore the template, or save the adapter again."
        )
    origin = Origin(contract.base_model, contract.base_revision, contract.base_digest)
    options = ModelOptions(
        model_name_or_path=str(folder) if contract.trained == "full" else find(origin, folder),
        model_revision=contract.base_revision or "main",
        attn_implementation=attn_implementation or contract.attn_implementation,
        shared_prefix=shared_prefix,
        load_in_4bit=contract.quantisation == "nf4",
        load_in_8bit=contract.quantisation == "int8",
    )
    base = load_base(options, device, dtype or getattr(torch, contract.dtype))
    if family_of(base.config).name != contract.family:
        raise AdapterError(
            f"{MEDRM_FILE} in {folder} records the family {contract.family!r}, the base is "
            f"{family_of(base.config).name!r}. Give the base it was trained on."
        )
    model: PreTrainedModel | PeftModel = base
    if contract.head is not None:
        model = attach_head(base, contract.head, seed=0)
    path = folder / _weights_file(contract)
    tensors = _read_tensors(path, contract)
    if contract.trained == "lora":
        model = wrap(base, _read_lora(folder), seed=0)
        _check_tensors(path, tensors, _tensors(model))
        set_peft_model_state_dict(model, tensors)
    else:
        _check_tensors(path, tensors, _tensors(model))
        model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval(), processor, contract
