"""`--seeds`: one run after the other, each as it would be by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline.entry import Recipe

from medrm.config.parse import parse_run
from medrm.evaluation.report import read_json
from medrm.files import asset
from medrm.objectives import argument_classes
from medrm.pipeline import run_seeds
from medrm.pipeline.run_seeds import run_of_seed, train_seeds

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


def test_another_recipe_in_a_later_folder_is_seen_before_the_first_is_trained(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "seed-5"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": {"learning_rate": 9.0}, "data": {}}))
    assert recipe(train_data=phantom, seeds="0,5") == 2
    assert "this command and seed-5 differ in learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "run" / "seed-0").exists()


@pytest.mark.parametrize("objective", ["judge_sft", "bradley_terry"])
def test_seeds_of_several_processes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    words = {"objective": objective, "output_dir": tmp_path, "seeds": "5", "use_cpu": True}
    run = parse_run(
        [word for key, value in words.items() for word in (f"--{key}", str(value))],
        argument_classes(),
        asset("recipes/quickstart/bradley_terry.yaml"),
    )
    config = json.loads(json.dumps(run_of_seed(run, 5).resolved(), default=str))
    (tmp_path / "seed-5").mkdir()
    manifest = {"config": config, "processes": 2, "data": {}, "inputs": {}}
    (tmp_path / "seed-5" / "run.json").write_text(json.dumps(manifest))
    started = []
    monkeypatch.setattr(run_seeds, "train", started.append)
    monkeypatch.setattr(
        run_seeds,
        "PartialState",
        lambda: SimpleNamespace(
            num_processes=2, is_main_process=True, wait_for_everyone=lambda: None
        ),
    )
    train_seeds(run)
    assert len(started) == 1


@pytest.mark.slow
def test_the_same_command_goes_on_and_a_seed_more_trains_that_one(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    """Nothing of what is finished is written again."""
    assert recipe(train_data=phantom, seeds="3", **BRIEF) == 0
    output = tmp_path / "run"
    assert not (output / "seeds.json").exists()
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert recipe(train_data=phantom, seeds="3,4", **BRIEF) == 0
    assert read_json(output / "seeds.json")["seeds"] == [3, 4]
    again = {path: path.stat().st_mtime_ns for path in written if path.is_file()}
    changed = {
        str(path.relative_to(output)) for path in written if again.get(path) != written[path]
    }
    assert changed <= {"seed-3/run.json"}
    # One job for each seed: the folder that `--seeds` would make.
    alone = {"seed": 4, "output_dir": output / "seed-4"}
    before = (output / "seed-4" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert recipe(train_data=phantom, **alone, **BRIEF) == 0
    after = (output / "seed-4" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert before == after


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
