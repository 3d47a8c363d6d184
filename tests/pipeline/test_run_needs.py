"""What a run refuses before anything is loaded: packages, a login, folders that are not there."""

from __future__ import annotations

import importlib.util
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import load_main
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from medrm.pipeline import run_needs

ABSENT = "wandb", "trackio", "bitsandbytes", "deepspeed", "flash_attn", "liger_kernel", "optimi"


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the packages that some runs need, and with nothing that may be loaded."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ABSENT else find_spec(name, *rest),
    )
    for name in ABSENT:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def loaded(*unused: Any, **options: Any) -> None:
        raise AssertionError("data is read before the run is refused")

    monkeypatch.setattr("medrm.pipeline.train.prepare_data", loaded)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert load_main("recipes/train_rm.py")(["--output_dir", "/tmp/none", *words]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ("--report_to wandb", "wandb"),
        ("--report_to trackio", "trackio"),
        ("--optim adamw_8bit", "bitsandbytes"),
        ("--optim paged_adamw_8bit", "bitsandbytes"),
        ("--optim stable_adamw", "torch-optimi"),
        ("--attn_implementation flash_attention_2", "flash-attn"),
        ("--load_in_4bit true", "bitsandbytes"),
        ("--use_liger_kernel true", "liger-kernel"),
        ("--objective judge_sft --report_to wandb", "wandb"),
    ],
)
def test_a_missing_package_is_named_first(
    capsys: pytest.CaptureFixture[str], words: str, package: str
) -> None:
    message = refusal(capsys, *words.split())
    assert f"{package} is not installed; install it (pip install {package})" in message
    option = words.split("--")[-1].replace(" true", "")
    assert f"or do without --{option}" in message


def test_all_that_is_missing_is_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    message = refusal(capsys, "--report_to", "wanb", "--optim", "lion_8bit")
    for told in ("'wanb' is not known", "bitsandbytes is not", "deepspeed is not"):
        assert told in message
    assert "Did you mean 'wandb'?" in message


@pytest.mark.parametrize("key", [None, "environment", "netrc", "offline"])
def test_a_key_that_nobody_can_type_is_asked_for_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str | None,
) -> None:
    monkeypatch.setattr(run_needs, "_is_installed", lambda module: True)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "x")
    if key == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    if key == "netrc":
        (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    if key is None:
        message = refusal(capsys, "--report_to", "wandb")
        assert "there is no key for api.wandb.ai; run `wandb login`, set WANDB_API_KEY" in message
    else:
        with pytest.raises(AssertionError, match="data is read"):
            refusal(capsys, "--report_to", "wandb")


@pytest.mark.parametrize("path", ["file", "file/below", "n" * 256, "", "a\0b"])
def test_a_run_folder_that_cannot_be_made_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    (tmp_path / "file").write_text("x")
    message = refusal(capsys, "--output_dir", f"{tmp_path}/{path}" if path else "")
    assert "output_dir " in message
    assert " cannot be written: " in message


def test_the_folder_of_tensorboard_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    message = refusal(capsys, "--report_to", "tensorboard")
    assert f"TENSORBOARD_LOGGING_DIR '{tmp_path}/file/logs' cannot be written" in message


def test_sockets_of_data_workers_need_a_short_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The longest path that is accepted is one that a socket may have."""
    folder = tmp_path / ("n" * (75 - len(f"{tmp_path}/")))
    with socket.socket(socket.AF_UNIX) as unix:
        (folder / "pymp-01234567").mkdir(parents=True)
        unix.bind(f"{folder}/pymp-01234567/listener-01234567")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(AssertionError, match="data is read"):
        refusal(capsys, "--dataloader_num_workers", "1")
    monkeypatch.setattr(tempfile, "tempdir", f"{folder}n")
    message = refusal(capsys, "--dataloader_num_workers", "1")
    assert "dataloader_num_workers 1: their sockets would lie in TMPDIR" in message
    assert "1 bytes too long" in message
    with pytest.raises(AssertionError, match="data is read"):
        refusal(capsys, "--dataloader_num_workers", "0")


def test_the_tables_know_what_transformers_accepts() -> None:
    assert set(run_needs.REPORTERS) == set(INTEGRATION_TO_CALLBACK)
    own = {
        *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"),
        *("adafactor", "sgd", "adagrad", "rmsprop"),
    }
    starts = tuple(start for start, _ in run_needs._OPTIMISERS)
    needing = {name.value for name in OptimizerNames if name.value.startswith(starts)}
    assert needing == {name.value for name in OptimizerNames} - own
