"""Two processes by the shipped launch files train the adapter that one process trains."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.distributed

TESTS = Path(__file__).resolve().parent.parent
WORKER = TESTS / "distributed" / "worker.py"
IMPORTED_FROM = (TESTS.parent, TESTS, TESTS / "objectives")
"""What workers import comes from this checkout, whatever is installed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def skip_without_deepspeed() -> None:
    """Skips the test where DeepSpeed cannot run."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (it is a dependency on Linux only)")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: DeepSpeed compiles its CPU communication on first use")


def launch(
    root: Path,
    name: str,
    folder: Path,
    worker: Path = WORKER,
    *arguments: str,
    processes: int = 2,
) -> Path:
    """Trains in processes on the CPU by a shipped launch file; returns the output folder."""
    config = yaml.safe_load((root / "accelerate_configs" / f"{name}.yaml").read_text("utf-8"))
    # Not by flags: `--cpu` would start one process and say nothing.
    config |= {"use_cpu": True}
    if config["num_processes"] > 1:
        config |= {"num_processes": processes, "main_process_port": free_port()}
    written = folder / "launch.yaml"
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(written),
         str(worker), str(folder / "run"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, IMPORTED_FROM))},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def outcome(run: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns the weights of adapter and probe, and what was measured of the two."""
    weights = {
        **load_file(run / "checkpoint-3" / "adapter_model.safetensors"),
        **load_file(run / "probe" / "checkpoint-3" / "model.safetensors"),
    }
    measured = {}
    for folder in (run / "probe", run / "bf16", run):
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines:
            measured |= {f"{folder.name}/{k}": v for k, v in json.loads(line).items()}
    return weights, measured


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The outcome of one process by the shipped cpu.yaml."""
    run = launch(TESTS.parent, "cpu", tmp_path_factory.mktemp("alone"))
    assert (run / "world-1.json").is_file()
    return outcome(run)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_train_the_same_adapter(
    name: str, root: Path, tmp_path: Path, alone: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    if name.startswith("zero"):
        skip_without_deepspeed()
    run = launch(root, name, tmp_path)
    assert (run / "world-2.json").is_file()
    stored = load_file(run / "probe" / "checkpoint-3" / "model.safetensors")
    for process in range(2):
        head = torch.load(run / "probe" / f"head-{process}.pt")
        assert {f"score.{key}" for key in head} == stored.keys()
        for key, tensor in head.items():
            assert_close(tensor, stored[f"score.{key}"], msg=f"{key} of process {process}")
    weights, measured = alone
    ours, ours_measured = outcome(run)
    assert ours.keys() == weights.keys()
    for key, tensor in weights.items():
        assert_close(ours[key], tensor, atol=2e-5, rtol=1e-4, msg=key)
    for key in ("loss", "accuracy", "eval_loss", "eval_accuracy", "eval_margin_overall"):
        for name in (f"run/{key}", f"probe/{key}"):
            assert ours_measured[name] == pytest.approx(measured[name], abs=2e-4), name
    assert ours_measured["bf16/eval_loss"] == pytest.approx(measured["bf16/eval_loss"], abs=2e-2)
    trained = load_file(run / "bf16" / "checkpoint-3" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
