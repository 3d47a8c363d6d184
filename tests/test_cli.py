"""The `medrm` command: what it says of words it does not know, and `python -m medrm`."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import medrm
from medrm.cli import main
from medrm.guard import guarded


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is printed where the words are refused with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem", "meant"),
    [
        (["evalute", "--model", "x"], "command 'evalute'", "'evaluate'"),
        (["data", "phantm", "--cases", "3"], "command 'phantm'", "'phantom'"),
        (["--vesion"], "option '--vesion'", "'--version'"),
        # Not: --benchmark is missing.
        (["evaluate", "--model", "x", "--benchmrk", "y"], "option '--benchmrk'", "'--benchmark'"),
        (["evaluate", "--benchmrk=y"], "option '--benchmrk'", "'--benchmark'"),
        (["compare", "a", "b", "--gat"], "option '--gat'", "'--gate'"),  # no abbreviations
        (["data", "audit", "x", "--fail_no", "leak"], "option '--fail_no'", "'--fail_on'"),
        (["throughput", "--quik"], "option '--quik'", "'--quick'"),
    ],
)
def test_a_misspelt_word_names_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str, meant: str
) -> None:
    message = refusal(capsys, *arguments)
    assert f"unknown {problem}. Did you mean {meant}? Accepted: " in message
    assert "Traceback" not in message


def test_all_misspelt_options_come_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "evaluate", "--modle", "x", "--benchmrk", "y")
    assert "'--model'" in message
    assert "'--benchmark'" in message


def test_a_removed_option_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "evaluate", "--model", "x", "--image_feature_dir=y")
    assert "option '--image_feature_dir' was removed in 0.2.0: leave it out" in message


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: --benchmark" in refusal(
        capsys, "evaluate", "--model", "x", "--output_dir", "y"
    )


def test_the_package_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "medrm", "--version"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("medrm ")


def test_a_path_that_may_not_be_used_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "runs/mine")

    assert guarded(action) == 2
    assert "Error: runs/mine: Read-only file system. Give a path" in capsys.readouterr().err


def test_run_folders_are_compared_by_their_trained_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {name: tmp_path / name for name in ("first", "second")}
    for judge, run in zip(("mock:longer", "mock:oracle"), runs.values(), strict=True):
        after = run / "evaluation" / "after"
        arguments = ["--model", judge, "--benchmark", "phantom", "--output_dir", str(after)]
        assert main(["evaluate", *arguments, "--no_images"]) == 0
        (run / "run.json").write_text("{}")
    assert main(["compare", *map(str, runs.values()), "--primary_dimension", "accuracy"]) == 0
    written = runs["second"] / "evaluation" / "after" / "comparison.json"
    comparison = json.loads(written.read_text(encoding="utf-8"))
    assert comparison["verdict"] == "Improved"
    assert comparison["before"]["model"] == "mock:longer"
    assert not (runs["second"] / "comparison.json").exists()  # there a run has its own
    assert main(["compare", str(tmp_path / "none"), str(runs["first"])]) == 2
    assert "holds no report.json" in capsys.readouterr().err


def test_completion_shows_what_is_public() -> None:
    assert {*medrm.__all__} <= {*dir(medrm)}
    assert {"load", "read_cases"} <= {*medrm.__all__}


@pytest.mark.parametrize(
    "statement", ["import medrm", "from medrm import load, parse_verdict, read_cases"]
)
def test_importing_prints_nothing(statement: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("rank", "local_rank", "said"),
    [(None, None, 3), ("0", "0", 3), ("8", "0", 2), ("1", "1", 0)],
)
def test_the_first_process_says_what_is_under_way_and_one_of_each_machine_warns(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str | None,
    local_rank: str | None,
    said: int,
) -> None:
    def work() -> None:
        logging.getLogger("medrm").info("training ...")
        logging.getLogger("medrm").warning("a checkpoint is damaged")
        warnings.warn_explicit("of a library", UserWarning, "library.py", 1)

    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    logging.getLogger("medrm").manager._clear_cache()
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if number is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, number)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: sys.stderr.write(f"{message}\n")
        assert guarded(work) == 0
    assert len(capsys.readouterr().err.splitlines()) == said
    logging.getLogger("medrm").manager._clear_cache()
