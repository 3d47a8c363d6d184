"""Signals that ask to end, with the processes that launchers and data loaders make."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medrm.guard import guarded
from medrm.pipeline.stop_signals import STARTED_BY, handled

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps its own ways")

PROGRAM = """
import sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from medrm.guard import guarded
from medrm.pipeline import stop_signals

def elsewhere():
    with tempfile.TemporaryDirectory():
        print(flush=True)
        time.sleep(60)

def waiting():
    stop_signals.GRACE = 0.5
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(time.sleep, 60)
        print(flush=True)
        work.result()

def step():
    with tempfile.TemporaryDirectory(), stop_signals.in_training():
        print(flush=True)
        while not stop_signals.asked():
            time.sleep(0.01)
        time.sleep(0.3)
        print("the step has ended", flush=True)

def long_step():
    with tempfile.TemporaryDirectory(), stop_signals.in_training():
        print(flush=True)
        time.sleep(60)

stop_signals.end_process(guarded(globals()[sys.argv[1]]))
"""


def started(
    where: str, temporary: Path, program: str = PROGRAM, **options: Any
) -> subprocess.Popen[str]:
    """A process that has come to where the signal is to reach it."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, where],
        env={**os.environ, "TMPDIR": str(temporary), **options.pop("env", {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("where", "signals", "status", "says"),
    [
        ("elsewhere", ["TERM"], 143, "Stopped by SIGTERM."),
        ("elsewhere", ["INT"], 130, "Stopped by SIGINT."),
        ("elsewhere", ["USR1"], 143, "Stopped by SIGUSR1."),
        ("waiting", ["TERM"], 143, ""),
        ("step", ["HUP", "TERM", "USR1"], 143, "SIGHUP: a checkpoint follows"),
        ("step", ["INT"], 130, "SIGINT: a checkpoint follows"),
        ("long_step", ["INT", "INT"], 130, "Stopped by SIGINT."),
    ],
)
def test_a_signal_ends_a_process(
    where: str, signals: Sequence[str], status: int, says: str, tmp_path: Path
) -> None:
    process = started(where, tmp_path)
    begun = time.monotonic()
    for name in signals:
        process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.1)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < 20  # far from the 60 s of what it waits for
    assert process.returncode == status
    assert says in errors
    assert "Traceback" not in errors
    assert ("the step has ended" in output) == (where == "step")
    assert not list(tmp_path.iterdir())


def test_what_nohup_ignores_stays_ignored_and_what_a_launcher_ignores_does_not(
    tmp_path: Path,
) -> None:
    ignored = (signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    try:
        process = started("elsewhere", tmp_path)
    finally:
        for number, handler in zip(ignored, before, strict=True):
            signal.signal(number, handler)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=10)
    assert process.returncode == 143


LAUNCHER = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", sys.stdin.read(), sys.argv[1]])
process.wait()
"""


def test_a_process_ends_when_its_launcher_dies(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text(PROGRAM, encoding="utf-8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with script.open(encoding="utf-8") as program:
        environment = {STARTED_BY: "this test"}
        launcher = started("step", temporary, LAUNCHER, stdin=program, env=environment)
    launcher.kill()
    output, errors = launcher.communicate(timeout=20)  # its worker holds the other ends
    assert "SIGTERM: a checkpoint follows" in errors
    assert "the step has ended" in output
    assert not list(temporary.iterdir())


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def action() -> None:
        assert signal.getsignal(signal.SIGTERM) not in before
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert guarded(action) == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_data_workers_leave_signals_to_their_parent() -> None:
    with handled():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        for name in ("INT", "USR1", "HUP", "TERM"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        worker.join(0.5)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


FINISHED = """
import atexit, sys, threading, time
import torch
from medrm.pipeline.stop_signals import end_process

store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
atexit.register(lambda: print("what is left to the end is done"))
threading.Thread(target=time.sleep, args=[60]).start()  # as a process group that is held on to
sys.stdout.write("all is written ")
end_process(0)
"""


def test_a_process_of_a_group_ends_without_waiting_for_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINISHED],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == "all is written what is left to the end is done\n"
