"""The adapter folder: what is published, and what a reward model needs to load back exactly.

`medrm.json` is the contract. How it (and adapter_config.json) names the base model: origin.py.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config import ModelOptions
from medrm.errors import AdapterError, ConfigError, report
from medrm.models.adapter import wrap
from medrm.models.families import family_of
from medrm.models.fields import check_keys, check_values
from medrm.models.load import load_base, load_processor
from medrm.models.origin import Origin, find, origin_of
from medrm.models.reward_model import HEAD, HeadSpec, attach_head, head_of

CONTRACT_FILE = "medrm.json"
ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
"""The head where there is no adapter file: full fine-tuning and the frozen probe."""


@dataclass(frozen=True, slots=True)
class Contract:
    """What is stored beside the weights; every field is needed to give the same scores again.

    Attributes:
        base_model: phantom-base, a hub id, or a local folder's name.
        base_revision: the hub commit; None for a folder.
        base_digest: SHA-256 of a folder's weights; None for a hub id.
        family: name of the family.
        objective: what trained it.
        readout: how it is scored ("reward").
        trained: "lora", "full" (all weights lie in the folder) or "head" (the head alone).
        head: shape of the head and names of the dimensions in order.
        reward_template: what follows the answer before the score is read.
        chat_template_digest: SHA-256 of the processor's chat template.
        dtype: precision of the base's weights.
        quantisation: "nf4", "int8" or None.
        attn_implementation: attention of transformers.
        pooling: which position the head reads.
        min_pixels: fewest pixels of an image, None: the processor's own.
        max_pixels: most pixels of an image, None: the processor's own.
        max_length: most tokens of a row, None: no limit.
        score_statistics: dimension to mean and std of the scores on the development cases.
        training_data_digest: of the set it was trained on.
        training_pixel_digests: SHA-256 of the decoded pixels of each training image, for leak
            checks.
        versions: library to version.
    """

    base_model: str
    base_revision: str | None
    base_digest: str | None
    family: str
    objective: str
    readout: Literal["reward"]
    trained: Literal["lora", "full", "head"]
    head: HeadSpec
    reward_template: Literal["turn_end", "generation_prompt"]
    chat_template_digest: str
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: str
    quantisation: Literal["nf4", "int8"] | None = None
    pooling: Literal["last_attended"] = "last_attended"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_length: int | None = None
    score_statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    training_data_digest: str | None = None
    training_pixel_digests: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the D dimensions, in the order of the outputs."""
        return self.head.dimensions


def template_digest(processor: ProcessorMixin) -> str:
    """Returns the SHA-256 of the processor's chat template.

    Raises:
        ConfigError: it has none.
    """
    template = processor.chat_template
    if not template:
        raise ConfigError(
            "The processor has no chat template, so a conversation cannot be rendered. Give an "
            "instruction-tuned checkpoint, or add its chat_template.jinja to the model folder."
        )
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def new_contract(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    options: ModelOptions,
    objective: str,
    readout: Literal["reward"],
) -> Contract:
    """Returns the contract of a trained model; `dataclasses.replace` adds statistics and data."""
    origin = origin_of(options)
    others = [p for n, p in model.named_parameters() if not n.startswith(f"{HEAD}.")]
    whole: Literal["full", "head"] = "full" if any(p.requires_grad for p in others) else "head"
    return Contract(
        base_model=origin.name,
        base_revision=origin.revision,
        base_digest=origin.digest,
        family=family_of(model.config).name,
        objective=objective,
        readout=readout,
        trained="lora" if isinstance(model, PeftModel) else whole,
        head=head_of(model).spec,
        reward_template=options.reward_template,
        chat_template_digest=template_digest(processor),
        dtype=cast(Any, str(model.config.dtype).removeprefix("torch.")),
        attn_implementation=options.attn_implementation,
        quantisation=("nf4" if options.load_in_4bit else "int8" if options.load_in_8bit else None),
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        max_length=options.max_length,
        versions={
            library: importlib.metadata.version(library)
            for library in ("medrm", "torch", "transformers", "peft")
        },
    )


def _write_contract(folder: Path, contract: Contract) -> None:
    record = dataclasses.asdict(contract)
    record["dimensions"] = record["head"].pop("dimensions")
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    (folder / CONTRACT_FILE).write_text(text + "\n", encoding="utf-8")


def update_contract(folder: Path, **changes: Any) -> None:
    """Changes fields of the contract in a saved folder, such as the score statistics.

    Raises:
        AdapterError: the folder has no valid contract.
    """
    _write_contract(folder, dataclasses.replace(read_contract(folder), **changes))


def read_contract(folder: Path) -> Contract:
    """Reads `medrm.json`.

    Raises:
        AdapterError: it is missing, is not JSON, or has missing or unknown keys or wrong values.
    """
    path = folder / CONTRACT_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder} is no saved reward model: it has no {CONTRACT_FILE}. Give the adapter "
            "folder of a run, such as RUN/adapter."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["head"]["dimensions"] = record.pop("dimensions")
        head = record["head"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Save the adapter again."
        ) from error
    check_keys(path, record, Contract)
    check_keys(path, head, HeadSpec)
    check_values(path, head, HeadSpec)
    head |= {key: tuple(head[key]) for key in ("dimensions", "tied_dimensions")}
    record = {**record, "head": HeadSpec(**head)}
    check_values(path, record, Contract)
    record["training_pixel_digests"] = tuple(record["training_pixel_digests"])
    return Contract(**record)


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


def _weights_file(contract: Contract) -> str:
    return ADAPTER_FILE if contract.trained == "lora" else HEAD_FILE


def save_adapter(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    contract: Contract,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes everything `load_adapter` needs; `medrm.json` last, so that a torn folder is refused.

    Args:
        folder: made where it does not exist.
        model: the trained model.
        processor: its processor.
        contract: from `new_contract`.
        state_dict: the gathered weights where processes hold parts of them (ZeRO-3); call it on
            the main process alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONTRACT_FILE).unlink(missing_ok=True)
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
    _write_contract(folder, contract)


def _read_tensors(path: Path, contract: Contract) -> dict[str, Tensor]:
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
            f"{path} was saved for the dimensions {dimensions}, {CONTRACT_FILE} names "
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
            report(
                f"{path} does not fit the base model and {CONTRACT_FILE}. Save it again:", problems
            )
        )


def load_adapter(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin, Contract]:
    """Loads a saved reward model, ready to score; nothing is ever made up for a missing part.

    Args:
        folder: as written by `save_adapter`.
        device: where it goes.
        dtype: precision of the base's weights; None: as trained, which gives the same scores.
        attn_implementation: attention of transformers; None: as trained, which gives the same.

    Raises:
        AdapterError: the folder does not match its contract, or the base is another one.
        ConfigError: the base model cannot be loaded.
    """
    contract = read_contract(folder)
    processor = load_processor(str(folder))
    if template_digest(processor) != contract.chat_template_digest:
        raise AdapterError(
            f"The chat template in {folder} is not the one that {CONTRACT_FILE} records, and other "
            "prompts give other scores. Restore the template, or save the adapter again."
        )
    origin = Origin(contract.base_model, contract.base_revision, contract.base_digest)
    options = ModelOptions(
        model_name_or_path=str(folder) if contract.trained == "full" else find(origin, folder),
        model_revision=contract.base_revision or "main",
        attn_implementation=attn_implementation or contract.attn_implementation,
        load_in_4bit=contract.quantisation == "nf4",
        load_in_8bit=contract.quantisation == "int8",
    )
    base = load_base(options, device, dtype or getattr(torch, contract.dtype))
    if family_of(base.config).name != contract.family:
        raise AdapterError(
            f"{CONTRACT_FILE} in {folder} records the family {contract.family!r}, the base is "
            f"{family_of(base.config).name!r}. Give the base it was trained on."
        )
    model: PreTrainedModel | PeftModel = attach_head(base, contract.head, seed=0)
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
