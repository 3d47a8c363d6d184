"""Which files make an adapter folder, and whether they are as they were saved."""

from __future__ import annotations

from pathlib import Path

from medrm.errors import AdapterError, report
from medrm.integrity import damage, is_sealed

SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model"})
"""Of the files that make a saved model: weights, settings, tokenizer; never pickles or code."""


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
