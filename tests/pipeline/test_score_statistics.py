"""What `medrm score` makes of rewards: normalised, chances of a win, and the best answer."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import medrm
from medrm.models.adapter_config import read_adapter_config
from medrm.pipeline import stages
from medrm.pipeline.score_lines import ScorePlan, line_of
from medrm.pipeline.score_parts import RowCase
from medrm.schema import Case, Response
from medrm.statistics.calibration import fit_temperature, win_probabilities

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "reward_adapter"
ANSWERS = ("Clear.", "A nodule is seen on the left.")


def test_a_run_keeps_what_normalises_its_rewards(tmp_path: Path) -> None:
    adapter = shutil.copytree(GOLDEN, tmp_path / "adapter")
    model = medrm.load(adapter)
    labels = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.4, 0.2, 0.4)]
    cases = [
        medrm.Case(str(n), (), f"Is it {n}?", ANSWERS, {"accuracy": medrm.PairLabel(shares)})
        for n, shares in enumerate(labels)
    ]
    context = SimpleNamespace(splits=SimpleNamespace(development=cases))
    stages.add_statistics(context, model, adapter)  # type: ignore[arg-type]
    kept = medrm.load(adapter).contract.score_statistics
    rewards = np.stack([rewards for _, rewards in model.score_cases(cases)])
    for index, name in enumerate(model.dimensions):
        assert kept[name]["mean"] == pytest.approx(rewards[:, :, index].mean())
        assert kept[name]["std"] == pytest.approx(rewards[:, :, index].std())
    assert {name for name in kept if "temperature" in kept[name]} == {"accuracy"}
    column = model.dimensions.index("accuracy")
    odds = (rewards[:2, 0, column] - rewards[:2, 1, column]).tolist()
    assert kept["accuracy"]["temperature"] == fit_temperature(odds, [True, False])


def test_probabilities_of_a_win_add_up() -> None:
    assert win_probabilities([1.0], 2.0) is None
    assert win_probabilities([0.3, 0.3], 1.0) == [0.5, 0.5]
    assert sum(win_probabilities([3.0, -1.0, 0.5, 90.0], 0.7) or []) == pytest.approx(2.0)
    assert win_probabilities([800.0, -800.0], 1.0) == [1.0, 0.0]


def test_a_reward_that_is_no_number_chooses_no_answer() -> None:
    contract = read_adapter_config(GOLDEN)
    plan = ScorePlan(contract, "overall", None)
    row = RowCase(1, Case("a-case", (), "Is it?", ("yes", "no")), None)
    finite = dict.fromkeys(contract.dimensions, (0.5, 1.0))
    response = Response("a-case", "forward", None, 0, "reward", rewards=finite)
    line = line_of(plan, row, response)
    assert (line["state"], line["reason"], line["best"]) == ("ok", None, 1)
    broken = replace(response, rewards={**finite, "overall": (math.nan, 1.0)})
    line = line_of(plan, row, broken)
    assert (line["state"], line["rewards"], line["best"]) == ("error", None, None)
    assert "no finite number" in line["reason"]
