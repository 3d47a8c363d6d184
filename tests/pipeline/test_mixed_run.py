"""A run on a mixture of sets: what it records, shows and measures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe

from medrm.data.phantom.phantom_set import write_phantom
from medrm.hub.card import write_card
from medrm.models.published_contract import published_files


@pytest.fixture(scope="session")
def third(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("third")
    write_phantom(folder, cases=40, seed=13)
    return folder


@pytest.mark.slow
def test_a_run_on_a_mixture(
    recipe: Recipe, phantom: Path, third: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = phantom.name, third.name
    options: dict[str, Any] = {"train_data": f"{phantom}=0.6,{third}=0.4", "controls": "none"}
    options["split_by_cluster"] = "0.5,0.25,0.25"
    assert recipe(**options, use_cpu=True, dry_run=True) == 0
    assert "Sets that are trained on" in capsys.readouterr().out
    assert recipe(**options) == 0
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    mixture = record["data"]["mixture"]
    assert [*mixture] == [*names]
    counts = [mixture[name]["training"] for name in names]
    assert sum(counts) == record["data"]["train"]["cases"]
    assert abs(counts[0] - sum(counts) * 0.6) < 1
    assert [mixture[name]["share"] for name in names] == ["0.6", "0.4"]
    assert {mixture[name]["revision"] for name in names} == {"local"}
    report = json.loads((run / "evaluation" / "after" / "report.json").read_text(encoding="utf-8"))
    measured = report["protocols"]["robust"]["groups"]["set"]
    assert {*measured} == {*names}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [row for row in map(json.loads, lines) if "eval_loss" in row]
    for name in names:
        assert 0 <= logged[-1][f"eval_accuracy_set_{name}"] <= 1
        assert f"eval_loss_set_{name}" in logged[-1]
    capsys.readouterr()
    assert recipe(**options) == 0  # finished
    assert recipe(**{**options, "train_data": f"{phantom}=0.5,{third}=0.5"}) == 2
    message = capsys.readouterr().err
    for part in (f"data, mixture {names[0]} share: 0.6 then, 0.5 now", f"{third}=0.4 then,"):
        assert part in message
    assert recipe(**options, mixture_seed=5) == 2
    assert "mixture_seed: 0 then, 5 now" in capsys.readouterr().err
    _check_privacy(run, record)


def _check_privacy(run: Path, record: dict[str, Any]) -> None:
    """Digests of images are published only where every set of the mixture is public."""

    def published(*hub_ids: str | None) -> bool:
        for entry, hub_id in zip(record["data"]["mixture"].values(), hub_ids, strict=True):
            entry["hub_id"] = hub_id
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        files = published_files(run / "adapter", lambda hub_id, revision: hub_id != "hidden/x")
        return any("training" in name for name in files)

    assert not published(None, None)
    assert not published("public/x", None)
    assert not published("public/x", "hidden/x")
    assert published("public/x", "public/y")
    write_card(run / "adapter", run)
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert str(run.parent) not in card


@pytest.mark.slow
def test_folds_of_a_mixture(recipe: Recipe, phantom: Path, third: Path, tmp_path: Path) -> None:
    train_data = f"{phantom}=0.5,{third}=0.5"
    options = {"train_data": train_data, "max_steps": 2, "controls": "none", "crossfit": 2}
    assert recipe(**options) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert {entry["drawn"] for entry in record["data"]["mixture"].values()} == {40}
    assert {entry["benchmark"] for entry in record["data"]["mixture"].values()} == {40}


def test_what_is_wrong_with_a_mixture_is_told_before_a_model_is_loaded(
    recipe: Recipe, phantom: Path, third: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, problem in (
        ({"train_data": f"{phantom}=0.5,phantom=0.4"}, "shares sum to 0.9"),
        ({"train_data": f"{phantom},{third}", "benchmark": third}, "share content"),
        ({"train_data": phantom, "max_cases_per_image": 0}, "max_cases_per_image is 0; give 1"),
    ):
        assert recipe(**options) == 2
        assert problem in capsys.readouterr().err
