"""How an option is declared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from typing import Any


def option(default: Any, text: str, choices: Collection[str] | None = None) -> Any:
    """Returns a dataclass field with its one description.

    Args:
        default: of the option.
        text: that `--help` shows.
        choices: the accepted values, such as a registry, whose later entries are accepted as well;
            None: those of the annotated type.
    """
    metadata = {"help": text} if choices is None else {"help": text, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
