"""The `medrm` command: what it says of words it does not know, and `python -m medrm`."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from medrm.cli import guarded, main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed where the words are refused with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "given", "meant"),
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
    capsys: pytest.CaptureFixture[str], words: list[str], given: str, meant: str
) -> None:
    message = refusal(capsys, *words)
    assert f"unknown {given}. Did you mean {meant}? Accepted: " in message
    assert "Traceback" not in message


def test_all_misspelt_options_come_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "evaluate", "--modle", "x", "--benchmrk", "y")
    assert "'--model'" in message
    assert "'--benchmark'" in message


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: --benchmark" in refusal(
        capsys, "evaluate", "--model", "x", "--output_dir", "y"
    )


def test_the_package_is_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "medrm", "--version"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("medrm ")


def test_a_path_that_may_not_be_used_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "runs/mine")

    assert guarded(action) == 2
    assert "Error: runs/mine: Read-only file system. Give a path" in capsys.readouterr().err
