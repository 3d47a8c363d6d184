"""The files of a checkpoint that make a processor, and what to write where one lacks or is old."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto import image_processing_auto

from medrm.errors import ConfigError, nearest
from medrm.models.base_model import checkpoint_file

NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files of a checkpoint that may name its processor class, in transformers' order."""

_IMAGE_FILES = NAMING_FILES[:2]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def read_settings(where: str, name: str, revision: str) -> dict[str, Any]:
    """Returns what a JSON file of a checkpoint holds, nothing where there is none.

    Raises:
        TypeError: it holds no object.
    """
    file = checkpoint_file(where, name, revision)
    settings = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise TypeError(f"{name} holds {str(settings)[:80]}, no object")
    return settings


def reads_images(folder: Path) -> bool:
    """Returns whether the processor that was saved in a folder has an image part."""
    settings = read_settings(str(folder), _IMAGE_FILES[0], "main")
    return bool(settings.get("image_processor")) or (folder / _IMAGE_FILES[1]).is_file()


def check_files(
    where: str, revision: str, config: PreTrainedConfig | None, reads_images: bool
) -> None:
    """Refuses a checkpoint from which no processor can be made, before transformers tries.

    Args:
        where: a folder or a hub id.
        revision: of the hub id.
        config: of the model; None: of an adapter folder.
        reads_images: whether the processor has an image part.

    Raises:
        ConfigError: names the file, and the value to write where there is one.
    """
    own_code = "auto_map" in read_settings(where, NAMING_FILES[2], revision)
    if not own_code and not any(
        checkpoint_file(where, name, revision) for name in _TOKENIZER_FILES
    ):
        raise ConfigError(
            f"{where} has no tokenizer ({_TOKENIZER_FILES[0]}, or one of "
            f"{', '.join(_TOKENIZER_FILES[1:])}). Copy it from the checkpoint that the weights "
            "come from."
        )
    if reads_images:
        _check_image_settings(where, revision, config)


def _check_image_settings(where: str, revision: str, config: PreTrainedConfig | None) -> None:
    for name in _IMAGE_FILES:
        written = read_settings(where, name, revision)
        if name == _IMAGE_FILES[0]:  # the settings of all parts, in newer checkpoints
            written = written.get("image_processor") or {}
        if written:
            class_name = str(written.get("image_processor_type") or "")
            if class_name and "auto_map" not in written and not _is_known(class_name):
                raise _unknown_image_processor(name, class_name, config)
            return
    raise ConfigError(
        f"{where} says nothing of how images are prepared: it has no {_IMAGE_FILES[1]}, and no "
        f'"image_processor" in {_IMAGE_FILES[0]}. Copy the file from the checkpoint that the '
        "weights come from."
    )


def _is_known(class_name: str) -> bool:
    find = vars(image_processing_auto)["_find_mapping_for_image_processor"]
    return find(class_name.removesuffix("Fast")) is not None


def _unknown_image_processor(
    file: str, class_name: str, config: PreTrainedConfig | None
) -> ConfigError:
    mapping = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    backends = mapping.get(str(getattr(config, "model_type", None))) or {}
    successor = next((name for name in backends.values() if name), None)
    if successor is None:
        names = {name for names in mapping.values() for name in (names or {}).values() if name}
        advice = f"{nearest(class_name, names)} Install the transformers that has it."
    else:
        successor = successor.removesuffix("Pil")
        advice = (
            f" For the type {getattr(config, 'model_type', None)!r} it has {successor!r}: where "
            f'that prepares images in the same way, write "image_processor_type": "{successor}" '
            f"into {file}, else install the transformers that has {class_name!r}."
        )
    return ConfigError(
        f"{file} names the image processor {class_name!r}, which the installed transformers lacks."
        f"{advice}"
    )
