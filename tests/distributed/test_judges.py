"""Two processes train each kind of judge; supervision and preferences as one process does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_launch import TESTS, launch
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.distributed

WORKER = TESTS / "distributed" / "judge_worker.py"


def adapters(run: Path, processes: int) -> list[dict[str, Tensor]]:
    return [torch.load(run / f"adapter-{process}.pt") for process in range(processes)]


def measured(run: Path) -> dict[str, float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_two_processes_train_judges(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("cpu", "ddp")]
    for folder in folders:
        folder.mkdir()
    one = launch(root, "cpu", folders[0], WORKER, "1")
    two = launch(root, "ddp", folders[1], WORKER, "2")
    assert (two / "world-2.json").is_file()
    for objective in ("judge_sft", "judge_dpo", "judge_grpo"):
        first, second = adapters(two / objective, 2)
        assert first.keys() == second.keys() != set()
        for name, tensor in first.items():
            assert torch.equal(second[name], tensor), f"{objective} {name}"
        assert any(tensor.any() for name, tensor in first.items() if "lora_B" in name)
        if objective == "judge_grpo":  # each process samples by a seed of its own
            assert math.isfinite(measured(two / objective)["loss"])
            continue
        (alone,) = adapters(one / objective, 1)
        for name, tensor in alone.items():
            assert_close(first[name], tensor, atol=1e-5, rtol=1e-4, msg=f"{objective} {name}")
        ours, theirs = measured(two / objective), measured(one / objective)
        for key in ("loss", "eval_loss"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), f"{objective} {key}"
