"""Two processes train each kind of judge; supervision and preferences as one process does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_launch import TESTS, launch, skip_without_deepspeed
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.distributed

WORKER = TESTS / "distributed" / "judge_worker.py"


def adapters(run: Path) -> list[dict[str, Tensor]]:
    """Returns what each process trained."""
    return [torch.load(path) for path in sorted(run.glob("adapter-*.pt"))]


def measured(run: Path) -> dict[str, float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process by the shipped cpu.yaml."""
    return launch(TESTS.parent, "cpu", tmp_path_factory.mktemp("alone"), WORKER, "1")


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_train_judges(name: str, root: Path, tmp_path: Path, alone: Path) -> None:
    if name == "zero3":
        skip_without_deepspeed()
    run = launch(root, name, tmp_path, WORKER, "2")
    assert (run / "world-2.json").is_file()
    for objective in ("judge_sft", "judge_dpo", "judge_grpo"):
        first, *copies = adapters(run / objective)
        assert len(copies) == (0 if name == "zero3" else 1)  # it gathers on one process
        for other in copies:
            assert first.keys() == other.keys()
            for key, tensor in first.items():
                assert torch.equal(other[key], tensor), f"{objective} {key}"
        assert any(tensor.any() for key, tensor in first.items() if "lora_B" in key)
        if objective == "judge_grpo":  # each process samples by a seed of its own
            assert math.isfinite(measured(run / objective)["loss"])
            continue
        (wanted,) = adapters(alone / objective)
        assert wanted.keys() == first.keys()
        for key, tensor in wanted.items():
            assert_close(first[key], tensor, atol=1e-5, rtol=1e-4, msg=f"{objective} {key}")
        ours, theirs = measured(run / objective), measured(alone / objective)
        for key in ("loss", "eval_loss"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), f"{objective} {key}"
