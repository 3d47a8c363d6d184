"""Which files make a saved model, and whether they are as they were saved.

A saved model is a folder in one of three forms, which `trained` in `medrm.json` names. Each has
`medrm.json` (`adapter_config.py`), the processor's files, and a manifest over all (`integrity.py`):

- lora: `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, the head among
  its tensors (`base_model.model.score.*`);
- full: a plain transformers checkpoint, which any other software loads (`config.json`,
  `model.safetensors` or its shards), and the head, where there is one, as `head.safetensors`
  (`score.*`). All weights lie here, whether they were trained as a whole or an adapter was merged
  into them; the base is named, but not needed;
- head: `head.safetensors` alone, on the frozen base.

Files of weights name the dimensions in their metadata. `adapter.py::save_adapter` writes all three,
`adapter.py::load_adapter` reads them. To write a merged model, give it the stock model with its
head (the adapter merged and unloaded) and the contract with `trained="full"`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RemoteEntryNotFoundError,
)

from medrm.errors import AdapterError, report
from medrm.files import PEFT_CONFIG
from medrm.integrity import MANIFEST, damage, is_sealed, sealed_names
from medrm.models.model_name import check_model_name, why_absent
from medrm.models.strict_json import read_object
from medrm.models.training_images import DIGESTS_FILE

ADAPTER_FILE = "adapter_model.safetensors"

PEFT_PREFIX = "base_model.model."
"""How PEFT begins the name of every tensor of an adapter."""

HEAD_FILE = "head.safetensors"
"""The head where there is no adapter file."""

MEDRM_FILE = "medrm.json"

_MEBIBYTE = 2**20
LARGEST: Mapping[str, int] = {
    # 67 bytes for each training image in what versions before 0.3 wrote
    MEDRM_FILE: 96 * _MEBIBYTE,
    PEFT_CONFIG: 16 * _MEBIBYTE,
    MANIFEST: _MEBIBYTE,
    "chat_template.jinja": _MEBIBYTE,
    "tokenizer.json": 256 * _MEBIBYTE,
    "tokenizer.model": 256 * _MEBIBYTE,
}
"""The most bytes of a file, which is read whole; of others see `_LARGEST_TEXT`."""

_LEADS_OUT = "is a link that leads out of the folder"
_LARGEST_TEXT = 64 * _MEBIBYTE
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""What transformers reads beside them."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tekken.json")
"""Large files that a tokenizer's own library reads, which bounds their depth."""

_MOST_TOKENS = 5_000_000
"""Values in such a file: four times those of the largest that are in use."""

_TEMPLATES = "additional_chat_templates"
"""The one folder within the saved model's that transformers looks into."""

SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model"})
"""Of the files that make a saved model: weights, settings, tokenizer; never pickles or code."""

SHARD_SIZE = "5GB"
"""Most that one file of whole weights holds, as transformers writes it."""


def is_needed(name: str) -> bool:
    """Returns whether a file of an adapter folder is among those that the same scores need.

    The card is not: people edit it before they publish. Nor is what no other machine will have,
    since the hub takes and gives these files alone.
    """
    return "/" not in name and Path(name).suffix in SUFFIXES


def damage_of(folder: Path) -> list[str]:
    """Returns what is wrong with a saved model's files; those before 0.3 do not tell.

    Reading takes about a second for each GB.
    """
    return damage(folder) if is_sealed(folder) else []


def check_plain(folder: Path) -> None:
    """Refuses a saved model whose files are not plain files of some size, before they are opened.

    A pipe would never end, a link could lead to what is not meant to be read. Those of the hub's
    cache are followed, those that the manifest does not name are left alone.

    Raises:
        AdapterError: names the files.
    """
    problems = {
        path.relative_to(folder).as_posix(): problem
        for path in _entries(folder)
        if (problem := _oddity(path, folder)) is not None
    }
    if MANIFEST not in problems:
        with suppress(OSError, ValueError):  # what is wrong with it, `damage` says
            added = problems.keys() - set(sealed_names(folder)) if is_sealed(folder) else set()
            for name in added:
                if problems[name] == _LEADS_OUT:
                    del problems[name]
    if problems:
        title = f"The saved model in {folder} is not read. Copy or download its files again:"
        raise AdapterError(
            report(title, [f"{name} {problem}" for name, problem in problems.items()])
        )


def _entries(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / _TEMPLATES):
        if place.is_dir():
            yield from sorted(place.iterdir())


def _oddity(path: Path, folder: Path) -> str | None:
    """Returns why a file of a saved model is not opened."""
    needed = path.suffix in SUFFIXES
    try:
        status = path.stat()
    except OSError as error:  # a link to nowhere or to itself
        return f"cannot be read ({error.strerror})" if needed else None
    if not stat.S_ISREG(status.st_mode):
        is_other = needed or not stat.S_ISDIR(status.st_mode)
        return "is no plain file" if is_other else None
    if needed and not _is_within(path, folder):
        return _LEADS_OUT
    largest = LARGEST.get(path.name, _LARGEST_TEXT)
    if path.suffix != ".safetensors" and needed and status.st_size > largest:
        return f"has {status.st_size} bytes; accepted are {largest}"
    return None


def _is_within(path: Path, folder: Path) -> bool:
    """Returns whether a file lies in its folder, or in the store of the hub's cache behind it."""
    target, folder = Path(os.path.realpath(path)), folder.resolve()
    stores = [folder]
    if folder.parent.name == "snapshots":
        stores.append(folder.parents[1] / "blobs")
    return any(target.is_relative_to(store) for store in stores)


def check_settings(folder: Path) -> None:
    """Reads the settings in a saved model's folder as transformers will, in bounded memory.

    Raises:
        AdapterError: one is no JSON object, or is nested too deeply, or holds what is no number.
    """
    for name in _SETTINGS:
        if (folder / name).is_file():
            read_object(folder / name, _LARGEST_TEXT)
    for name in _VOCABULARIES:
        if (folder / name).is_file():
            _check_vocabulary(folder / name)


def _check_vocabulary(path: Path) -> None:
    """Raises AdapterError where a tokenizer's file holds more than any vocabulary does."""
    with path.open("rb") as file:
        values = sum(chunk.count(b",") for chunk in iter(lambda: file.read(_MEBIBYTE), b""))
    if values > _MOST_TOKENS:
        raise AdapterError(
            f"{path} holds {values} values; accepted are {_MOST_TOKENS}. Download it again."
        )


def check_undamaged(folder: Path) -> None:
    """Refuses a saved model that is not as it was saved.

    Raises:
        AdapterError: names the files.
    """
    check_plain(folder)
    problems = damage_of(folder)
    if problems:
        title = (
            f"The saved model in {folder} is not as it was saved, and would give other scores. "
            "Copy or download it again, or save it again:"
        )
        raise AdapterError(report(title, problems))


def download(repo: str, revision: str | None, advice: str) -> Path:
    """Returns the local snapshot of a hub repository, saved model or base.

    Args:
        repo: its id.
        revision: branch, tag or commit; None: the main branch.
        advice: what to do where it cannot be had.

    Raises:
        AdapterError: there is no such folder or repository, or the hub cannot be reached.
    """
    patterns = [DIGESTS_FILE, *(f"*{suffix}" for suffix in sorted(SUFFIXES))]
    with _obtainable(repo, advice):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def is_saved_on_hub(repo: str, revision: str | None, advice: str) -> bool:
    """Returns whether a hub repository is a saved model; see `download`.

    Raises:
        AdapterError: there is no such folder or repository, or the hub cannot be reached.
    """
    with _obtainable(repo, advice):
        try:
            hf_hub_download(repo, MEDRM_FILE, revision=revision)
        except RemoteEntryNotFoundError:
            return False
    return True


@contextmanager
def _obtainable(repo: str, advice: str) -> Iterator[None]:
    check_model_name(repo, AdapterError)
    try:
        yield
    except (HFValidationError, EntryNotFoundError, OSError) as error:  # HTTP errors are an OSError
        raise AdapterError(f"{repo!r} cannot be had: {why_absent(error)}. {advice}") from error
