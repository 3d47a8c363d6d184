"""Other people's reward models, read by a mapping file that says which tensors are the head.

    weights: Skywork/Skywork-VL-Reward-7B      a folder (beside the file) or a hub id
    head_file: value_head.safetensors          where the head lies; default: among the weights
    head_weight: v_head.summary.weight         [D, H]
    head_bias: v_head.summary.bias             [D]; default: none
    reward_template: turn_end                  what follows the answer before the reward is read
    dimensions: [overall]                      the names of the D outputs

Whole weights become a frozen base with a head; of a LoRA adapter (`base` says of what) the tensors
are copied. Either is then a saved model in the cache, read as strictly as medrm's own. Nothing but
safetensors is read, and no code of the model runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medrm.chat_template import RewardTemplate
from medrm.config.options import ModelOptions
from medrm.errors import AdapterError, ConfigError, first_line, nearest, refuse, unknown_keys
from medrm.files import (
    PEFT_CONFIG,
    PHANTOM_BASE,
    RUN_FILE,
    atomic_folder,
    cache_dir,
    fits,
    status_of,
)
from medrm.integrity import seal
from medrm.models.adapter_config import AdapterConfig, template_digest, write_adapter_config
from medrm.models.adapter_files import (
    ADAPTER_FILE,
    HEAD_FILE,
    LARGEST,
    PEFT_PREFIX,
    download,
    is_needed,
)
from medrm.models.adapter_tensors import write_tensors
from medrm.models.base_model import empty_base, load_config, resolve_model
from medrm.models.base_reference import BaseReference, commit_of, reference_of, weights_digest
from medrm.models.families import family_of
from medrm.models.processors import load_processor, save_processor
from medrm.models.reward_model import HEAD, HeadSpec
from medrm.models.strict_json import read_object
from medrm.version import __version__

logger = logging.getLogger(__name__)

_LORA = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
_SAVED = "adapter"
_KEPT = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "peft_type")
"""Settings of another's LoRA that are kept."""


@dataclass(frozen=True)
class Mapping:
    """What a mapping file says.

    Attributes:
        weights: folder or hub id of whole weights, or of a LoRA adapter.
        head_weight: name of the head's weight.
        dimensions: names of the outputs.
        head_bias: name of the head's bias.
        head_file: file with the head, beside the weights.
        revision: branch, tag or commit of `weights` on the hub.
        base: of an adapter: folder or hub id.
        base_revision: branch, tag or commit of `base` on the hub.
        reward_template: "turn_end": the answer's turn as the chat template ends it; "end_token": up
            to the token that ends it; "generation_prompt": the model's next turn is opened as well.
        pooling: which position the head reads.
        dtype: precision of the base's weights.
        attn_implementation: attention of transformers.
        min_pixels: fewest pixels of an image, None: the processor's own.
        max_pixels: most pixels of an image, None: the processor's own.
        max_length: most tokens of a row, None: no limit.
        rename: how names of an adapter's tensors begin, and how they begin in today's transformers.
    """

    weights: str
    head_weight: str
    dimensions: list[str]
    head_bias: str | None = None
    head_file: str | None = None
    revision: str | None = None
    base: str | None = None
    base_revision: str | None = None
    reward_template: RewardTemplate = "turn_end"
    pooling: Literal["last_attended"] = "last_attended"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attn_implementation: str = "sdpa"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_length: int | None = None
    rename: dict[str, str] = field(default_factory=dict)


def is_mapping(path: Path) -> bool:
    """Returns whether a path is a mapping file."""
    return path.suffix in (".yaml", ".yml") and path.is_file()


def mapped_folder(path: Path) -> Path:
    """Returns the model that a mapping file describes as a saved model in the cache.

    Raises:
        ConfigError: the file is no mapping, or the base is not found.
        AdapterError: the weights are not what it says.
    """
    mapping = _read_mapping(path)
    weights = _place(mapping.weights, mapping.revision, path)
    is_lora = (weights / PEFT_CONFIG).is_file()
    if is_lora != (mapping.base is not None):
        raise ConfigError(
            f"{path}: {weights} holds "
            + (
                "a LoRA adapter; say of which model (base)."
                if is_lora
                else "no LoRA adapter "
                f"({PEFT_CONFIG}); leave base out, or give the adapter's folder as weights."
            )
        )
    base = str(weights) if mapping.base is None else _beside(mapping.base, path)
    # Another version of medrm may write other contracts.
    written = [__version__, *get_type_hints(AdapterConfig)]
    key = hashlib.sha256(path.read_bytes() + repr(written).encode())
    folders = {weights, Path(resolve_model(base))}
    for file in sorted(f for place in folders for f in place.glob("*.[sj]*") if f.is_file()):
        key.update(f"{file.resolve()} {status_of(file)}".encode())
    folder = cache_dir() / "mapped" / key.hexdigest()[:32]
    if not folder.is_dir():
        _write(folder, mapping, weights, base)
    logger.info("%s is read by %s.", mapping.weights, path)
    return folder / _SAVED


def _write(folder: Path, mapping: Mapping, weights: Path, base: str) -> None:
    """Writes a mapped model as a saved one, in a folder that stands for its run.

    Raises:
        AdapterError: the weights are not what the mapping says.
    """
    head, tensors = _read_head(mapping, weights), dict[str, Tensor]()
    settings: dict[str, Any] | None = None
    if mapping.base is not None:
        tensors = _lora_tensors(mapping, weights)
        settings = _lora_settings(mapping, weights, base, tensors)
    contract, processor = _contract(mapping, weights, base)
    with atomic_folder(folder) as draft:
        # By it `find_base` finds a base that lies elsewhere.
        run = {"config": {"model_name_or_path": base}}
        (draft / RUN_FILE).write_text(json.dumps(run), encoding="utf-8")
        saved = draft / _SAVED
        saved.mkdir()
        prefix = "" if settings is None else PEFT_PREFIX
        tensors |= {f"{prefix}{HEAD}.layers.0.{name}": t for name, t in head.items()}
        write_tensors(saved / (HEAD_FILE if settings is None else ADAPTER_FILE), tensors, contract)
        if settings is not None:
            text = json.dumps(settings, indent=2, sort_keys=True)
            (saved / PEFT_CONFIG).write_text(text, encoding="utf-8")
        save_processor(processor, saved)
        write_adapter_config(saved, contract)
        seal(saved, is_needed)


def _read_mapping(path: Path) -> Mapping:
    """Reads a mapping file.

    Raises:
        ConfigError: no YAML, or wrong keys or values; all of them in one message.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{path} is no mapping; give weights, head_weight and dimensions.")
    hints = get_type_hints(Mapping)
    fields = dataclasses.fields(Mapping)
    problems = unknown_keys(written, hints)
    problems += [
        f"key {each.name!r} is missing"
        for each in fields
        if each.default is each.default_factory and each.name not in written
    ]
    problems += [
        f"{name} is {value!r}; accepted: {hints[name]}"
        for name, value in written.items()
        if name in hints and not fits(value, hints[name])
    ]
    names = written.get("dimensions") or [""]
    if not problems and not (all(names) and len({*names}) == len(names)):
        problems.append("dimensions: give a name for each output, no two the same")
    refuse(problems, f"{path} cannot be read as a mapping.")
    return Mapping(**written)


def _beside(name: str, path: Path) -> str:
    """Returns a folder beside a mapping file by its whole path; another name as it is."""
    folder = path.parent / name
    return str(folder.resolve()) if name != PHANTOM_BASE and folder.is_dir() else name


def _place(name: str, revision: str | None, path: Path) -> Path:
    """Returns the folder with the weights, downloaded where they lie on the hub."""
    where = resolve_model(_beside(name, path))
    if Path(where).is_dir():
        return Path(where)
    return download(where, revision, f"Give as weights in {path} a folder or ORG/NAME.")


def _read_head(mapping: Mapping, weights: Path) -> dict[str, Tensor]:
    """Returns the head's tensors, fp32: weight [D, H] and, where it has one, bias [D].

    Raises:
        AdapterError: they are not there, or of another shape or type.
    """
    named = {"weight": mapping.head_weight, "bias": mapping.head_bias}
    files = sorted(weights.glob("*.safetensors"))
    if mapping.head_file is not None:
        if Path(mapping.head_file).suffix != ".safetensors":
            raise AdapterError(
                f"The head {mapping.head_file!r} is no safetensors file. Pickles (.bin, .pt) can "
                "run code when they are read; convert it where you trust it."
            )
        files = [weights / mapping.head_file]
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    for file in files:
        with _opened(file) as opened:
            names += opened.keys()
            for role, name in named.items():
                if name in opened.keys():  # noqa: SIM118
                    tensors[role] = opened.get_tensor(name)
    for role, name in named.items():
        if name is not None and role not in tensors:
            raise AdapterError(
                f"{weights} holds no tensor {name!r} in {len(files)} safetensors files."
                f"{nearest(name, names)} Files named .bin or .pt are pickles and not read."
            )
    outputs = len(mapping.dimensions)
    weight, bias = tensors["weight"], tensors.get("bias")
    refuse(
        [
            f"{name} is of {tensor.dtype} and shape {list(tensor.shape)}; accepted are finite "
            f"numbers, {shape} for {outputs} dimensions"
            for name, tensor, axes, shape in (
                (mapping.head_weight, weight, 2, "[D, H]"),
                (mapping.head_bias, bias, 1, "[D]"),
            )
            if tensor is not None
            and not (
                tensor.dim() == axes
                and len(tensor) == outputs
                and tensor.is_floating_point()
                and bool(tensor.isfinite().all())
            )
        ],
        f"The head in {weights} does not fit.",
        AdapterError,
    )
    return {role: tensor.float().contiguous() for role, tensor in tensors.items()}


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read: {first_line(error)}") from error


def _lora_tensors(mapping: Mapping, weights: Path) -> dict[str, Tensor]:
    """Returns the tensors of LoRA by their names in today's transformers.

    Raises:
        AdapterError: there are none, or the file holds what is neither LoRA nor the head.
    """
    with _opened(weights / ADAPTER_FILE) as opened:
        head = {mapping.head_weight, mapping.head_bias}
        names = [name for name in opened.keys() if name not in head]  # noqa: SIM118
        foreign = [
            name for name in names if not (name.startswith(PEFT_PREFIX) and name.endswith(_LORA))
        ]
        if foreign or not names:
            raise AdapterError(
                f"{weights / ADAPTER_FILE} holds "
                + (f"{foreign[0]}, neither LoRA" if foreign else "nothing but")
                + " nor the head that the mapping names."
            )
        return {_renamed(name, mapping.rename): opened.get_tensor(name) for name in names}


def _renamed(name: str, rename: dict[str, str]) -> str:
    for prefix, replacement in rename.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _lora_settings(
    mapping: Mapping, weights: Path, base: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Returns adapter_config.json: the layers are those that have tensors, by their whole names.

    Raises:
        AdapterError: the settings cannot be read, or ask for what is not carried over.
    """
    written = read_object(weights / PEFT_CONFIG, LARGEST[PEFT_CONFIG])
    settings = {name: written[name] for name in _KEPT if name in written}
    patterns = [written.get("rank_pattern"), written.get("alpha_pattern")]
    is_lora = written.get("peft_type") == "LORA"
    if not is_lora or any(patterns) or written.get("bias", "none") != "none":
        raise AdapterError(
            f"{weights / PEFT_CONFIG}: only LoRA of one rank and without biases is read by a "
            "mapping. Merge it where it was trained, and map the whole weights."
        )
    modules = {name.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    options = ModelOptions(model_name_or_path=base, model_revision=mapping.base_revision or "main")
    layers = dict(empty_base(options, torch.float32).named_modules())
    if unknown := sorted(modules - layers.keys()):
        raise AdapterError(
            f"{weights / ADAPTER_FILE} adapts {len(unknown)} layers that the base has not, such as "
            f"{unknown[0]!r}.{nearest(unknown[0], layers)} Where an older transformers named them "
            "otherwise, say how the names begin now (rename: {old beginning: new beginning})."
        )
    return {**settings, "target_modules": sorted(modules), "modules_to_save": [HEAD]}


def _contract(mapping: Mapping, weights: Path, base: str) -> tuple[AdapterConfig, Any]:
    """Returns the contract of a mapped model, and its processor."""
    config = load_config(base, mapping.base_revision or "main")
    if mapping.base is None:
        commit = commit_of(weights)
        reference = BaseReference(
            mapping.weights if commit else weights.name, commit, weights_digest(weights)
        )
    else:
        reference = reference_of(
            ModelOptions(model_name_or_path=base, model_revision=mapping.base_revision or "main")
        )
    own_processor = any(weights.glob("*processor_config.json"))
    processor = load_processor(
        str(weights) if own_processor else base,
        "main" if own_processor else mapping.base_revision or "main",
        mapping.min_pixels,
        mapping.max_pixels,
    )
    dimensions = tuple(mapping.dimensions)
    contract = AdapterConfig(
        base_model=reference.name,
        base_revision=reference.revision,
        base_digest=reference.digest,
        family=family_of(config).name,
        objective="another's reward model",
        readout="reward",
        trained="head" if mapping.base is None else "lora",
        dimensions=dimensions,
        head=HeadSpec(dimensions, "linear" if mapping.head_bias is None else "affine"),
        reward_template=mapping.reward_template,
        chat_template_digest=template_digest(processor.chat_template),
        dtype=mapping.dtype,
        attn_implementation=mapping.attn_implementation,
        pooling=mapping.pooling,
        min_pixels=mapping.min_pixels,
        max_pixels=mapping.max_pixels,
        max_length=mapping.max_length,
        versions={"medrm": __version__, "torch": torch.__version__},
    )
    return contract, processor
