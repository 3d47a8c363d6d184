"""A run folder has one living owner: who else would write there is refused, and touches nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipeline.entry import Recipe

from medrm.cli import main as medrm_command
from medrm.errors import ConfigError
from medrm.folder_lock import EVALUATION_LOCK, RUN_LOCK, hold, refuse_owned
from medrm.pipeline.run_folder import FolderStart, open_folder
from medrm.pipeline.run_lock import owned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

HOLDER = """
import sys
from pathlib import Path
from medrm.folder_lock import hold
with hold(Path(sys.argv[1]), sys.argv[2], str):
    print(flush=True)
    sys.stdin.read()
"""

FORKING_HOLDER = HOLDER.replace(
    "    print",
    """
    import os, time
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    Path(sys.argv[1], "child").write_text(str(child), encoding="utf-8")
    print""",
)


@contextmanager
def held_elsewhere(
    folder: Path, name: str = RUN_LOCK, script: str = HOLDER
) -> Iterator[subprocess.Popen[str]]:
    """Another process that lives in the folder."""
    command = [sys.executable, "-c", script, str(folder), name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


THEIRS = (
    *("draft-paper/paper.tex", "movie.partial", "movie.1-2.partial", "kept/.medrm-draft-c/file"),
    *("folds/1/draft-b/file", "evaluation/draft-b/file", "evaluation/mine.partial"),
    "evaluation/scores.jsonl.0123456789abcdef-0-12.scores-part",
    "evaluation/scores.jsonl.0123456789abcdef-0-12.partial",
)
"""What a run has not written."""


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file with its time and content, and the folders' times."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("option", [{}, {"overwrite_output_dir": "true"}])
def test_a_second_run_is_refused_and_touches_nothing(
    option: dict[str, str],
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    for name in ("run.json", "checkpoint-2/trainer_state.json", ".medrm-draft-x/half"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}", encoding="utf-8")
    with held_elsewhere(run) as process:
        before = snapshot(run)
        assert recipe(train_data=phantom, **option) == 2
        assert snapshot(run) == before
        message = capsys.readouterr().err
        assert f"process {process.pid} on {socket.gethostname()}, since " in message
        started = json.loads((run / RUN_LOCK).read_text(encoding="utf-8"))["started"]
        assert started in message
    assert not (run / RUN_LOCK).exists()


def test_a_killed_owner_is_followed_and_its_drafts_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = [
        *(".medrm-draft-a/checkpoint-4/model", "folds/2/.medrm-draft-b/model"),
        *("evaluation/.medrm-draft-c/model", "folds/1/evaluation/.medrm-draft-d/model"),
        *("run.json.12-3.partial", "folds/1/run.json.4-5.partial"),
        *("evaluation/after/images/0.webp.6-7.partial", "checkpoint-2/manifest.json.8-9.partial"),
    ]
    for name in (*drafts, *THEIRS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half", encoding="utf-8")
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    with caplog.at_level("INFO"), owned(tmp_path):
        assert f"was left by process {process.pid} on" in caplog.text
        holder = json.loads((tmp_path / RUN_LOCK).read_text(encoding="utf-8"))
        assert holder["pid"] == os.getpid()
        open_folder(FolderStart(tmp_path, {}, goes_on=True, is_longer=False))
        left = {path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path)}
        assert left == {*THEIRS, "run.json", RUN_LOCK}
        assert not list(tmp_path.rglob(".medrm-draft-[abd]"))
    assert not (tmp_path / RUN_LOCK).exists()


@pytest.mark.parametrize("refused_for", ["orphans", "another run"])
def test_a_refused_folder_stays_byte_identical(
    refused_for: str, recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    names = [*THEIRS, ".medrm-draft-x/half", "run.json.12-3.partial", "adapter/weights"]
    for name in (*names, *(["run.json"] if refused_for == "another run" else [])):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}", encoding="utf-8")
    before = snapshot(run)
    assert recipe(train_data=phantom) == 2
    after = snapshot(run)
    del before[run], after[run]  # the lock came and went
    assert after == before


@pytest.mark.parametrize("option", [{}, {"overwrite_output_dir": "true"}])
def test_a_new_run_leaves_what_is_not_its_own(
    option: dict[str, str], phantom: Path, tmp_path: Path, recipe: Recipe
) -> None:
    run = tmp_path / "run"
    theirs = [name for name in THEIRS if not name.startswith(("evaluation/", "folds/"))]
    for name in theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("theirs", encoding="utf-8")
    (run / ".medrm-draft-x").mkdir()
    assert recipe(train_data=phantom, stages="before", **option) == 0
    assert (run / "run.json").is_file()
    assert {(run / name).read_text(encoding="utf-8") for name in theirs} == {"theirs"}
    assert not (run / ".medrm-draft-x").exists()


def test_a_lock_that_is_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # until a moment ago
    refuse_owned(tmp_path, "Wait for it.")


def test_a_run_that_cannot_start_leaves_no_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("{}", encoding="utf-8")
    assert recipe(train_data=tmp_path / "votes.jsonl") == 2
    assert not (tmp_path / "run").exists()


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As a data worker that outlives its killed parent for a moment."""
    with held_elsewhere(tmp_path, script=FORKING_HOLDER) as process:
        process.send_signal(signal.SIGKILL)
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    try:
        with hold(tmp_path, RUN_LOCK, str):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--model", "mock:oracle", "--benchmark", "phantom", "--output_dir"),
        ("rescore",),
        ("compare", "{before}", "{after}", "--output_dir"),
        ("report",),
    ],
    ids=lambda words: words[0],
)
def test_other_commands_do_not_write_where_a_run_lives(
    command: tuple[str, ...],
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--benchmark", "phantom", "--data_root", str(phantom)]
    folders = [tmp_path / "run" / "evaluation" / name for name in ("before", "after")]
    for folder, model in zip(folders, ("mock:always-a", "mock:oracle"), strict=True):
        words = ["evaluate", "--model", model, *options, "--output_dir", str(folder)]
        assert medrm_command(words) == 0
    before, after = folders
    words = [word.format(before=before, after=after) for word in command]
    if command[0] == "evaluate":
        words = [*words[:-1], "--data_root", str(phantom), "--overwrite_output_dir", words[-1]]
    with held_elsewhere(tmp_path / "run") as process:
        files = snapshot(tmp_path)
        run = tmp_path / "run"
        for target in {"rescore": [after], "report": [run]}.get(command[0], [after, run]):
            assert medrm_command([*words, str(target)]) == 2, target
            assert f"process {process.pid} on" in capsys.readouterr().err
        assert snapshot(tmp_path) == files
        if command[0] == "compare":  # what lies there may be read
            assert medrm_command([*words, str(tmp_path / "elsewhere")]) == 0
        if command[0] == "report":  # a finished evaluation's page is not the run's
            assert medrm_command([*words, str(after)]) == 0


def test_an_evaluation_names_the_one_that_is_in_its_way(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path, EVALUATION_LOCK) as process,
        pytest.raises(ConfigError, match=f"process {process.pid} on"),
        hold(tmp_path, EVALUATION_LOCK, str),
    ):
        pass
