"""How a program of medrm starts and ends: its log, its signals, its messages and exit statuses."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

from medrm.errors import Stopped, printable
from medrm.failures import failure_of
from medrm.pipeline.stop_signals import handled


def quiet_libraries() -> None:
    """Sets up the log, and keeps other libraries from printing what no user can act on.

    Of several processes the first says what is under way, and the first of each machine warns: the
    others would warn of the same once more. What fails in them ends the run and is told.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Of metadata that Pillow cannot read; what is seen in an image does not depend on them.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    # tqdm's bars, such as of weights that are loaded: a terminal alone shows them, and keeps none.
    os.environ.setdefault("TQDM_LEAVE", "")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    if os.environ.get("LOCAL_RANK", "0") != "0":
        level = logging.ERROR
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("bitsandbytes", "httpx2", "huggingface_hub", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
        # DeepSpeed sets its level anew when it is imported; a filter stays.
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


class _PrintableFormatter(logging.Formatter):
    """Keeps control characters of data out of the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line to print."""
        return printable(super().format(record))


def guarded(action: Callable[[], int | None]) -> int:
    """Runs `action` and returns the exit status: 0 done, 2 the input is wrong, 143 or 130 stopped.

    A path that may not be used counts as wrong input. What `failures.failure_of` knows, such as a
    full disk, is told without a traceback, with status 1; anything else that fails keeps its
    traceback and ends with status 1. An action that returns a number has said its status itself.
    """
    quiet_libraries()
    threading.excepthook = _quiet_thread
    try:
        with handled():
            status = action()
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":  # all processes end
            sys.stderr.write(f"{stop}\n")
        return stop.status
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130  # as of a process that SIGINT ended
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        _say(failure.message)
        return failure.status
    return status or 0


def _quiet_thread(failed: threading.ExceptHookArgs) -> None:
    """Leaves what `failure_of` knows to the main thread, which meets it as well (TensorBoard)."""
    if not isinstance(failed.exc_value, Exception) or failure_of(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _say(problem: str) -> None:
    rank = os.environ.get("RANK", "0")
    process_suffix = "" if rank == "0" else f" (process {rank})"
    with suppress(OSError):  # the log may lie on the disk that is full
        sys.stderr.write(f"Error{process_suffix}: {printable(problem)}\n")
