"""Launched runs that signals stop, again and again, end in the adapter of a run that none reached.

Each stop leaves a whole checkpoint, no process and no temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_launch import free_port
from tiny import save_tiny

from medrm.data.phantom.phantom_set import write_phantom
from medrm.files import DRAFT
from medrm.integrity import damage, is_sealed

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc"),
]

ENDED_WITHIN = 20.0
"""Seconds from a signal until nothing is left, on a busy machine; a step here takes less than 1."""

STEPS = 60


class Launched:
    """A run in a session of its own, and all processes that come of it."""

    def __init__(self, words: list[str], root: Path, folder: Path) -> None:
        self.mark = f"{uuid.uuid4()}"
        self.temporary = Path(tempfile.mkdtemp())  # short: data workers bind sockets there
        self.log = folder / f"{self.mark}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=root, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "MARK": self.mark, "TMPDIR": str(self.temporary)},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def living(self) -> list[int]:
        """The processes of this run, whoever their parents are."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mark = f"MARK={self.mark}".encode() in (folder / "environ").read_bytes()
                state = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                found += [int(folder.name)] if mark and state != "Z" else []
        return sorted(found)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert self.process.poll() is None, self.said[-4000:]
            time.sleep(0.05)

    def ended(self) -> int:
        """Returns the exit status once nothing is left of the run, which must be soon."""
        deadline = time.monotonic() + ENDED_WITHIN
        while self.living() or self.process.poll() is None:
            assert time.monotonic() < deadline, self.said[-4000:]
            time.sleep(0.05)
        left = list(self.temporary.rglob("*"))
        # torch names an empty cache after the user there, the same in every run.
        assert all(path.name.startswith("torchinductor_") for path in left), left
        return self.process.returncode


@contextmanager
def launched(words: list[str], root: Path, folder: Path) -> Iterator[Launched]:
    """Starts a run, and leaves nothing of it when the test fails."""
    run = Launched(words, root, folder)
    try:
        yield run
    finally:
        for pid in run.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()
        shutil.rmtree(run.temporary)


def launch_words(root: Path, folder: Path, processes: int) -> list[str]:
    name = "cpu" if processes == 1 else "ddp"
    config = yaml.safe_load((root / "accelerate_configs" / f"{name}.yaml").read_text("utf-8"))
    config["use_cpu"] = True
    if processes > 1:
        config |= {"num_processes": processes, "main_process_port": free_port()}
    written = folder / f"launch-{uuid.uuid4()}.yaml"
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["-m", "accelerate.commands.launch", "--config_file", str(written)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and cases."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny("qwen2_5_vl", folder / "base")
    write_phantom(folder / "phantom", cases=24, seed=11)
    return folder


def recipe(made: Path, run: Path, **options: object) -> list[str]:
    arguments = {
        "model_name_or_path": made / "base", "train_data": made / "phantom", "output_dir": run,
        "max_steps": STEPS, "global_batch_cases": 4, "save_steps": STEPS // 2,
        "eval_steps": STEPS // 2, "logging_steps": 1, "bf16": "false", "report_to": "none",
        "controls": "none", "stages": "train", "dataloader_num_workers": 1, **options,
    }  # fmt: skip
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    return ["recipes/train_rm.py", *words]


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def newest_checkpoint(run: Path) -> int:
    """Returns its step; it must be whole."""
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in run.glob("checkpoint-*")}
    newest = steps[max(steps)]
    assert is_sealed(newest)
    assert damage(newest) == []
    assert not list(run.glob(f"{DRAFT}*"))
    return max(steps)


def refused(words: list[str], root: Path, folder: Path, live: Launched) -> None:
    """A second run beside a living one ends with one message, whose owner it names."""
    with launched(words, root, folder) as second:
        second.wait_until(lambda: second.process.poll() is not None or not second.living())
        second.process.wait()
        assert second.ended() != 0
        assert second.said.count("A run is writing") == 1
        (owner,) = [pid for pid in live.living() if f"(process {pid} on " in second.said]
        assert owner != live.process.pid  # the first worker


def send(target: Callable[[Launched], int], number: int) -> Callable[[Launched], None]:
    return lambda live: os.kill(target(live), number)


def launcher(live: Launched) -> int:
    return live.process.pid


def worker(live: Launched) -> int:
    """The second process of a run."""
    said = [int(pid) for pid in live.living() if pid != live.process.pid]
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().split()[3]) for pid in said}
    return [pid for pid in said if parents[pid] == live.process.pid][1]


def test_two_processes_are_stopped_in_every_way(root: Path, made: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    with launched(
        [*launch_words(root, tmp_path, 2), *recipe(made, straight)], root, tmp_path
    ) as whole:
        assert whole.process.wait(300) == 0, whole.said[-4000:]
        assert whole.ended() == 0

    stops = [
        send(launcher, signal.SIGTERM),
        send(launcher, signal.SIGKILL),
        send(worker, signal.SIGUSR1),
        lambda live: os.killpg(live.process.pid, signal.SIGINT),
    ]
    reached = 0
    for number, stop in enumerate(stops):
        words = [*launch_words(root, tmp_path, 2), *recipe(made, run)]
        with launched(words, root, tmp_path) as live:
            live.wait_until(lambda least=reached + 2: steps_of(run) >= least)
            if number == 0:
                group = [live.process.pid, *live.living()]
                for pid in group:
                    os.kill(pid, signal.SIGSTOP)
                again = recipe(made, run, overwrite_output_dir="true")
                refused([*launch_words(root, tmp_path, 2), *again], root, tmp_path, live)
                refused(recipe(made, run), root, tmp_path, live)
                for pid in group:
                    os.kill(pid, signal.SIGCONT)
            stop(live)
            assert live.ended() not in (0, None)
            assert live.said.count("Stopped after step") == 1
            step = newest_checkpoint(run)
            assert reached < step < STEPS
            reached = step
    with launched([*launch_words(root, tmp_path, 2), *recipe(made, run)], root, tmp_path) as last:
        assert last.process.wait(300) == 0, last.said[-4000:]
        assert last.ended() == 0
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (straight / weights).read_bytes()
    assert steps_of(run) == steps_of(straight)


@pytest.mark.parametrize("bare", [False, True], ids=["launcher", "bare"])
def test_one_process_is_stopped(bare: bool, root: Path, made: Path, tmp_path: Path) -> None:
    """In an evaluation at once, in a training with a checkpoint, also when its launcher dies."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"stages": "before,train"}
    prefix = [] if bare else launch_words(root, tmp_path, 1)
    with launched([*prefix, *recipe(made, run, **options)], root, tmp_path) as live:
        live.wait_until(lambda: "zero_shot_verdict ..." in live.said)
        os.killpg(live.process.pid, signal.SIGINT)
        assert live.ended() == (130 if bare else -signal.SIGINT)
        assert "Stopped by SIGINT." in live.said
    assert not list(run.glob("checkpoint-*"))
    with launched([*prefix, *recipe(made, run, **options)], root, tmp_path) as live:
        live.wait_until(lambda: steps_of(run) >= 2)
        live.process.terminate()
        assert live.ended() == (143 if bare else -signal.SIGTERM)
        assert "Stopped after step" in live.said
    assert newest_checkpoint(run) < STEPS


def test_an_evaluation_on_two_processes_is_stopped_and_goes_on(root: Path, tmp_path: Path) -> None:
    """By a signal to the launcher, and by one to a worker; nothing is asked twice."""
    write_phantom(tmp_path / "set", cases=320, seed=5)
    model = root / "tests" / "golden" / "reward_adapter"

    def command(output: str) -> list[str]:
        words = ["--model", str(model), "--benchmark", str(tmp_path / "set"), "--no_images"]
        words += ["--evaluation_batch_rows", "2", "--output_dir", str(tmp_path / output)]
        return [*launch_words(root, tmp_path, 2), "evaluation/evaluate.py", *words]

    with launched(command("straight"), root, tmp_path) as whole:
        assert whole.process.wait(300) == 0, whole.said[-4000:]
        assert whole.ended() == 0

    def answered() -> int:
        parts = (tmp_path / "run").glob("responses*")
        return sum(path.read_bytes().count(b"\n") for path in parts)

    reached = 0
    for stop in (send(launcher, signal.SIGTERM), send(worker, signal.SIGTERM)):
        with launched(command("run"), root, tmp_path) as live:
            live.wait_until(lambda least=reached: answered() > least)
            stop(live)
            assert live.ended() not in (0, None)
            assert live.said.count("Stopped by SIGTERM.") >= 1
            assert 'Traceback (most recent call last):\n  File "evaluation' not in live.said
        assert reached < answered() < 320
        reached = answered()
    with launched(command("run"), root, tmp_path) as last:
        assert last.process.wait(300) == 0, last.said[-4000:]
        assert last.ended() == 0
    for name in ("responses.jsonl", "verdicts.jsonl", "report.json", "official.csv"):
        files = [tmp_path / run / name for run in ("run", "straight")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
