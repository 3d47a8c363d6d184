"""1, 2 and 4 processes learn the same from the same cases in one order, and go on as another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_launch import TESTS, launch
from torch.testing import assert_close

pytestmark = pytest.mark.distributed

WORKER = TESTS / "distributed" / "counts_worker.py"
STEPS = 6


def by_step(met: Iterable[list[int]]) -> list[set[int]]:
    """Returns the cases of each step; the plan fills rounds up with cases of the step itself."""
    steps: list[set[int]] = [set() for _ in range(STEPS)]
    for step, *cases in met:
        steps[step].update(cases)
    return steps


@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_processes_change_neither_order_nor_weights(
    objective: str, runs: dict[int, list[dict[str, Any]]]
) -> None:
    alone = runs[1][0][objective]["straight"]
    wanted = by_step(alone["met"])
    assert all(wanted)
    assert sorted(map(len, wanted[:3])) == sorted(map(len, wanted[3:]))
    assert wanted[:3] != wanted[3:]  # the second epoch has an order of its own
    for count, ranks in runs.items():
        for name in ("straight", "resumed") if count != 2 else ("straight",):
            run = ranks[0][objective][name]
            met = by_step([line for rank in ranks for line in rank[objective][name]["met"]])
            assert met == (wanted if name == "straight" else [set()] * 4 + wanted[4:])
            assert run["state"].keys() == alone["state"].keys()
            for key, tensor in alone["state"].items():
                assert_close(run["state"][key], tensor, atol=2e-5, rtol=1e-4, msg=f"{count} {key}")
            assert len(run["log"]) == len(alone["log"])
            for own, line in zip(run["log"], alone["log"], strict=True):
                assert own["step"] == line["step"]
                for key in {"loss", "eval_loss", "train_loss", "accuracy"} & line.keys():
                    assert own[key] == pytest.approx(line[key], abs=1e-4), (count, name, key)


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes what each of them did; 1 and 4 also go on from what 2 have saved."""
    of_two, made = "-", {}
    for count in (2, 1, 4):
        folder = tmp_path_factory.mktemp(f"of-{count}")
        file = "cpu" if count == 1 else "ddp"
        run = launch(root, file, folder, WORKER, of_two, processes=count)
        of_two = str(run) if count == 2 else of_two
        made[count] = [
            {
                objective: torch.load(run / f"{objective}-{rank}.pt")
                for objective in ("bradley_terry", "judge_sft")
            }
            for rank in range(count)
        ]
    return made
