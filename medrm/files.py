"""Files that medrm ships, and those it writes: complete or not at all, and whether one was changed.

Also whether a value read from JSON is of an annotated type.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Literal, TextIO, Union, get_args, get_origin

from medrm.errors import ConfigError, refuse, shortened
from medrm.failures import naming, refusal_of

logger = logging.getLogger(__name__)

PHANTOM_BASE = "phantom-base"
"""The name of the base model shipped in the wheel, accepted wherever a model is."""

RUN_FILE = "run.json"
PEFT_CONFIG = "adapter_config.json"
"""PEFT's settings of a LoRA adapter, by which a folder holds one."""

_PACKAGE = Path(__file__).resolve().parent

PARTIAL = ".partial"
"""The suffix of a file that is being written; a process that was killed may leave one."""

DRAFT = ".medrm-draft-"
"""How the name of a folder begins that is being written, or removed."""


@contextmanager
def partial_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields where to write a file, which appears at its path only when it is complete.

    Several processes may write the same one.

    Args:
        path: of the file.
        durable: whether what has appeared outlives a loss of power, which takes some ms.

    Raises:
        OSError: it cannot be written; the error names the file, and nothing of it is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with naming(path):
            yield partial
            if durable:
                sync(partial)
            os.replace(partial, path)
    except BaseException:  # a signal as well
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_atomically(path: Path, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Writes a file of those chunks; see `partial_file`."""
    with partial_file(path, durable=durable) as partial, partial.open("wb") as file:
        file.writelines(chunks)


def write_output(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes where a user asked for it: through links, and into what is no file of its own.

    A link stays and its target is written; a pipe, a terminal or another device takes the bytes as
    they come. See `output_problem` for what is refused.
    """
    with naming(path):
        stream = _opened_stream(path)
        if stream is None:
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, chunks)
            return
        with stream:
            stream.writelines(chunks)


def is_stream(path: Path) -> bool:
    """Returns whether what is written at a path goes somewhere else and cannot be replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or _standard_stream(path) is not None


def _opened_stream(path: Path) -> BinaryIO | None:
    """Returns the open stream at a path; None: there is none, but a file or nothing."""
    standard = _standard_stream(path)
    if standard is not None:
        # Opened anew, a redirected output would start again at the beginning of its file.
        standard.flush()
        return os.fdopen(os.dup(standard.fileno()), "wb")
    return path.open("wb") if is_stream(path) else None


def _standard_stream(path: Path) -> TextIO | None:
    """Returns the standard output or error that a path such as /dev/stdout is."""
    for stream in (sys.stdout, sys.stderr):
        # One that is closed or replaced has no descriptor.
        with suppress(AttributeError, OSError, ValueError):
            if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
    return None


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
def atomic_folder(folder: Path, mode: int = 0o777, *, replace: bool = False) -> Iterator[Path]:
    """Yields a draft to fill; as `folder` it appears complete or not at all.

    Args:
        folder: to make.
        mode: of the folder, less what the umask takes.
        replace: whether it takes the place of one that is there; else several processes may make
            the same one at once, and that of the first stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DRAFT) as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir(mode)
        yield draft
        if replace:
            replace_folder(draft, folder)
            return
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    sync(folder.parent)


@contextmanager
def filled_or_emptied(folder: Path) -> Iterator[None]:
    """Removes what was added to a folder, which may be new, where not all could be written.

    Raises:
        OSError: it cannot be written; the error names a path.
    """
    names = set(os.listdir(folder)) if folder.exists() else None
    try:
        with naming(folder):
            yield
    except BaseException:
        with suppress(OSError):  # what is raised says why there was anything to remove
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink() and path.name not in (names or ()):
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name not in (names or ()):
                    path.unlink()
            if names is None:
                folder.rmdir()
        raise


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


def write_cache_file(path: Path, data: bytes) -> None:
    """Makes a file appear complete or not at all.

    Raises:
        ConfigError: the cache cannot be written.
    """
    with unwritable_refused(path.parent):
        write_atomically(path, [data])


@contextmanager
def unwritable_refused(folder: Path) -> Iterator[None]:
    """Says how to give another folder where that of the cache cannot be written.

    Raises:
        ConfigError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The cache folder {folder} cannot be written ({error.strerror}); sets are indexed "
            "there. Set MEDRM_CACHE to a folder with room that can be written."
        ) from error


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hex; it is read at about 1 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Returns the folder for generated data: `$MEDRM_CACHE`, else `~/.cache/medrm`.

    Where there is no home, or none that can be written, as in many containers, it is a folder in
    `$TMPDIR` that is this user's alone.

    Raises:
        ConfigError: that one is another user's.
    """
    stated = os.environ.get("MEDRM_CACHE")
    if stated:
        return Path(stated).absolute()  # Arrow reads "~" as the home folder
    home = os.path.expanduser("~")  # "~" itself where nobody knows it
    folder = Path(home, ".cache", "medrm")
    usable = os.path.isabs(home) and output_problem(folder, folder=True) is None
    return folder if usable else _temporary_cache(home)


@functools.cache
def _temporary_cache(home: str) -> Path:
    """Makes the cache folder of a user without a home, and says so once."""
    user = os.getuid() if sys.platform != "win32" else 0
    folder = Path(tempfile.gettempdir(), f"medrm-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
        raise ConfigError(
            f"The home folder {home!r} cannot be written and {folder} is another user's, so there "
            "is no place for the cache; set MEDRM_CACHE to a folder that can be written."
        )
    logger.warning(
        "The home folder %r cannot be written: sets are indexed in %s, which may not last. Set "
        "MEDRM_CACHE to a folder that does.",
        home,
        folder,
    )
    return folder


_LONGEST_NAME = 255
"""Bytes of a file's or folder's name."""

_BESIDE = 55
"""Bytes that the name of a file takes beside it while it is written."""


def output_problem(path: str | Path, *, folder: bool) -> str | None:
    """Returns why nothing can be written at a path, and what to do; None: nothing is known.

    Args:
        path: of what is to be written.
        folder: whether that is a folder; else a file.
    """
    text = os.fspath(path)
    try:
        names = os.fsencode(text).split(os.sep.encode())
    except UnicodeEncodeError:
        names = []
    if not names or not text.strip() or "\0" in text:
        return "no file system has such a name; give a path of printable characters"
    longest = _LONGEST_NAME if folder else _LONGEST_NAME - _BESIDE
    if max(map(len, names[:-1]), default=0) > _LONGEST_NAME or len(names[-1]) > longest:
        return f"it has a name of more than {longest} bytes; give a shorter one"
    try:
        return _place_problem(Path(os.path.abspath(text)), folder)
    except OSError as error:
        return f"{error.strerror}; give another path"


def _place_problem(target: Path, folder: bool) -> str | None:
    """Returns what lies in the way of an absolute path; see `output_problem`.

    Raises:
        OSError: it cannot be looked at.
    """
    if not folder:
        if target.is_dir():
            return "it is a folder; give the path of a file"
        if is_stream(target):
            return None
        target = Path(os.path.realpath(target))
        if target.is_symlink():
            return "it is a link that leads back to itself; give the path that was meant"
        if target.exists() and not target.is_file():
            return "it is no plain file, pipe or terminal; give the path of a file"
        target = target.parent
    while not os.path.lexists(target) and target != target.parent:
        target = target.parent
    if target.is_dir():
        denied = f"this user cannot write in {target}; give another path"
        return refusal_of(target) if os.access(target, os.W_OK | os.X_OK) else denied
    way = "leads nowhere" if target.is_symlink() else "is no folder"
    return f"{target} {way}; give another path, or remove what lies there"


def check_outputs(paths: Mapping[str, str | Path | None], *, folders: bool = True) -> None:
    """Refuses paths at which nothing can be written, before any work is done for them.

    Args:
        paths: by the option that gives each; None: not given.
        folders: whether they are folders; else files.

    Raises:
        ConfigError: all of them in one message.
    """
    problems = [
        f"{option} {shortened(os.fspath(path))!r} cannot be written: {problem}."
        for option, path in paths.items()
        if path is not None and (problem := output_problem(path, folder=folders))
    ]
    refuse(problems)
