"""Files that medrm ships, and those it writes: complete or not at all, and whether one was changed.

Also whether a value read from JSON is of an annotated type.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from medrm.errors import ConfigError

PHANTOM_BASE = "phantom-base"
"""The name of the base model shipped in the wheel, accepted wherever a model is."""

PEFT_CONFIG = "adapter_config.json"
"""PEFT's settings of a LoRA adapter, by which a folder holds one."""

_PACKAGE = Path(__file__).resolve().parent

PARTIAL = ".partial"
"""The suffix of a file that is being written; a process that was killed may leave one."""

DRAFT = "draft-"
"""How the name of a folder begins that is being written, or removed."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in the error of a full disk, which does not say so itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomically(path: Path, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Writes a file, which appears only when it is complete; several processes may write the same.

    Args:
        path: of the file.
        chunks: its content.
        durable: whether what has appeared outlives a loss of power, which takes some ms.

    Raises:
        OSError: it cannot be written; the error names the file, and nothing of it is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with naming(path), partial.open("wb") as file:
            file.writelines(chunks)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Has the disk keep a file's content, or a folder's entries, before anything further is done.

    Windows has no way to do so for a folder, nor have some network file systems.
    """
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(folder: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yields a draft to fill; as `folder` it appears complete or not at all.

    Several processes may make the same one at once: that of the first stays.

    Args:
        folder: to make.
        mode: of the folder, less what the umask takes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DRAFT) as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir(mode)
        yield draft
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    sync(folder.parent)


def replace_folder(draft: Path, folder: Path) -> None:
    """Puts a complete folder in the place of another, or of none, on the same file system."""
    discard(folder)
    draft.rename(folder)
    sync(folder.parent)


def discard(folder: Path) -> None:
    """Removes a folder so that no part of it is ever taken for the whole; nothing where none is."""
    if not folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DRAFT) as scratch:
        folder.rename(Path(scratch) / folder.name)
        sync(folder.parent)


def remove_drafts(folder: Path) -> None:
    """Removes what a killed process has left of folders that it was writing or removing.

    Call it while no other process writes into the folder.
    """
    for draft in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def fill_cache_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes a folder appear complete or not at all; `fill` fills the draft that it is given.

    Raises:
        ConfigError: the cache cannot be written.
    """
    with ExitStack() as stack:
        with _unwritable_refused(folder.parent):
            # The owner's alone, for it holds what cases say.
            draft = stack.enter_context(atomic_folder(folder, mode=0o700))
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


def status_of(path: str | Path) -> list[int]:
    """Returns what differs when a file is written again; nothing where there is none.

    The numbers are size in bytes, and the times in ns of the latest change of the content and of
    the file's entry; the last one `cp -p` or `touch` cannot set back.
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def fits(value: object, hint: Any) -> bool:
    """Returns whether a value read from JSON or YAML is of an annotated type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, UnionType):
        return any(fits(value, alternative) for alternative in arguments)
    if origin in (tuple, list):
        return isinstance(value, list) and all(fits(element, arguments[0]) for element in value)
    if origin in (Mapping, dict):
        return isinstance(value, dict) and all(
            fits(key, arguments[0]) and fits(value[key], arguments[1]) for key in value
        )
    if isinstance(value, bool) or hint is Any:
        return hint in (bool, Any)
    return isinstance(value, (int, float) if hint is float else hint)


def asset(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as `data/phantom/dataset.yaml`.

    In a checkout that is the file itself, in an installed wheel its copy under `medrm/_builtin`.

    Raises:
        ConfigError: nothing of that name is shipped.
    """
    candidates = (_PACKAGE.parent / relative, _PACKAGE / "_builtin" / relative)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ConfigError(f"{relative!r} is not shipped with medrm; looked at {candidates[0]}.")


def asset_names(folder: str, pattern: str) -> list[str]:
    """Returns the sorted names (without suffix) of the shipped entries of `folder`."""
    return sorted(path.stem for path in asset(folder).glob(pattern))


def cache_dir() -> Path:
    """Returns the folder for generated data: `$MEDRM_CACHE`, else `~/.cache/medrm`."""
    return Path(os.environ.get("MEDRM_CACHE") or Path.home() / ".cache" / "medrm")
