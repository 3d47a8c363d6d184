"""Whole runs on a tiny base: what they leave, and that they can be repeated and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline.entry import Recipe
from transformers import BatchFeature

import medrm
from medrm.cli import main as medrm_command
from medrm.models.training_images import DIGESTS_FILE
from medrm.pipeline.context import ReportRow, RunContext


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_leaves_the_run_folder(recipe: Recipe, phantom: Path, tmp_path: Path) -> None:
    controls = "zero_shot_verdict,zero_shot_averaged,zero_shot_likelihood,untrained_head,"
    controls += "frozen_probe,blank_images,shuffled_images,text_only"
    assert recipe(train_data=phantom / "votes.jsonl", controls=controls) == 0
    run = tmp_path / "run"
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        "before", "after", *controls.split(",")
    }  # fmt: skip
    for folder in (run / "evaluation").iterdir():
        assert {"verdicts.jsonl", "report.json", "official.csv"} <= {
            path.name for path in folder.iterdir()
        }
    assert [read_line["step"] for read_line in lines(run / "metrics.jsonl") if "loss" in read_line]
    manifest = read(run / "run.json")
    assert manifest["config"]["train_data"] == str(phantom / "votes.jsonl")
    assert manifest["versions"]["torch"]
    comparison = read(run / "comparison.json")
    assert comparison["primary"]["dimension"] == "accuracy"
    assert set(comparison["controls"]) == set(controls.split(","))
    assert comparison["differences"].keys() == {"readout"}
    assert comparison["comparable"]
    before = read(run / "evaluation" / "before" / "report.json")
    assert before["readout"] in ("verdict_probability", "likelihood")
    page = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert medrm_command(["report", str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8") == page
    assert not (run / "evaluation" / "frozen_probe" / "training").exists()


@pytest.mark.parametrize(
    ("controls", "readouts", "calls"),
    [
        ("zero_shot_likelihood", {"zero_shot_likelihood"}, 1),
        ("zero_shot_averaged", {"zero_shot_verdict", "zero_shot_averaged"}, 2),
        (
            "zero_shot_verdict,zero_shot_likelihood",
            {"zero_shot_verdict", "zero_shot_likelihood"},
            4,
        ),
        ("none", {"the better one"}, 3),
    ],
)
def test_what_is_not_asked_for_is_not_run(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    controls: str,
    readouts: set[str],
    calls: int,
) -> None:
    measured: list[str] = []
    measure = RunContext.measure

    def counted(context: RunContext, row: ReportRow) -> float:
        measured.append(row.name)
        return measure(context, row)

    monkeypatch.setattr(RunContext, "measure", counted)
    assert recipe(train_data=phantom, controls=controls, max_steps=2) == 0
    run = tmp_path / "run"
    assert measured[-1] == "after"
    assert len(measured) == calls + 1
    rows = {name for name in measured[:-1] if "/" not in name}
    chosen = read(run / "evaluation" / "before" / "report.json")["model"]
    assert rows == (readouts if controls != "none" else {chosen.rpartition("(")[2].rstrip(")")})
    assert {path.name for path in (run / "evaluation").iterdir()} == {*rows, "before", "after"}
    asked = set() if controls == "none" else set(controls.split(","))
    assert set(read(run / "comparison.json")["controls"]) == asked


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_after_is_what_the_saved_folder_scores(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    assert recipe(train_data=phantom / "votes.jsonl") == 0
    rm = medrm.load(tmp_path / "run" / "adapter", device="cpu")
    cases = {case.case_id: case for case in medrm.read_cases(phantom / "votes.jsonl")}
    column = rm.dimensions.index("accuracy")
    rows = [
        row
        for row in lines(tmp_path / "run" / "evaluation" / "after" / "verdicts.jsonl")
        if row["dimension"] == "accuracy" and row["protocol"] == "robust"
    ]
    assert len(rows) >= 4
    for row in rows:
        case = cases[row["case_id"]]
        scores = rm.score(case.images, case.question, case.answers)[:, column]
        # Alone instead of in a batch: 1e-5 is the promise of RewardModel.
        np.testing.assert_allclose(scores, [row["score_a"], row["score_b"]], atol=1e-5)


@pytest.mark.slow
def test_one_seed_gives_one_adapter_and_another_seed_another(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        assert recipe(train_data=phantom, seed=seed, output_dir=tmp_path / name) == 0
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert weights(tmp_path / "first") != weights(tmp_path / "third")


@pytest.mark.slow
def test_a_resumed_run_gives_the_adapter_of_the_straight_run(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    assert recipe(train_data=phantom, load_best_model_at_end="false", save_total_limit=3) == 0
    straight = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert recipe(train_data=phantom, load_best_model_at_end="false", save_total_limit=3) == 0
    assert weights(tmp_path / "run") == straight
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4]


def test_an_earlier_run_is_kept_unless_overwriting_is_asked(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert recipe(train_data=phantom, overwrite_output_dir="false") == 2
    assert "does not say which run it is of" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").read_text() == "{}"
    options = {"train_data": phantom, "overwrite_output_dir": "true"}
    assert recipe(**options, model_name_or_path="nobody/nothing") == 2
    assert (tmp_path / "run" / "run.json").read_text() == "{}"  # a run that cannot start
    assert recipe(train_data=phantom, max_steps=1, overwrite_output_dir="true") == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_separate_rows_give_the_run_of_shared_prefixes(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    accuracies = {}
    for word in ("on", "off"):
        assert recipe(train_data=phantom, shared_prefix=word, output_dir=tmp_path / word) == 0
        for name in ("before", "after"):
            setup = json.loads((tmp_path / word / "evaluation" / name / "report.json").read_text())
            assert setup["rounding"]["shared_prefix"] is (word == "on"), name
        accuracies[word] = json.loads((tmp_path / word / "comparison.json").read_text())["primary"]
    assert accuracies["on"] == accuracies["off"]


def copy_votes(source: Path, target: Path) -> None:
    """Copies the votes and images alone."""
    target.mkdir()
    shutil.copy(source / "votes.jsonl", target)
    shutil.copytree(source / "images", target / "images")


def spoil_first(folder: Path) -> str:
    """Cuts the image of the first case that has its image to itself; returns its id."""
    cases = medrm.read_cases(folder)
    names = [case.images[0].name for case in cases]
    chosen = next(case for case in cases if names.count(case.images[0].name) == 1)
    image = folder / chosen.images[0].name
    image.write_bytes(image.read_bytes()[:60])
    return chosen.case_id


def test_a_corrupt_training_image_is_set_aside_and_listed(
    recipe: Recipe, phantom: Path, other: Path, tmp_path: Path, capsys: Any
) -> None:
    copy_votes(phantom, tmp_path / "data")
    case_id = spoil_first(tmp_path / "data")
    options = {"train_data": tmp_path / "data", "benchmark": "phantom", "data_root": other}
    assert recipe(**options, max_steps=1, max_excluded_share=0) == 2
    assert case_id in capsys.readouterr().err
    assert recipe(**options, max_steps=1, max_excluded_share=0.05) == 0
    excluded = read(tmp_path / "run" / "run.json")["data"]["excluded"]
    assert [case["case_id"] for case in excluded] == [case_id]


def test_a_corrupt_benchmark_image_stays_in_the_denominator(
    recipe: Recipe, phantom: Path, other: Path, tmp_path: Path
) -> None:
    copy_votes(other, tmp_path / "data")
    case_id = spoil_first(tmp_path / "data")
    options = {"train_data": phantom, "benchmark": "phantom", "data_root": tmp_path / "data"}
    assert recipe(**options, max_steps=1) == 0
    rows = lines(tmp_path / "run/evaluation/after/verdicts.jsonl")
    bad = [row for row in rows if row["case_id"] == case_id]
    assert {(row["outcome"], row["reason"]) for row in bad} == {("unread", "bad_image")}
    report = read(tmp_path / "run/evaluation/after/report.json")
    accuracy = [row for row in rows if row["dimension"] == "accuracy" and row["label"] in "AB"]
    assert report["protocols"]["robust"]["dimensions"]["accuracy"]["n"] == len(accuracy) / 2


def test_a_shared_image_fails_the_run(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(train_data=phantom, benchmark="phantom", data_root=phantom) == 2
    assert "share content" in capsys.readouterr().err


def test_evaluate_and_compare_commands(
    recipe: Recipe, phantom: Path, other: Path, base: Path, tmp_path: Path, capsys: Any
) -> None:
    assert recipe(train_data=phantom, max_steps=1) == 0
    options = ["--benchmark", "phantom", "--data_root", str(other)]
    adapter = ["--model", str(tmp_path / "run" / "adapter")]
    zero_shot = ["--model", str(base), "--readout", "likelihood"]
    outputs = [tmp_path / "a", tmp_path / "b"]
    for model, output in zip((zero_shot, adapter), outputs, strict=True):
        assert medrm_command(["evaluate", *model, *options, "--output_dir", str(output)]) == 0
    compared = ["compare", *map(str, outputs), "--output_dir", str(tmp_path / "c")]
    assert medrm_command([*compared, "--allowed_differences", "readout"]) == 0
    assert read(tmp_path / "c" / "comparison.json")["comparable"]
    capsys.readouterr()
    seen = ["--benchmark", "phantom", "--data_root", str(phantom)]
    assert medrm_command(["evaluate", *adapter, *seen, "--output_dir", str(tmp_path / "d")]) == 2
    assert "trained on images" in capsys.readouterr().err
    after = read(tmp_path / "run" / "evaluation" / "after" / "report.json")
    distinct = len(np.load(tmp_path / "run" / DIGESTS_FILE))
    assert (after["leak_check"], read(outputs[0] / "report.json")["leak_check"]) == (
        "passed", "not_applicable"
    )  # fmt: skip
    evaluated = read(outputs[1] / "report.json")
    assert evaluated["leak_check"] == "passed"
    assert evaluated["leak_check_details"]["benchmark_images"] == 16
    assert evaluated["leak_check_details"]["training_images"] == distinct
    (tmp_path / base.name).symlink_to(base)
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "copied")
    copied = ["evaluate", "--model", str(tmp_path / "copied"), *seen, "--output_dir"]
    assert medrm_command([*copied, str(tmp_path / "e")]) == 0
    captured = capsys.readouterr()
    assert "leak_check: not_possible (whether it was" in captured.out
    assert medrm_command(["report", str(tmp_path / "e")]) == 0
    assert "leak_check: not_possible" in (tmp_path / "e" / "report.html").read_text()
    assert medrm_command(["rescore", str(tmp_path / "e")]) == 0
    unknown = read(tmp_path / "e" / "report.json")
    assert (unknown["leak_check"], unknown["leak_check_details"]["training_images"]) == (
        "not_possible", 0
    )  # fmt: skip


def test_text_only_and_several_answers(recipe: Recipe, tmp_path: Path) -> None:
    votes = [
        {
            "case_id": f"case-{number}", "images": [], "question": f"Which is number {number}?",
            "answers": [f"{number}", f"not {number}", "I do not know"], "annotator": "one",
            "votes": {"overall": [[0], [1, 2]] if number % 2 else [0, 2, 1]},
        }
        for number in range(30)
    ]  # fmt: skip
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    assert recipe(train_data=path, controls="zero_shot_likelihood,frozen_probe") == 0
    row = lines(tmp_path / "run/evaluation/after/verdicts.jsonl")[0]
    assert len(row["scores"]) == 3
    assert row["score_a"] is None


def test_an_image_without_effect_stops_the_run(
    recipe: Recipe, phantom: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path))  # where nothing is proven yet
    monkeypatch.setattr("medrm.models.vision_tower._batch", without_pixels)
    assert recipe(train_data=phantom, max_steps=1) == 2
    assert "Images do not reach the model" in capsys.readouterr().err


def without_pixels(processor: Any, image: Image.Image) -> BatchFeature:
    return BatchFeature(processor(text=["What does the image show?"], return_tensors="pt"))
