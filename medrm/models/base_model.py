"""Loads base models: safetensors only, no remote code unless asked.

Anyone may have written the files of a checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError, MedrmError, first_line
from medrm.files import PEFT_CONFIG, PHANTOM_BASE, asset
from medrm.models.families import Family, family_of
from medrm.models.model_name import check_model_name, why_absent
from medrm.models.parts import auto_class, empty_model, missing_package, unpartitioned_weights
from medrm.models.prefix_sharing.attention import enable_prefix_sharing
from medrm.models.prefix_sharing.batch import sharing_problem
from medrm.models.prefix_sharing.kv_cache import enable_cached_answers
from medrm.models.vision_tower import deduplicate_images

logger = logging.getLogger(__name__)

_ALWAYS_THERE = ("sdpa", "eager")
"""Attention that needs no package beside torch."""

_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    RecursionError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises over files that are missing, torn or hold what they should not."""


@contextmanager
def readable(subject: str) -> Iterator[None]:
    """Turns what a checkpoint's files make transformers raise into a ConfigError.

    Args:
        subject: what is read, as the message names it.
    """
    try:
        yield
    except MedrmError:
        raise
    except Exception as error:
        # The tokenizers' library raises Exception itself.
        if not isinstance(error, _BROKEN) and type(error) is not Exception:
            raise
        if (missing := missing_package(subject, error)) is not None:
            raise missing from error
        reason = why_absent(error)
        if not isinstance(error, (OSError, ValueError, ImportError)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"{subject} cannot be loaded: {reason}. Give a folder with a whole model "
            "in safetensors, a hub id that is reachable or already in the cache, or "
            f"{PHANTOM_BASE} (while offline, hub ids work only from the cache)."
        ) from error


def checkpoint_file(where: str, name: str, revision: str) -> Path | None:
    """Returns a file of a checkpoint, or None where it has none of that name."""
    path = cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def refuse_other_weights(where: str, config: PreTrainedConfig, revision: str) -> None:
    """Refuses an index of weights that names pickles, or files outside the checkpoint.

    `use_safetensors` says which index is read, not what it names.

    Raises:
        ConfigError: it names one.
    """
    name = vars(config).get("transformers_weights") or SAFE_WEIGHTS_INDEX_NAME
    path = checkpoint_file(where, name, revision) if name.endswith(".json") else None
    if path is None:
        return
    named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    refused = sorted(n for n in named if Path(n).name != n or Path(n).suffix != ".safetensors")
    if refused:
        raise ConfigError(
            f"{path} names {refused[0]!r}; accepted are safetensors files beside it. Pickles can "
            "run code when they are read. Convert the checkpoint to safetensors."
        )


def resolve_model(name: str) -> str:
    """Returns where a base model lies: a folder, or a hub id as given.

    Raises:
        ConfigError: it is no hub id, and nothing lies there.
    """
    if name == PHANTOM_BASE:
        return str(asset(f"recipes/quickstart/{PHANTOM_BASE}"))
    check_model_name(name)
    return name


def load_config(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Returns the config of a base model; cheap, so that a wrong name fails before any weights.

    Raises:
        ConfigError: it cannot be found or read, its weights are quantised, or it is an adapter.
    """
    where = resolve_model(name_or_path)
    is_model = any((Path(where) / name).is_file() for name in ("config.json", PEFT_CONFIG))
    if Path(where).exists() and not is_model:
        lacking = "folder without config.json" if Path(where).is_dir() else "file"
        raise ConfigError(
            f"The base model {name_or_path!r} is a {lacking}. Give a folder with a whole model: "
            "config.json, weights in safetensors, and the files of its processor. Of a saved model "
            "or a mapping file, `medrm merge` writes one, from whose head a training goes on."
        )
    with readable(f"The base model {name_or_path!r}"):
        # transformers would load it silently, on a base that the adapter names.
        if checkpoint_file(where, PEFT_CONFIG, revision) is not None:
            raise ConfigError(
                f"The base model {name_or_path!r} holds an adapter (adapter_config.json). Give the "
                "model that the adapter was trained on, or one into which `medrm merge` put it; "
                "a training starts from the head of that."
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
    if "quantization_config" in vars(config):
        raise ConfigError(
            f"The weights of the base model {name_or_path!r} are quantised. Give the checkpoint "
            "that was not; load_in_4bit and load_in_8bit quantise it while it is loaded."
        )
    return config


def _quantisation(options: ModelOptions, family: Family) -> Any:
    """Returns the bitsandbytes settings, or None.

    The skip list replaces bitsandbytes' own and matches from the start of the module name; all but
    the decoder stays unquantised (Mllama's tower cannot be), as does the LM head.
    """
    if not (options.load_in_4bit or options.load_in_8bit):
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed. "
            "Run `pip install bitsandbytes`, or leave both out."
        ) from error
    parts = family.parts
    skip = [path for path in (parts.lm_head, parts.vision, *parts.connectors) if path]
    settings: Any = transformers.BitsAndBytesConfig
    return settings(
        load_in_4bit=options.load_in_4bit,
        load_in_8bit=options.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skip,
    )


def default_device() -> str:
    """Returns where a model goes if nobody says where."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _usable(device: torch.device | str) -> torch.device:
    """Returns a device.

    Raises:
        ConfigError: torch cannot use it here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used here: {first_line(error).rstrip('.')}. Give "
            "cpu, or cuda where torch sees a GPU."
        ) from error


def _dtype(options: ModelOptions, device: torch.device) -> torch.dtype | str:
    if options.dtype != "auto":
        return torch.float32 if options.dtype == "float32" else torch.bfloat16
    return torch.float32 if device.type == "cpu" else "auto"


class _FixedStatistics:
    """What the swapped class adds to a batch norm: it never leaves evaluation mode."""

    training: bool

    def train(self, mode: bool = True) -> Any:
        """Stays as it is: statistics of the batch would make rewards depend on its composition."""
        self.training = False
        return self


def _fix_statistics(model: PreTrainedModel) -> None:
    """Keeps batch norms (of some vision towers) as they were saved; no adapter holds them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            stock = type(module)
            attributes = {"__module__": stock.__module__}
            module.__class__ = type(stock.__name__, (_FixedStatistics, stock), attributes)


def _fit_to_rewards(config: PreTrainedConfig) -> None:
    """Sets every dropout of the base to zero: noise in a reward drowns small differences.

    The loss by which trainers balance a MoE's experts is left out too, unless asked for: it is for
    routers that learn.
    """
    sections = [getattr(config, name, None) for name in config.sub_configs]
    for section in (config, *filter(None, sections)):
        for name, value in vars(section).items():
            is_noise = "dropout" in name or name == "router_aux_loss_coef"
            if is_noise and isinstance(value, float):
                setattr(section, name, 0.0)


@contextmanager
def _attention(options: ModelOptions) -> Iterator[None]:
    """Explains which attention is available when the requested one is not.

    Raises:
        ConfigError: it is not installed, or would be fetched from the hub as code.
    """
    name = options.attn_implementation
    if "/" in name and not options.trust_remote_code:
        raise ConfigError(
            f"attn_implementation {name!r} is code from the hub. Give "
            f"{' or '.join(_ALWAYS_THERE)}, or set trust_remote_code to run it."
        )
    try:
        yield
    except (ValueError, ImportError) as error:
        if isinstance(error, MedrmError) or name in _ALWAYS_THERE:
            raise
        raise ConfigError(
            f"attn_implementation {name!r} cannot be used here: {first_line(error)} Install what "
            f"it needs, or give {' or '.join(_ALWAYS_THERE)} (for a saved model: medrm.load(..., "
            "attn_implementation='sdpa'))."
        ) from error


def _attention_of(options: ModelOptions, config: PreTrainedConfig) -> str | dict[str, str]:
    """Returns the attention of each part: what knows no sdpa, such as some towers, runs eager."""
    name, eager = options.attn_implementation, family_of(config).parts.eager_sections
    if name != "sdpa" or not eager:
        return name
    return {**dict.fromkeys(("", *config.sub_configs), name), **dict.fromkeys(eager, "eager")}


def load_base(
    options: ModelOptions,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    dequantise: bool = False,
) -> PreTrainedModel:
    """Loads a base model in evaluation mode, without a head.

    Args:
        options: which model, its revision, precision, attention and quantisation.
        device: where it goes.
        dtype: precision of the weights, in place of the options'.
        dequantise: whether weights that the options quantise become plain ones of the same values,
            into which an adapter can be merged.

    Raises:
        ConfigError: not found, without a part that is needed, incomplete, in pickles, the
            attention needs a package that is not installed, or the device is not there.
    """
    device = _usable(device)
    name, revision = options.model_name_or_path, options.model_revision
    config = load_config(name, revision, options.trust_remote_code)
    _fit_to_rewards(config)
    quantisation = _quantisation(options, family_of(config))
    placement = {} if quantisation is None else {"device_map": {"": device}}
    loader = auto_class(config)
    where = resolve_model(name)
    with readable(f"The base model {name!r}"), _attention(options), unpartitioned_weights():
        refuse_other_weights(where, config, revision)
        model, loading_info = loader.from_pretrained(
            where,
            config=config,
            revision=revision,
            trust_remote_code=options.trust_remote_code,
            dtype=dtype or _dtype(options, device),
            attn_implementation=_attention_of(options, config),
            quantization_config=quantisation,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **placement,
        )
    mismatched = [key for key, *_ in loading_info["mismatched_keys"]]
    unfilled = sorted([*loading_info["missing_keys"], *mismatched])
    if unfilled:
        raise ConfigError(
            f"The checkpoint {name!r} does not fill the model: {len(unfilled)} "
            f"weights are missing or of another shape, such as {unfilled[0]}. Give a complete one."
        )
    if quantisation is None:
        model = model.to(device)
    elif dequantise:
        model = model.dequantize()
    return _made_ready(model, options)


def empty_base(options: ModelOptions, dtype: torch.dtype) -> PreTrainedModel:
    """Returns the model that `load_base` would load, on the meta device: shapes, no weights.

    Weights that would be quantised have the precision `dtype`.

    Raises:
        ConfigError: as of `load_base`, as far as the config alone shows it.
    """
    name, revision = options.model_name_or_path, options.model_revision
    config = load_config(name, revision, options.trust_remote_code)
    _fit_to_rewards(config)
    with readable(f"The base model {name!r}"), _attention(options):
        model = empty_model(config).to(dtype)  # type: ignore[arg-type]
        model.tie_weights()
        model.set_attn_implementation(_attention_of(options, config))
    return _made_ready(model, options)


def _made_ready(model: PreTrainedModel, options: ModelOptions) -> PreTrainedModel:
    """Returns a stock model as medrm runs it: fixed, in evaluation mode, prefixes shared."""
    _fix_statistics(model)
    deduplicate_images(model)
    problem = sharing_problem(model.config)
    if options.shared_prefix == "on" and problem is None:
        enable_prefix_sharing(model)
    elif options.shared_prefix == "on":
        enable_cached_answers(model)
        logger.info("the answers of a case run as separate rows: %s", problem)
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]
