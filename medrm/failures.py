"""What a run says when something fails that is neither wrong input nor a bug; imports no torch.

A full disk, a path that may not be used, a data worker that dies and memory that does not suffice
come from many libraries in many classes. They are told apart here, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from medrm.errors import MedrmError, RunFailed, first_line, shortened

INPUT_WRONG, FAILED = 2, 1
"""Exit statuses: the user's input is wrong; anything else."""

GOES_ON = (
    "start the same command again: a run, an evaluation or a score goes on where it was stopped"
)
"""What to do after a failure that is none of the options."""

TOO_LITTLE_FOR_WORKERS = (
    "Mostly the machine's memory, or the shared memory of a container (/dev/shm), is too small for "
    "them. Lower --dataloader_num_workers (0: none), or give the job more memory (docker: "
    f"--shm-size), and {GOES_ON}."
)
"""What to do where processes that load images fail."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk, a quota and a limit on a file's size say when they take no more."""

_UNUSABLE = {
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "Give a path that this user may use."
    ),
    errno.ENOTDIR: "A part of the path is a file; give one whose parts are folders.",
    errno.EEXIST: "Give a path that is free, or remove what lies there.",
    errno.EISDIR: "Give the path of a file.",
    errno.ENAMETOOLONG: "Give a path with shorter names, of at most 255 bytes each.",
    errno.ELOOP: "The link leads back to itself; give the path that was meant.",
}
"""What is said of a path that may not be read or written, and what to do."""

_NUMBERED = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)|\[errno (\d+)\]")
"""How Python, Rust and Arrow write the number of a system's error into a message."""

_NAMED_PATH = re.compile(r"\[Errno \d+\] [^\n]*: '([^'\n]+)'")

_CUT_SHORT = re.compile(
    r"PytorchStreamWriter failed writing|inline_container\.cc|\d+ requested and \d+ written"
    r"|basic_ios::clear: iostream error"
)
"""How torch and numpy say that less was written than was to be; not why."""

_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) (is killed by signal: [\w ]+|exited unexpectedly)"
    r"|bus error encountered in worker"
)

_TOO_MANY_FILES = re.compile(r"Too many open files|received 0 items of ancdata")
"""How Python and torch say that no more files may be opened, which data workers send batches by."""

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Unable to allocate",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch's allocators, numpy and the drivers of GPUs say when memory does not suffice."""

_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Failed|Stopped): ", re.MULTILINE)


class Failure(NamedTuple):
    """What is said of an error, and the exit status."""

    message: str
    status: int


def failure_of(error: Exception) -> Failure | None:
    """Returns what to say of an error without its traceback; None: of a bug, which keeps it."""
    if isinstance(error, MedrmError):
        return Failure(_without_worker(str(error)), INPUT_WRONG)
    if isinstance(error, RunFailed):
        return Failure(_without_worker(str(error)), FAILED)
    for cause in causes(error):
        failure = _out_of_memory(cause) or _worker_died(cause) or _unwritten(cause)
        failure = failure or _worker_silent(cause) or _without_temporary_folder(cause)
        if failure is not None:
            return failure
    return _unusable(error)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory of a device or of the machine did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file or folder in the error of a failed write, whichever library was writing.

    Raises:
        OSError: with the path, in place of what the library raises.
    """
    try:
        yield
    except (MedrmError, RunFailed):
        raise  # it is told already
    except Exception as error:  # that of tokenizers has no class of its own
        number = _number_of(error)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
            raise
        if number is None:
            raise
        raise OSError(number, _said(error, number), _path_of(error) or str(path)) from error


def refusal_of(folder: Path) -> str | None:
    """Returns why a folder takes no file although its mode allows it, as those of /proc do."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno not in _FULL:  # for which there may be room by then
            return f"{folder} takes no file ({error.strerror}); give another path"
    return None


def causes(error: BaseException) -> Iterator[Exception]:
    """Yields an error and those that it was raised from, the outermost first.

    Not those that were being handled when it arose: it may be a bug in what handles them.
    """
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        yield cause
        cause = cause.__cause__


def _number_of(error: Exception) -> int | None:
    """Returns the number of the system's error, from whatever class carries it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    found = _NUMBERED.search(text)
    if found is not None:
        return int(next(filter(None, found.groups())))
    if isinstance(error, (OSError, RuntimeError)) and _CUT_SHORT.search(text):
        return errno.ENOSPC
    return None


def _path_of(error: Exception) -> str | None:
    """Returns the path that an error names, as a field or, from a data worker, in its text."""
    if isinstance(error, OSError) and error.filename:
        return str(error.filename)
    found = _NAMED_PATH.search(str(error))
    return found[1] if found else None


def _said(error: BaseException, number: int) -> str:
    """Returns the system's words, or that only the failure is known."""
    has_number = isinstance(error, OSError) and error.errno is not None
    if has_number or _NUMBERED.search(str(error)):
        return os.strerror(number)
    return "less was written than was to be: no space left, a quota, or a limit on a file's size"


def _unwritten(error: Exception) -> Failure | None:
    number = _number_of(error)
    if number not in _FULL:
        return None
    path = _path_of(error) or "A file"
    return Failure(
        f"{path} could not be written: {_said(error, number)}. Make room there and {GOES_ON}.",
        FAILED,
    )


def _without_temporary_folder(error: Exception) -> Failure | None:
    if not isinstance(error, FileNotFoundError) or "No usable temporary directory" not in str(
        error
    ):
        return None
    return Failure(
        f"{error.strerror}: none of them can be written, mostly because their disk is full. Make "
        f"room there, or set TMPDIR to a folder with room, and {GOES_ON}.",
        FAILED,
    )


def _unusable(error: Exception) -> Failure | None:
    if not isinstance(error, OSError) or error.errno not in _UNUSABLE or not error.filename:
        return None
    path = shortened(str(error.filename))
    return Failure(f"{path}: {error.strerror}. {_UNUSABLE[error.errno]}", INPUT_WRONG)


def _worker_died(error: Exception) -> Failure | None:
    if not isinstance(error, RuntimeError) or not _WORKER_DIED.search(str(error)):
        return None
    return Failure(
        f"A process that loads images died: {first_line(error).rstrip('.')}. "
        f"{TOO_LITTLE_FOR_WORKERS}",
        FAILED,
    )


def _worker_silent(error: Exception) -> Failure | None:
    text = first_line(error)
    if isinstance(error, RuntimeError) and "DataLoader timed out after" in text:
        return Failure(
            f"The processes that load images gave no batch: {text.rstrip('.')}. Look at the disk "
            "that the images lie on; where it is only slow, raise --ddp_timeout (seconds). Then "
            f"{GOES_ON}.",
            FAILED,
        )
    if isinstance(error, (RuntimeError, OSError)) and _TOO_MANY_FILES.search(str(error)):
        return Failure(
            f"Too many files are open: {text.rstrip('.')}. Raise the limit (ulimit -n 65536), or "
            f"lower --dataloader_num_workers (0: none), and {GOES_ON}.",
            FAILED,
        )
    return None


def _out_of_memory(error: Exception) -> Failure | None:
    if not is_out_of_memory(error):
        return None
    # PyTorch goes on with advice for its own developers.
    said = first_line(error).split(" If reserved but unallocated")[0].rstrip(".")
    notes = getattr(error, "__notes__", None) or [
        "Lower --evaluation_batch_rows, or set --gradient_checkpointing true.",
        f"Then {GOES_ON}.",
        "Less is computed at once with a lower --per_device_train_batch_size or "
        "--max_tokens_per_batch, too, and with fewer --max_pixels; a start that would be another "
        "run with them says so and changes nothing.",
    ]
    return Failure("\n".join([f"Out of memory: {said}.", *notes]), FAILED)


def _without_worker(text: str) -> str:
    """Returns an error's message without the traceback that a data worker put before it."""
    if "DataLoader worker process" not in text:
        return text
    starts = [match.end() for match in _LAST_ERROR.finditer(text)]
    return text[starts[-1] :].strip() if starts else text
