"""Signals that ask to end: a training ends with a checkpoint, most else at once. Imports no torch.

    where it comes     what happens                                       no later than
    in a training      at the step's end all processes agree, write a     a step, its measurement,
                       checkpoint and end                                 a save
    in a service       what it has accepted is answered, and it ends      these answers
    elsewhere          `Stopped` is raised where the main thread stands   `GRACE` seconds
    a second SIGINT    the same, there as well                            `GRACE` seconds

They are SIGTERM, SIGINT, SIGHUP and SIGUSR1, which SLURM is asked to send before a time limit or a
pre-emption. A second SIGINT that a launcher forwards as SIGTERM, as torch's does, means the same. A
launcher that dies counts as SIGTERM: its workers see within `INTERVAL` that they have another
parent. The exit status is 130 after SIGINT, else 143. Ignored as the process starts, SIGHUP (below
nohup) and SIGINT (of a shell's background) stay ignored. Windows keeps its own ways.

Data workers are forked with their parent's handlers and hear what a launcher, a terminal or SLURM
sends to all processes of a group. They leave it to their parent, which ends them, and end with it.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from medrm.errors import Stopped

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)

_MAY_BE_IGNORED = (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT))

GRACE = 5.0
"""Seconds after which a process that is to end at once is ended, whatever it waits for."""

INTERVAL = 1.0
"""Seconds between two looks at whether the parent is still there."""

STARTED_BY = "MEDRM_STARTED_BY"
"""A variable that says that a process of ours started this one, which is not to outlive it."""

_LAUNCHED = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", STARTED_BY)
"""Variables that say that a launcher started this process: torch's, accelerate's, ours."""


@dataclass
class _Signals:
    """What signals have asked of this process.

    Attributes:
        previous: the handlers before ours.
        launcher: the process that started this one and forwards signals to it; None: a shell did.
        wake: where the interpreter writes the numbers of signals, and where they are read.
        asked: the first signal that asked to end; 0: none did.
        postponed: what is said of a signal that waits for the end of what is under way; empty: none
            does.
        ending: `Stopped` was raised, or is about to be.
    """

    previous: dict[int, Any]
    launcher: int | None
    wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    asked: int = 0
    postponed: str = ""
    ending: bool = False

    @property
    def status(self) -> int:
        return status_after(self.asked)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal in the main thread.

        Raises:
            Stopped: the process is to end at once.
        """
        is_first, self.asked = not self.asked, self.asked or number
        if self.ending:
            if number == signal.SIGINT:
                _exit_now(self.status)
        elif is_first and self.postponed:
            _say(f"{_name(number)}: {self.postponed}.")
        elif is_first or self._is_second_interrupt(number):
            self.ending = True
            raise Stopped(self.status, f"Stopped by {_name(self.asked)}.{_GOES_ON}")

    def _is_second_interrupt(self, number: int) -> bool:
        forwarded = number == signal.SIGTERM and os.getppid() == self.launcher
        return number == signal.SIGINT or (self.asked == signal.SIGINT and forwarded)

    def watch(self) -> None:
        """Ends the process when its time is up, and tells it when its launcher has died.

        A thread of its own: the main thread may wait in a collective for a process that is gone.
        """
        deadline, interrupts = float("inf"), 0
        while True:
            ready, _, _ = select.select([self.wake[0]], [], [], INTERVAL)
            for number in self.wake[0].recv(64) if ready else b"":
                if number == 0:
                    return
                interrupts += number == signal.SIGINT
                if number in self.previous and (not self.postponed or interrupts > 1):
                    deadline = min(deadline, time.monotonic() + GRACE)
            if self.launcher is not None and os.getppid() != self.launcher:
                self.launcher = None
                os.kill(os.getpid(), signal.SIGTERM)
            if time.monotonic() > deadline:
                _exit_now(self.status)


_GOES_ON = " A run, an evaluation or a score goes on when the same command is started again."

_signals: _Signals | None = None


def status_after(number: int) -> int:
    """Returns the exit status of a process that a signal has ended: 130 or 143."""
    return 130 if number == signal.SIGINT else 143


def _name(number: int) -> str:
    return signal.Signals(number).name


def _say(line: str) -> None:
    """Writes to stderr from a handler, which may have interrupted a write."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, line.encode() + b"\n")


@contextmanager
def handled() -> Iterator[None]:
    """Handles the signals meanwhile, where this is the main thread and nothing does so already.

    Raises:
        Stopped: a signal came.
    """
    global _signals
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform == "win32" or not is_main or _signals is not None:
        yield
        return
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in _MAY_BE_IGNORED:
        if previous.get(number) is signal.SIG_IGN:
            del previous[number]
    launched = any(name in os.environ for name in _LAUNCHED)
    atexit.register(_remove_launcher_folder)
    signals = _signals = _Signals(previous, os.getppid() if launched else None)
    signals.wake[1].setblocking(False)
    watcher = threading.Thread(target=signals.watch, daemon=True)
    wakeup = signal.set_wakeup_fd(signals.wake[1].fileno(), warn_on_full_buffer=False)
    watcher.start()
    for number in previous:
        signal.signal(number, signals.handle)
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(wakeup)
        _signals = None
        signals.wake[1].send(b"\0")
        watcher.join()
        for end in signals.wake:
            end.close()


def in_training() -> AbstractContextManager[None]:
    """Lets a signal wait for the end of a step, where `asked` tells of it; see `postponed`."""
    return postponed("a checkpoint follows at the end of this step")


@contextmanager
def postponed(notice: str, goes_on: str = _GOES_ON) -> Iterator[None]:
    """Lets a signal wait until what is under way ends by itself; `asked` tells of it.

    Args:
        notice: what is said when it comes.
        goes_on: what is said when the process ends.

    Raises:
        Stopped: at the end, where a signal came.
    """
    signals = _signals
    if signals is None:
        yield
        return
    signals.postponed = notice
    try:
        yield
    finally:
        signals.postponed = ""
    if signals.asked:
        end_with(signals.asked, f"Stopped by {_name(signals.asked)}.{goes_on}")


def asked() -> int:
    """Returns the signal that has asked this process to end, 0 where none has."""
    return 0 if _signals is None else _signals.asked


def ending(number: int) -> None:
    """Notes that the process ends because of a signal, which may have come to another process."""
    if _signals is not None:
        _signals.asked, _signals.ending = number, True


def end_with(number: int, message: str) -> NoReturn:
    """Ends what is under way.

    Raises:
        Stopped: always.
    """
    ending(number)
    raise Stopped(status_after(number), message)


def end_process(status: int) -> NoReturn:
    """Ends the process with the status; after a failure or a stop within `GRACE` seconds.

    Threads that wait for a service or for other processes are not waited for. Nor does a process
    of a group pass through the interpreter's end: the threads of groups that DeepSpeed holds on to,
    also after they were destroyed, may abort it there.
    """
    if status == 0 and not _left_group():
        sys.exit(0)
    if status != 0:
        timer = threading.Timer(GRACE, _exit_now, (status,))
        timer.daemon = True
        timer.start()
    _remove_launcher_folder()  # while it may: a launcher kills what has not ended with the first
    gc.collect()  # what waits in cycles, such as data workers
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _left_group() -> bool:
    """Leaves the process group, and returns whether this process was in one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return False
    distributed.destroy_process_group()
    return True


def _exit_now(status: int) -> NoReturn:
    _remove_launcher_folder()
    os._exit(status)


def _remove_launcher_folder() -> None:
    """Removes the empty folders that torch's launcher makes for this process and never removes."""
    error_file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    with suppress(OSError):  # another process still has a folder there
        for folder in error_file.parents:
            if not any(path.name.startswith("torchelastic_") for path in (folder, *folder.parents)):
                return
            folder.rmdir()


def _before_fork() -> None:
    """Keeps signals back until a forked child knows what to do with them."""
    if _signals is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _signals.previous)


def _after_fork() -> None:
    if _signals is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals.previous)


def _leave_to_parent() -> None:
    """Makes a forked child ignore the signals but for the SIGTERM of its parent."""
    global _signals
    signals, _signals = _signals, None
    if signals is None:
        return
    signal.set_wakeup_fd(-1)
    for number in signals.previous:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    with_parent = hasattr(signal, "sigtimedwait")  # not on macOS
    # SIGTERM stays blocked there: torch sets a handler of its own.
    blocked = {signal.SIGTERM} if with_parent else set()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.previous.keys() - blocked)
    if with_parent:
        end_with_parent()


def end_with_parent() -> None:
    """Ends this process within `INTERVAL` when its parent has died, or at once when told by it."""
    arguments = (os.getppid(), _temporary_folder())
    threading.Thread(target=_wait_for_parent, args=arguments, daemon=True).start()


def _wait_for_parent(parent: int, inherited: str | None) -> None:
    sender = None
    while os.getppid() == parent and sender != parent:
        if hasattr(signal, "sigtimedwait"):
            told = signal.sigtimedwait([signal.SIGTERM], INTERVAL)
            sender = told.si_pid if told else None
        else:
            time.sleep(INTERVAL)
    folder = _temporary_folder()
    if folder is not None and folder != inherited:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _temporary_folder() -> str | None:
    """Returns the folder of this process's sockets, where multiprocessing has made one."""
    folder: str | None = vars(multiprocessing.current_process())["_config"].get("tempdir")
    return folder


if sys.platform != "win32":
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_leave_to_parent
    )
