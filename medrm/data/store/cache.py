"""Files and folders of the cache, which several processes may make at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medrm.errors import ConfigError
from medrm.files import atomic_folder, write_atomically


def fill_cache_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes a folder appear complete or not at all; `fill` fills the draft that it is given.

    Raises:
        ConfigError: the cache cannot be written.
    """
    with ExitStack() as stack:
        with _unwritable_refused(folder.parent):
            draft = stack.enter_context(atomic_folder(folder))
        fill(draft)


def write_cache_file(path: Path, data: bytes) -> None:
    """Makes a file appear complete or not at all.

    Raises:
        ConfigError: the cache cannot be written.
    """
    with _unwritable_refused(path.parent):
        write_atomically(path, [data])


@contextmanager
def _unwritable_refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The cache folder {folder} cannot be written ({error.strerror}); sets are indexed "
            "there. Set MEDRM_CACHE to a folder with room that can be written."
        ) from error
