"""Files of the cache, each there whole or not at all, and whether what they came from changed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from medrm.errors import ConfigError


def appear(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes a folder appear whole or not at all, so that several processes may make it at once.

    Raises:
        ConfigError: the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix="draft-")
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    with scratch:
        draft = Path(scratch.name) / folder.name
        draft.mkdir(mode=0o700)  # it holds what cases say
        write(draft)
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all.

    Raises:
        ConfigError: the cache cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="draft-") as scratch:
            draft = Path(scratch) / path.name
            draft.write_bytes(content)
            draft.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def status_of(path: str | Path) -> list[int]:
    """Returns what differs when a file is written again; nothing where there is none.

    The last one is the time of the latest change, which `cp -p` or `touch` cannot set back.
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The cache folder {folder} cannot be written ({error.strerror}); sets are indexed there. "
        "Set MEDRM_CACHE to a folder with room that can be written."
    )
