"""Tables with columns of any name, read by a mapping."""

from __future__ import annotations

from medrm.errors import ConfigError
from medrm.exchange.imported import Imported, Opened


def is_sheet(opened: Opened) -> bool:
    """Returns whether a file holds a table."""
    return bool(opened.columns)


def read_sheet(opened: Opened) -> Imported:
    """Returns the lines of a table.

    Raises:
        ConfigError: there is no mapping.
    """
    raise ConfigError(f"{opened.path} needs a mapping.")
