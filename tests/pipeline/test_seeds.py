"""`--seeds`: one run after the other, each as it would be by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.entry import Recipe

from medrm.evaluation.report import read_json

BRIEF = {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "controls": "none"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "push_to_hub publishes one adapter"),
        ({"resume_from_checkpoint": "x/checkpoint-2"}, "is the checkpoint of one run"),
        ({}, "holds a run of its own"),
    ],
)
def test_what_does_not_go_with_seeds_is_said_first(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
    message: str,
) -> None:
    if not options:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("{}")
    assert recipe(train_data=phantom, seeds="0,1", **options) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.glob("run/seed-*")]


@pytest.mark.slow
def test_a_seed_among_others_is_the_run_by_itself(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    """Nothing of seed 0's run is left in that of seed 1: its adapter is the same to the byte.

    Both are measured on the same cases, and differ.
    """
    assert recipe(train_data=phantom, seeds="0,1", **BRIEF) == 0
    alone = tmp_path / "alone" / "seed-1"
    assert recipe(train_data=phantom, seed=1, output_dir=alone, **BRIEF) == 0
    first, second = (tmp_path / "run" / f"seed-{seed}" for seed in (0, 1))
    weights = "adapter/adapter_model.safetensors"
    assert (second / weights).read_bytes() == (alone / weights).read_bytes()
    assert (second / weights).read_bytes() != (first / weights).read_bytes()
    for name in ("responses.jsonl", "verdicts.jsonl"):
        path = f"evaluation/after/{name}"
        assert (second / path).read_bytes() == (alone / path).read_bytes()
    manifests = [read_json(folder / "run.json") for folder in (second, alone, first)]
    for manifest in manifests:
        del manifest["config"]["output_dir"]
    assert manifests[0] == manifests[1]
    assert manifests[0]["data"] == manifests[2]["data"]
    assert {
        key for key, value in manifests[0]["config"].items() if manifests[2]["config"][key] != value
    } == {"seed"}
    comparison = read_json(tmp_path / "run" / "seeds.json")
    assert comparison["seeds"] == [0, 1]
    assert comparison["dimensions"]["accuracy"]["before_spread"]["sd"] == 0.0
    assert "One recipe with 2 seeds" in (tmp_path / "run" / "report.html").read_text("utf-8")
