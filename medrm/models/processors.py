"""Loads processors of base models and adapter folders: the checkpoint's own, never another.

A processor is put together from its parts with the PIL image backend, so that the same image gives
the same pixels on every machine, and with a stand-in for the video part, which would need
torchvision. medrm reads images only. A base that reads text alone has a tokenizer; `TextProcessor`
lets it be called like a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    PreTrainedConfig,
    ProcessorMixin,
    processing_utils,
    video_processing_utils,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import processing_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils.import_utils import is_torchvision_available

from medrm.chat_template import fix_date
from medrm.errors import FOREIGN_ERRORS, ConfigError, first_line, nearest
from medrm.models.base_model import checkpoint_file, load_config, readable, resolve_model
from medrm.models.families import family_of
from medrm.models.prefix_sharing.batch import ImageRows
from medrm.models.processor_files import NAMING_FILES, check_files, read_settings
from medrm.models.template_limits import check_template

# VideoProcessorMixin; BaseVideoProcessor in older versions.
_VIDEO_PROCESSOR = str(processing_utils.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"])
_VideoProcessor: Any = vars(video_processing_utils)[_VIDEO_PROCESSOR]
if not is_torchvision_available():
    # Without torchvision transformers does not export the class, yet ProcessorMixin looks it up
    # under that name, in its own copy of the module, to check the type of a video processor.
    vars(processing_utils.transformers_module)[_VIDEO_PROCESSOR] = _VideoProcessor


class ImagesOnly(_VideoProcessor):  # type: ignore[misc] # its name depends on the version
    """Stands in for a video processor; it only keeps the settings that processors read.

    Data workers get it pickled, by the name of the class that it stands in for.
    """

    merge_size = 2
    temporal_patch_size = 2
    num_frames = 8
    fps = 1
    size: dict[str, int] = {"longest_edge": 28}  # noqa: RUF012 (the base class sets it per object)
    font = ""

    def __getattr__(self, name: str) -> None:
        """Returns None for what no file sets and processors ask of their video part."""
        if name.startswith("_"):
            raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses videos."""
        raise ConfigError("Videos are not supported; give images.")

    def __reduce__(self) -> tuple[Any, ...]:
        return video_stand_in, (type(self).__name__,), vars(self)


def video_stand_in(class_name: str) -> ImagesOnly:
    """Returns a stand-in under the real class's name, which is what is written to the config."""
    stand_in: ImagesOnly = type(class_name, (ImagesOnly,), {"__module__": __name__})()
    return stand_in


class TextProcessor(ProcessorMixin):
    """The processor of a base that reads text alone: its tokenizer, called like a processor.

    Templates of such bases expect a turn's text, not a list of its blocks.
    """

    def __init__(self, tokenizer: Any = None, chat_template: Any = None) -> None:
        start: Any = super().__init__
        start(tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __call__(self, text: Any = None, images: Any = None, **settings: Any) -> Any:
        """Returns the tokens of texts.

        Raises:
            ConfigError: there are images.
        """
        if images is not None:
            raise ConfigError("The base model reads text alone; give cases without images.")
        return self.tokenizer(text, **settings)

    def apply_chat_template(self, conversation: Any, *args: Any, **settings: Any) -> Any:
        """Returns the rendered conversation; the texts of a turn's blocks become one."""
        return super().apply_chat_template(text_turns(conversation), *args, **settings)


def text_turns(conversation: Any) -> list[dict[str, Any]]:
    """Returns a conversation whose turns are texts, not lists of blocks."""
    return [
        {
            **turn,
            "content": turn["content"]
            if isinstance(turn["content"], str)
            else "".join(block.get("text", "") for block in turn["content"]),
        }
        for turn in conversation
    ]


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
        ConfigError: not found, of a class that is not known, or limits given for one without.
    """
    where = resolve_model(name_or_path)
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    limits = {name: value for name, value in pixels.items() if value is not None}
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with readable(f"The processor of {name_or_path!r}"):
        config = _config(where, source)
        processor_class = _processor_class(where, config, source)
        reads_images = "image_processor" in processor_class.get_attributes()
        check_files(where, revision, config, reads_images=reads_images)
        processor = _assembled(where, processor_class, limits, source)
        template = processor.chat_template or processor.tokenizer.chat_template
    if limits and not has_pixel_limits(processor):
        raise ConfigError(
            f"{' and '.join(limits)} cannot be set for {name_or_path!r}: "
            f"{processor_class.__name__} scales every image to its own sizes. Leave the limits out."
        )
    if not template:
        raise ConfigError(
            f"{name_or_path!r} has no chat template, so a conversation cannot be rendered. Give an "
            "instruction-tuned checkpoint, or write chat_template.jinja into the model folder."
        )
    processor.chat_template = template
    check_template(name_or_path, processor)
    fix_date(processor)
    return processor


def _assembled(
    where: str, processor_class: Any, limits: Mapping[str, int], source: Mapping[str, Any]
) -> ProcessorMixin:
    """Returns a processor made of its parts, as the checkpoint has them."""
    settings, _ = processor_class.get_processor_dict(where, revision=source["revision"])
    images: Any = AutoImageProcessor
    features: Any = AutoFeatureExtractor
    loaders: dict[str, Callable[..., Any]] = {
        "image_processor": partial(images.from_pretrained, backend="pil", **limits),
        "tokenizer": AutoTokenizer.from_pretrained,
        "feature_extractor": features.from_pretrained,
    }
    attributes = processor_class.get_attributes()
    components = {
        name: loaders[name](where, **source) for name in attributes if name != "video_processor"
    }
    image_class = type(components.get("image_processor")).__name__
    video_class = _video_class(settings, processor_class.__name__, image_class)
    components["video_processor"] = video_stand_in(video_class)
    processor: ProcessorMixin = processor_class.from_args_and_dict(
        [components[name] for name in attributes], settings
    )
    if "mm_token_type_ids" in processor.model_input_names:
        vars(processor)["return_mm_token_type_ids"] = True
    return processor


def refuse_images(
    pictured: str, name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> None:
    """Refuses a model that reads text alone, before anything of it is loaded.

    Args:
        pictured: which cases have images, as the message names them.
        name_or_path: a base model or an adapter folder.
        revision: of the hub id.
        trust_remote_code: whether code of the checkpoint may run.

    Raises:
        ConfigError: it reads text alone, is not found, or no file says what it is.
    """
    where = resolve_model(name_or_path)
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    with readable(f"The processor of {name_or_path!r}"):
        if _processor_class(where, _config(where, source), source) is TextProcessor:
            raise ConfigError(
                f"{pictured} have images, and the model {name_or_path!r} reads text alone. Give a "
                "model that reads images and text, or cases without images."
            )


def _config(where: str, source: dict[str, Any]) -> PreTrainedConfig | None:
    """Returns the config of a model folder, None of an adapter folder."""
    is_model = checkpoint_file(where, "config.json", source["revision"]) is not None
    return load_config(where, **source) if is_model else None


def _processor_class(where: str, config: PreTrainedConfig | None, source: dict[str, Any]) -> Any:
    """Returns the class that the files name, else the one that transformers has for the config.

    Raises:
        ConfigError: there is none.
    """
    if config is not None and not family_of(config).parts.takes_images:
        return TextProcessor
    unknown = ""
    for name in NAMING_FILES:
        written = read_settings(where, name, source["revision"])
        remote = (written.get("auto_map") or {}).get("AutoProcessor")
        if remote and source["trust_remote_code"]:
            return get_class_from_dynamic_module(remote, where, revision=source["revision"])
        class_name = written.get("processor_class")
        if class_name == TextProcessor.__name__:
            return TextProcessor
        named: Any = class_name and processor_class_from_name(class_name)
        if isinstance(named, type) and issubclass(named, ProcessorMixin):
            return named
        if class_name and not unknown:
            unknown = (
                f"{name} names the processor class {class_name!r}, which the installed "
                f"transformers lacks.{nearest(class_name, _processor_names())} "
            )
    if config is not None and type(config) in PROCESSOR_MAPPING:
        return PROCESSOR_MAPPING[type(config)]
    if config is None and not unknown:
        load_config(where, **source)  # says what is not there
    raise ConfigError(
        f"{unknown or 'No file names the processor class. '}Write the class of the checkpoint as "
        f'"processor_class" into {where}/processor_config.json, or install the transformers that '
        "has it."
    )


def _processor_names() -> list[str]:
    return list(vars(processing_auto)["PROCESSOR_MAPPING_NAMES"].values())


def has_pixel_limits(processor: ProcessorMixin) -> bool:
    """Returns whether images keep their own size within `min_pixels` and `max_pixels`."""
    settings = getattr(getattr(processor, "image_processor", None), "valid_kwargs", None)
    return {"min_pixels", "max_pixels"} <= getattr(settings, "__annotations__", {}).keys()


def _video_class(settings: dict[str, Any], processor: str, image_processor: str) -> str:
    """Returns the class name of a processor's video part, which is written where it is saved.

    Args:
        settings: of the processor, which may name it.
        processor: class name of the processor, after which most are called.
        image_processor: that of its image part, after which the others are.
    """
    saved = (settings.get("video_processor") or {}).get("video_processor_type")
    like_processor = f"{processor.removesuffix('Processor')}VideoProcessor"
    like_images = f"{image_processor.partition('ImageProcessor')[0]}VideoProcessor"
    return str(saved or (like_processor if hasattr(transformers, like_processor) else like_images))


def check_on_blank_image(processor: ProcessorMixin) -> None:
    """Refuses a processor that makes a huge image of a small one, or fails on it.

    Raises:
        ConfigError: it does.
    """
    images: Any = getattr(processor, "image_processor", None)
    if images is None:
        return
    sizes = dict(getattr(images, "size", None) or {})
    most = {name: _MOST_PIXELS.get(name, _LARGEST_EDGE) for name in sizes}
    if has_pixel_limits(processor):  # it calls them edges
        most |= {"shortest_edge": _MOST_PIXELS["min_pixels"]}
        most |= {"longest_edge": _MOST_PIXELS["max_pixels"]}
    odd = [f"{name} {size}" for name, size in sizes.items() if size and size > most[name]]
    steps = ("patch_size", "merge_size", "temporal_patch_size")
    odd += [f"{name} {step}" for name in steps if _is_odd_step(step := getattr(images, name, 1))]
    if odd:
        raise ConfigError(
            f"Images would be prepared with {', '.join(odd)[:200]}. Give the processor's files of "
            "the checkpoint that was trained."
        )
    try:
        image_inputs(processor)
    except (*FOREIGN_ERRORS, TemplateError) as error:
        raise ConfigError(
            f"The processor fails on a blank image: {type(error).__name__}: {first_line(error)} "
            "Give the processor's files of the checkpoint that was trained."
        ) from error


def _is_odd_step(step: Any) -> bool:
    return isinstance(step, int) and not 1 <= step <= _LARGEST_STEP


_LARGEST_EDGE, _LARGEST_STEP = 2**13, 2**10
_MOST_PIXELS = {"min_pixels": 2**24, "max_pixels": 2**30}


def image_rows(processor: ProcessorMixin) -> ImageRows:
    """Returns how a processor's tensors of images lie, asked of it by a row with two images."""
    if "cross_attention_mask" in processor.model_input_names:
        return "apart"
    try:
        batch = _blank_row(processor, images=2)
    except (ValueError, TypeError, KeyError, TemplateError, ConfigError):
        return "flat"  # a row has one image at most
    pixels = batch.get("pixel_values")
    return "nested" if pixels is not None and pixels.ndim > 4 and len(pixels) == 1 else "flat"


def image_inputs(processor: ProcessorMixin) -> frozenset[str]:
    """Returns the names of what a processor gives for an image, and for its tokens."""
    return frozenset(_blank_row(processor, images=1)) - {"input_ids", "attention_mask", "labels"}


def _blank_row(processor: Any, images: int) -> Any:
    """Returns the batch of a question about blank images."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": "?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    blanks = [Image.new("RGB", (112, 112))] * images
    return processor(text=[text], images=[blanks], return_tensors="pt")


def save_processor(processor: ProcessorMixin, folder: Path) -> None:
    """Writes a processor as it would be had nothing been tokenised before.

    A tokenizer's file says how it padded and cut last, which nothing reads that is told each time.
    """
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    processor.save_pretrained(folder)
