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

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from medrm.errors import AdapterError, first_line, report
from medrm.integrity import damage, is_sealed
from medrm.models.training_images import DIGESTS_FILE

ADAPTER_FILE = "adapter_model.safetensors"

HEAD_FILE = "head.safetensors"
"""The head where there is no adapter file."""

UNREACHABLE = (HFValidationError, EntryNotFoundError, OSError)
"""What the hub's client raises; its HTTP errors are an OSError."""

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


def check_undamaged(folder: Path) -> None:
    """Refuses a saved model that is not as it was saved.

    Raises:
        AdapterError: names the files.
    """
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
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except UNREACHABLE as error:
        raise AdapterError(
            f"{repo!r} is neither a folder nor a hub repository that can be had: "
            f"{first_line(error)} {advice}"
        ) from error
