"""Runs that are killed at random moments, over and over, end as the one that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent
_OBJECTIVES = ("bradley_terry", "judge_sft", "judge_grpo")
KILLS = {"bradley_terry": 7, "judge_sft": 6, "judge_grpo": 6}
"""Of the smaller sample; a reward model is also killed while its frozen probe is trained."""

_SAVES = ("checkpoint", "adapter")
_LATER = 1
"""The second epoch, counted from 0."""


def campaign(output: Path, objective: str, kills: int, seed: int, limit: float) -> dict[str, Any]:
    """Kills runs of an objective in a process of its own; see `campaign.py`."""
    output = output / objective
    output.mkdir()
    folders = (_HERE.parents[1], _HERE.parent, _HERE)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "MEDRM_CACHE": str(output / "cache"),
    }
    command = [sys.executable, str(_HERE / "campaign.py"), objective, "--output", str(output)]
    done = subprocess.run(
        [*command, "--kills", str(kills), "--seed", str(seed)],
        env=environment, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def table(campaigns: Sequence[dict[str, Any]]) -> str:
    """Returns the kills by objective, phase and epoch, as text."""
    rows = ["objective      phase        epoch 0  epoch 1+  outside  in the same epoch  delayed"]
    for told in campaigns:
        for phase in dict.fromkeys(kill["phase"] for kill in told["kills"]):
            kills = [kill for kill in told["kills"] if kill["phase"] == phase]
            epochs = Counter(kill["epoch"] and min(kill["epoch"], _LATER) for kill in kills)
            again, delayed = (sum(kill[name] for kill in kills) for name in ("again", "delayed"))
            rows.append(
                f"{told['objective']:14} {phase:12} {epochs[0]:7}  {epochs[_LATER]:8}  "
                f"{epochs[None]:7}  {again:17}  {delayed:7}"
            )
        rows.append(f"{told['objective']:14} {len(told['kills'])} kills, {told['runs']} runs\n")
    return "\n".join(rows)


def assert_nothing_differs(told: dict[str, Any]) -> None:
    assert told["differences"] == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", _OBJECTIVES)
def test_a_killed_run_ends_as_the_straight_one(
    objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = campaign(tmp_path, objective, kills=KILLS[objective], seed=2, limit=550)
    with capsys.disabled():
        sys.stdout.write(f"\n{table([told])}\n")
    assert_nothing_differs(told)
    assert len(told["kills"]) >= KILLS[objective]
    assert sum(kill["phase"] in _SAVES for kill in told["kills"]) >= 2
    assert any(kill["epoch"] == _LATER for kill in told["kills"])
    assert any(kill["phase"] == "probe" for kill in told["kills"]) == ("bradley" in objective)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_a_hundred_kills_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {**dict.fromkeys(_OBJECTIVES, 36), "crossfit": 12}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        run = partial(campaign, tmp_path, seed=1, limit=7000)
        campaigns = [*pool.map(lambda name: run(name, kills=wanted[name]), wanted)]
    with capsys.disabled():
        sys.stdout.write(f"\n{table(campaigns)}\n")
    for told in campaigns:
        assert_nothing_differs(told)
    kills = {told["objective"]: told["kills"] for told in campaigns}
    every = [kill for objective in _OBJECTIVES for kill in kills[objective]]
    assert all(len(kills[objective]) >= 30 for objective in _OBJECTIVES)
    assert len(every) >= 100
    assert sum(kill["phase"] in _SAVES for kill in every) >= 20
    assert sum(kill["phase"] in ("develop", "measure") for kill in every) >= 6
    assert sum(kill["phase"] == "report" for kill in every) >= 3
    assert sum(kill["phase"] == "probe" for kill in kills["bradley_terry"]) >= 3
    for objective in (*_OBJECTIVES, "crossfit"):
        assert sum(kill["epoch"] == _LATER for kill in kills[objective]) >= 3, objective
    assert sum(kill["again"] for kill in every) >= 6
