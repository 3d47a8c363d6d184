"""One process at a time in a folder: a lock that a crash releases, and who holds it.

The lock is a file in the folder, held with flock(2) and naming its holder. The system releases it
when the process ends, however it ends, so that a file of that name proves nothing: only a held one
does. Who ends in order removes it. Imports no torch.

What holds where: on one host always. Between hosts on NFS (Linux passes flock on to the server as
a lock of the whole file), CephFS, GPFS, and Lustre mounted with `flock`. BeeGFS with its defaults,
NFS mounted with `nolock` or `local_lock`, and Lustre with `localflock` keep apart the processes of
one host alone: there nothing tells a holder that crashed on another host from one that lives, and
the log says whose record was found. Where a file system has no flock, which is warned of, and on
Windows, nothing is locked.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from medrm.errors import ConfigError

RUN_LOCK = "run.lock"
"""The lock of a run folder, which covers all that lies below it."""

EVALUATION_LOCK = "evaluation.lock"

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems without flock say."""

_PATIENCE = 0.5
"""Seconds in which a lock is tried again: a process that only looks holds one for a moment."""

_logger = logging.getLogger(__name__)

_held: dict[Path, int] = {}
"""The lock files that this process holds, and their descriptors."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or held it when it ended without a word.

    Attributes:
        pid: of the process.
        host: that it runs on.
        started: when it took the lock, in UTC.
    """

    pid: int
    host: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


@contextmanager
def hold(folder: Path, name: str, refusal: Callable[[str], str]) -> Iterator[None]:
    """Makes the folder where there is none, and keeps other processes out of it meanwhile.

    Args:
        folder: that is locked.
        name: of the lock file.
        refusal: makes the message of who holds the lock.

    Raises:
        ConfigError: another process is in it; nothing was changed there.
        OSError: the folder cannot be made or written.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / name
    descriptor = _acquire(path, refusal)
    try:
        yield
    finally:
        if descriptor is not None and _held.pop(path, None) is not None:  # not in a fork
            path.unlink(missing_ok=True)  # while it is held: nobody else can hold this file
            os.close(descriptor)
        if is_new:
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def _acquire(path: Path, refusal: Callable[[str], str]) -> int | None:
    """Returns the descriptor of the lock file, now held; None where nothing can be locked."""
    if sys.platform == "win32":
        return None
    import fcntl

    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise ConfigError(refusal(str(holder or "another process"))) from error
            time.sleep(_PATIENCE / 10)
            continue
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            _logger.warning(
                "%s cannot be locked (%s): see to it that no other process writes there.",
                path.parent,
                error.strerror,
            )
            return None
        if _is_file_at(path, descriptor):
            break
        os.close(descriptor)  # its holder has removed it meanwhile
    earlier = _read(descriptor)
    if earlier is not None:
        _logger.info("%s was left by %s, which ended without a word.", path.parent, earlier)
    _write(descriptor)
    _held[path] = descriptor
    return descriptor


def _is_file_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _write(descriptor: int) -> None:
    """Says who holds the lock; on a full disk nobody does, and it is held all the same."""
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = Holder(os.getpid(), socket.gethostname(), started)
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode() + b"\n", 0)


def _read(descriptor: int) -> Holder | None:
    """Returns who the file names; None where it does not say so."""
    with suppress(ValueError, TypeError):
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    return None


def refuse_owned(folder: Path, advice: str, *, below: bool = True) -> None:
    """Refuses to write into a run folder that a run in another process owns.

    Args:
        folder: to write, which need not exist.
        advice: what to do instead, a sentence.
        below: whether a folder below the run folder counts as well.

    Raises:
        ConfigError: names the folder and the process.
    """
    if sys.platform == "win32":
        return
    import fcntl

    resolved = folder.resolve()
    above = resolved.parents if below else ()
    for path in (parent / RUN_LOCK for parent in (resolved, *above)):
        if path in _held or not path.is_file():
            continue
        # Its holder may end, and remove it, at any moment.
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"A run is writing {path.parent} ({_read(file.fileno()) or 'another process'})."
                    f" {advice}"
                ) from error
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise


def _forget_locks() -> None:
    """Lets a forked child go of the locks, which else would hold them beyond its parent's end."""
    while _held:
        os.close(_held.popitem()[1])


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)
