"""What trains, and the adapter folder: written, and read back without making anything up.

LoRA trains exactly named linear layers; else all of the language side trains, or the head alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import AdapterError, ConfigError, report
from medrm.failures import naming
from medrm.files import PEFT_CONFIG, atomic_folder
from medrm.integrity import seal
from medrm.models import adapter_files
from medrm.models.adapter_config import (
    MEDRM_FILE,
    AdapterConfig,
    read_adapter_config,
    template_digest,
    write_adapter_config,
)
from medrm.models.adapter_files import ADAPTER_FILE, HEAD_FILE, check_undamaged, is_needed
from medrm.models.base_model import load_base
from medrm.models.base_reference import weights_digest
from medrm.models.families import family_of
from medrm.models.find_base import find_base
from medrm.models.lora_targets import lora_targets
from medrm.models.processors import load_processor, save_processor
from medrm.models.reward_model import HEAD, attach_head, has_head, head_of

logger = logging.getLogger(__name__)


def lora_config(model: PreTrainedModel, options: AdapterOptions) -> LoraConfig:
    """Returns the LoRA settings: `lora_targets`, and the head in full.

    Raises:
        ConfigError: the decoder has no linear layer, or routers cannot be adapted so.
    """
    targets = lora_targets(model)
    if not targets.decoder:
        raise ConfigError(
            f"The decoder of {type(model).__name__} has no linear layer that LoRA could adapt. Set "
            "use_peft false, or give another model."
        )
    if (
        options.lora_routers
        and targets.router_weights
        and (options.lora_dropout or options.use_dora)
    ):
        raise ConfigError(
            f"lora_routers adapts parameters of {type(model).__name__}, which PEFT does without "
            "lora_dropout and use_dora alone. Leave these two out, or lora_routers."
        )
    if targets.packed_experts:
        logger.info(
            "LoRA leaves the experts of %d layers as they are: their weights are one parameter for "
            "all experts, no linear layers. Of other layers %d are left out, whose names PEFT "
            "would take for those of experts.",
            len(targets.packed_experts),
            len(targets.taken_for_experts),
        )
    modules = list(targets.decoder)
    modules += targets.vision if options.lora_vision else ()
    modules += targets.routers if options.lora_routers else ()
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=modules,
        target_parameters=list(targets.router_weights) if options.lora_routers else None,
        modules_to_save=[HEAD] if has_head(model) else None,
    )


class _SecondLoraLayer(nn.Linear):
    """LoRA's layer from rank r to the outputs, whose gradient a CPU computes faster.

    Of the stock layer autograd computes the weight's gradient as [outputs, L] x [L, r], for which
    MKL takes up to ten times as long as for [r, L] x [L, outputs], which it computes here.
    """

    def forward(self, states: Tensor) -> Tensor:  # LoRA has no bias
        """Returns [..., outputs] of [..., r]."""
        return states @ self.weight.t().contiguous()


def wrap(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Puts fresh LoRA layers on a model; everything else but a reward head is frozen.

    A quantised model is prepared the same way for training and for scoring: its norms become
    fp32, and the scores of the two agree bit for bit.

    Args:
        model: a reward model with its head, or a stock model to be a judge.
        config: which layers, which rank.
        seed: of the new weights; the global generator is left as it was.
    """
    if getattr(model, "is_quantized", False):  # bitsandbytes holds the weights
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    if model.device.type == "cpu":
        for name, module in wrapped.named_modules():
            if ".lora_B." in name and type(module) is nn.Linear:
                module.__class__ = _SecondLoraLayer
    return wrapped


def add_adapter_like(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Returns a model with the layers of a saved LoRA adapter, whose weights are fresh.

    Raises:
        AdapterError: the folder has no readable settings of one.
    """
    return wrap(model, _read_lora(folder), seed=0)


def add_adapter(
    model: PreTrainedModel, options: AdapterOptions, seed: int = 0
) -> PreTrainedModel | PeftModel:
    """Makes a model trainable: by LoRA, or as a whole without `use_peft`.

    Full fine-tuning trains all but the vision tower and a reward model's LM head, which is not run.

    Args:
        model: a reward model (`attach_head`), or a stock model to be a judge.
        options: what is trained.
        seed: of the adapter's initial weights.
    """
    if options.use_peft:
        return wrap(model, lora_config(model, options), seed)
    parts = family_of(model.config).parts
    model.requires_grad_(True)
    if parts.vision is not None:
        model.get_submodule(parts.vision).requires_grad_(False)
    if not has_head(model) or parts.lm_head is None:
        return model
    embedding = list(model.get_submodule(parts.embeddings).parameters())
    for parameter in model.get_submodule(parts.lm_head).parameters():
        # Where it shares the embedding's weights, it trains as the embedding.
        parameter.requires_grad_(any(parameter is shared for shared in embedding))
    return model


def freeze_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Freezes everything but the head: the frozen probe, the control for what LoRA adds."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    return model


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
    tensors = _tensors(model, state_dict)
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
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        folder / _weights_file(config),
        # One entry: with two their order, and so the bytes of the file, would vary.
        metadata={"dimensions": json.dumps(config.dimensions)},
    )
    save_processor(processor, folder)
    write_adapter_config(folder, config)


def _read_tensors(path: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """Reads the adapter or head file.

    Raises:
        AdapterError: missing, unreadable, or of other dimensions than the config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        dimensions = json.loads(metadata.get("dimensions", "null"))
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Save the adapter again.") from error
    if dimensions != list(config.dimensions):
        raise AdapterError(
            f"{path} was saved for the dimensions {dimensions}, {MEDRM_FILE} names "
            f"{list(config.dimensions)}. The two files do not belong together; save again."
        )
    return tensors


def _read_lora(folder: Path) -> LoraConfig:
    """Reads adapter_config.json.

    Raises:
        AdapterError: missing or unreadable.
    """
    path = folder / PEFT_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        # The base is named by medrm.json; PEFT warns when this name is not the path it sees.
        return LoraConfig.from_peft_type(**{**settings, "base_model_name_or_path": None})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Save the adapter again.") from error


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raises AdapterError unless both hold the same names with the same shapes."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"{name} is not expected" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(tensors.keys() & expected.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise AdapterError(
            report(f"{path} does not fit the base model and {MEDRM_FILE}. Save it again:", problems)
        )


def _check_template(folder: Path, processor: ProcessorMixin, config: AdapterConfig) -> None:
    saved = folder / "chat_template.jinja"
    # Earlier versions left a template's date as it was, and recorded the template so.
    written = [saved.read_text(encoding="utf-8")] if saved.is_file() else []
    if config.chat_template_digest not in map(template_digest, [processor.chat_template, *written]):
        raise AdapterError(
            f"The chat template in {folder} is not the one that {MEDRM_FILE} records, and other "
            "prompts give other scores. Restore the template, or save the adapter again."
        )


def _fill(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Copies the tensors of an adapter file into a model that has the same names.

    PEFT's own way renames some as if they came from a stock checkpoint (Mistral's shared experts),
    and says nothing of those that then fit nowhere.
    """
    with torch.no_grad():
        for name, parameter in _tensors(model).items():
            parameter.copy_(tensors[name])


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
    processor = load_processor(str(folder))
    _check_template(folder, processor, config)
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
    model: PreTrainedModel | PeftModel = stock
    if config.head is not None:
        model = attach_head(stock, config.head, seed=0)
    path = folder / _weights_file(config)
    tensors = _read_tensors(path, config)
    if config.trained == "lora":
        model = wrap(stock, _read_lora(folder), seed=0)
        _check_tensors(path, tensors, _tensors(model))
        _fill(model, tensors)
    else:
        _check_tensors(path, tensors, _tensors(model))
        model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False).eval(), processor, config


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
