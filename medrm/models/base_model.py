"""Loads base models and their processors: safetensors only, no remote code unless asked.

Anyone may have written the files of a checkpoint. Processors are put together from their parts with
the PIL image backend, so that the same image gives the same pixels on every machine, and with a
stand-in for the video part, which would need torchvision. medrm reads images only.
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
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    processing_utils,
    video_processing_utils,
)
from transformers.integrations import deepspeed
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_torchvision_available

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError, MedrmError, first_line
from medrm.files import PHANTOM_BASE, asset
from medrm.models.families import Family, family_of, family_of_processor
from medrm.models.prefix_sharing.attention import enable_prefix_sharing
from medrm.models.prefix_sharing.batch import sharing_problem
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
    except _BROKEN as error:
        reason = first_line(error)
        if not isinstance(error, (OSError, ValueError, ImportError)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"{subject} cannot be loaded: {reason.rstrip('.')}. Give a folder with a whole model "
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


# VideoProcessorMixin; BaseVideoProcessor in older versions.
_VIDEO_PROCESSOR = str(processing_utils.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"])
_VideoProcessor: Any = vars(video_processing_utils)[_VIDEO_PROCESSOR]
if not is_torchvision_available():
    # Without torchvision transformers does not export the class, yet ProcessorMixin looks it up
    # under that name, in its own copy of the module, to check the type of a video processor.
    vars(processing_utils.transformers_module)[_VIDEO_PROCESSOR] = _VideoProcessor


class ImagesOnly(_VideoProcessor):  # type: ignore[misc] # its name depends on the version
    """Stands in for a video processor; it only keeps the attributes that processors read.

    Data workers get it pickled, by the name of the class that it stands in for.
    """

    merge_size = 2
    temporal_patch_size = 2
    num_frames = 8
    fps = 1
    size: dict[str, int] = {"longest_edge": 28}  # noqa: RUF012 (the base class sets it per object)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses videos."""
        raise ConfigError("Videos are not supported; give images.")

    def __reduce__(self) -> tuple[Any, ...]:
        return video_stand_in, (type(self).__name__,), vars(self)


def video_stand_in(class_name: str) -> ImagesOnly:
    """Returns a stand-in under the real class's name, which is what is written to the config."""
    stand_in: ImagesOnly = type(class_name, (ImagesOnly,), {"__module__": __name__})()
    return stand_in


def resolve_model(name: str) -> str:
    """Returns where a base model lies: a folder, or a hub id as given.

    Raises:
        ConfigError: it is written as a path, and no such folder exists.
    """
    if name == PHANTOM_BASE:
        return str(asset(f"recipes/quickstart/{PHANTOM_BASE}"))
    if Path(name).is_dir():
        return name
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(
            f"The model folder {name!r} does not exist. Give an existing folder, a hub id such as "
            f"Qwen/Qwen2.5-VL-7B-Instruct, or {PHANTOM_BASE}."
        )
    return name


def load_config(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Returns the config of a base model; cheap, so that a wrong name fails before any weights.

    Raises:
        ConfigError: it cannot be found or read, its weights are quantised, or it is an adapter.
    """
    where = resolve_model(name_or_path)
    with readable(f"The base model {name_or_path!r}"):
        # transformers would load it silently, on a base that the adapter names.
        if checkpoint_file(where, "adapter_config.json", revision) is not None:
            raise ConfigError(
                f"The base model {name_or_path!r} holds an adapter (adapter_config.json). Give the "
                "model that the adapter was trained on, or one into which it is merged."
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

    The skip list replaces bitsandbytes' own and matches from the start of the module name; vision
    tower and projector stay unquantised (Mllama's tower cannot be), as does the LM head.
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
    skip = ["lm_head", family.vision, *([family.projector] if family.projector else [])]
    settings: Any = transformers.BitsAndBytesConfig
    return settings(
        load_in_4bit=options.load_in_4bit,
        load_in_8bit=options.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skip,
    )


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


def _disable_dropout(config: PreTrainedConfig) -> None:
    """Sets every dropout of the base to zero: noise in a reward drowns small differences."""
    for section in (config, *(vars(config)[name] for name in config.sub_configs)):
        for name, value in vars(section).items():
            if "dropout" in name and isinstance(value, float):
                setattr(section, name, 0.0)


@contextmanager
def _unpartitioned_weights() -> Iterator[None]:
    """Keeps transformers from splitting the weights over processes while they are read.

    With ZeRO-3 on, `from_pretrained` leaves empty parameters that only a DeepSpeed engine can run;
    the image check, the scores before training and the head's initial weights come before the
    engine, which splits the model itself when the trainer makes it.
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


def load_base(
    options: ModelOptions, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Loads a base model in evaluation mode, without a head.

    Args:
        options: which model, its revision, precision, attention and quantisation.
        device: where it goes.
        dtype: precision of the weights, in place of the options'.

    Raises:
        ConfigError: not found, of no known family, incomplete, in pickles, the attention needs a
            package that is not installed, or the device is not there.
    """
    device = _usable(device)
    name, revision = options.model_name_or_path, options.model_revision
    config = load_config(name, revision, options.trust_remote_code)
    _disable_dropout(config)
    quantisation = _quantisation(options, family_of(config))
    placement = {} if quantisation is None else {"device_map": {"": device}}
    loader: Any = AutoModelForImageTextToText
    where = resolve_model(name)
    with readable(f"The base model {name!r}"), _attention(options), _unpartitioned_weights():
        refuse_other_weights(where, config, revision)
        model, loading_info = loader.from_pretrained(
            where,
            config=config,
            revision=revision,
            trust_remote_code=options.trust_remote_code,
            dtype=dtype or _dtype(options, device),
            attn_implementation=options.attn_implementation,
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
    model = model if quantisation is not None else model.to(device)
    deduplicate_images(model, family_of(config))
    problem = sharing_problem(model.config)
    if options.shared_prefix == "on" and problem is None:
        enable_prefix_sharing(model)
    elif options.shared_prefix == "on":
        logger.info("the answers of a case run as separate rows: %s", problem)
    return model.eval()  # type: ignore[no-any-return]


def _processor_family(where: str, revision: str, trust_remote_code: bool) -> Family:
    """Returns the family by the processor's own config, else by the model's.

    An adapter folder holds the former only, an older checkpoint on the hub the latter only.
    """
    file = checkpoint_file(where, "processor_config.json", revision)
    settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
    if "processor_class" in settings:
        return family_of_processor(settings["processor_class"])
    return family_of(load_config(where, revision, trust_remote_code))


def load_processor(
    name_or_path: str,
    revision: str = "main",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
) -> ProcessorMixin:
    """Loads the processor of a base model or of an adapter folder.

    Args:
        name_or_path: a folder, a hub id or phantom-base.
        revision: of the hub id.
        min_pixels: fewest pixels an image is scaled to; None: as saved.
        max_pixels: most pixels an image is scaled to; None: as saved.
        trust_remote_code: whether code of the checkpoint may run.

    Raises:
        ConfigError: not found, of no known family, or limits given for a family without.
    """
    where = resolve_model(name_or_path)
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    limits = {name: value for name, value in pixels.items() if value is not None}
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with readable(f"The processor of {name_or_path!r}"):
        family = _processor_family(where, revision, trust_remote_code)
        if limits and not family.pixel_limits:
            raise ConfigError(
                f"{' and '.join(limits)} cannot be set for {name_or_path!r}: {family.name} scales "
                "every image to its own sizes. Leave the limits out."
            )
        cls: Any = getattr(transformers, family.processor)
        settings, _ = cls.get_processor_dict(where, revision=revision)
        images: Any = AutoImageProcessor
        components: dict[str, Any] = {
            "image_processor": images.from_pretrained(where, backend="pil", **limits, **source),
            "tokenizer": AutoTokenizer.from_pretrained(where, **source),
            "video_processor": family.video_processor and video_stand_in(family.video_processor),
        }
        processor: ProcessorMixin = cls.from_args_and_dict(
            [components[name] for name in cls.get_attributes()], settings
        )
    return processor
