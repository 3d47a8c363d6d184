"""Cross-fitted runs: every case judged once, by a model that never saw its images."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe, refuse_models

import medrm
from medrm.data.images import examine
from medrm.models.published_contract import images_of
from medrm.models.training_images import digests_of

SMALL = {"max_steps": 2, "save_steps": 1, "eval_steps": 1}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_each_case_is_judged_once_by_a_model_that_never_saw_it(
    recipe: Recipe, phantom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="medrm")
    controls = "zero_shot_verdict,zero_shot_averaged,zero_shot_likelihood,blank_images"
    assert recipe(train_data=phantom / "votes.jsonl", crossfit=3, controls=controls, **SMALL) == 0
    run, cases = tmp_path / "run", medrm.read_cases(phantom / "votes.jsonl")
    assert not (run / "adapter").exists()
    assert "none is published" in caplog.text
    assert (run / "report.html").is_file()
    names = {"before", "after", *controls.split(",")}
    assert {path.name for path in (run / "evaluation").iterdir()} == names
    for name in names:
        pooled = lines(run / "evaluation" / name / "verdicts.jsonl")
        robust = {(row["case_id"], row["cluster"]) for row in pooled if row["protocol"] == "robust"}
        assert len(robust) == len(cases) == len({case_id for case_id, _ in robust})
        controls_alone = [
            lines(run / "folds" / f"{n}" / "evaluation" / name / "verdicts.jsonl")
            for n in (1, 2, 3)
        ]
        assert sorted(map(str, pooled)) == sorted(
            str(row) for rows in controls_alone for row in rows
        )
        assert read(run / "evaluation" / name / "report.json")["benchmark"]["cases"] == len(cases)
    check_folds(run, cases)
    set_digest = read(run / "run.json")["data"]["train"]["digest"]
    assert read(run / "evaluation" / "after" / "report.json")["benchmark"]["digest"] == set_digest
    comparison = read(run / "comparison.json")
    assert comparison["primary"]["n"] > 20
    assert comparison["comparable"]
    assert any(note.startswith("Conditional on these k = 3 models") for note in comparison["notes"])
    assert any("three seeds" in note for note in comparison["notes"])


def check_folds(run: Path, cases: list[medrm.Case]) -> None:
    """No model has seen an image of its fold; the report and run.json tell of each fold."""
    facts, told = examine(cases), read(run / "run.json")["data"]["crossfit"]
    report = read(run / "evaluation" / "after" / "report.json")["crossfit"]
    assert told["folds"] == report["folds"] == 3
    readouts = set()
    for number, (planned, measured) in enumerate(
        zip(told["per_fold"], report["per_fold"], strict=True), start=1
    ):
        folder = run / "folds" / str(number)
        contract = read(folder / "adapter" / "medrm.json")
        rows = lines(folder / "evaluation" / "after" / "verdicts.jsonl")
        judged = [case for case in cases if case.case_id in {row["case_id"] for row in rows}]
        judged_pixels = digests_of(
            facts[image.digest].pixel_digest for case in judged for image in case.images
        )
        known = images_of(folder / "adapter")
        assert known.gap is None
        assert len(known.digests) == contract["training_images"]["count"] > 0
        assert not set(judged_pixels.tolist()) & set(known.digests.tolist())
        assert planned["cases"] == measured["cases"] == len(judged)
        assert planned["train"] + planned["development"] + planned["cases"] == len(cases)
        assert measured["temperature"] > 0
        assert 0 <= measured["calibration"]["scaled"]["ece"] <= 1
        assert lines(folder / "metrics.jsonl")
        readouts.add(read(folder / "evaluation" / "before" / "report.json")["readout"])
        readouts.add(read(run / "evaluation" / "before" / "report.json")["readout"])
    assert len(readouts) == 1


def verdicts(run: Path) -> dict[str, str]:
    """The text of each pooled file of verdicts and responses."""
    return {
        str(path.relative_to(run)): path.read_text(encoding="utf-8")
        for path in (run / "evaluation").rglob("*.jsonl")
    }


def stop_in_second_fold(run: Path) -> None:
    """Leaves what a run leaves that is killed in its second fold, while it writes a checkpoint."""
    # The run may as well be killed where `before` is replaced by the readout chosen for all folds.
    before = run / "folds" / "1" / "evaluation" / "before"
    for path in (run / "evaluation", before, run / "folds" / "2" / "adapter"):
        shutil.rmtree(path)
    for name in ("comparison.json", "report.html", "finished.json"):
        (run / name).unlink()
    (run / "folds" / "2" / "checkpoint-2" / "trainer_state.json").unlink()


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_second_fold(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Two readouts, so that all folds together choose which of them is `before`.
    readouts = {"controls": "zero_shot_verdict,zero_shot_likelihood"}
    options = {"train_data": phantom, "crossfit": 2, "save_total_limit": 3, **readouts, **SMALL}
    assert recipe(**options) == 0
    run = tmp_path / "run"
    straight, before = verdicts(run), (run / "folds" / "1" / "adapter" / "medrm.json").stat()
    stop_in_second_fold(run)
    assert recipe(**options, seed=5) == 2
    assert "seed: 0 then, 5 now" in capsys.readouterr().err
    assert recipe(**options) == 0
    assert verdicts(run) == straight
    refuse_models(monkeypatch)
    page = (run / "report.html").stat().st_mtime_ns
    assert recipe(**options) == 0
    assert (run / "report.html").stat().st_mtime_ns == page
    monkeypatch.undo()
    assert recipe(**options, output_dir=tmp_path / "apart", stages="before") == 0
    assert recipe(**options, output_dir=tmp_path / "apart", stages="compare") == 2
    assert "needs the stage after" in capsys.readouterr().err
    assert recipe(**options, output_dir=tmp_path / "apart") == 0
    assert verdicts(tmp_path / "apart") == straight
    assert (run / "folds" / "1" / "adapter" / "medrm.json").stat().st_mtime == before.st_mtime
    steps = [row["step"] for row in lines(run / "folds" / "2" / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2]


@pytest.mark.slow
def test_a_judge_is_cross_fitted(recipe: Recipe, other: Path, tmp_path: Path) -> None:
    options = {"objective": "judge_sft", "train_data": other, "controls": "skeleton", **SMALL}
    assert recipe(**options, crossfit=2) == 0
    run, cases = tmp_path / "run", medrm.read_cases(other)
    for name in ("before", "after", "skeleton"):
        responses = lines(run / "evaluation" / name / "responses.jsonl")
        assert Counter(line["case_id"] for line in responses) == {case.case_id: 2 for case in cases}
    for fold in read(run / "evaluation" / "after" / "report.json")["crossfit"]["per_fold"]:
        assert fold["calibration"] is None  # a written verdict has no probability
        assert fold["temperature"] is None
    assert set(read(run / "comparison.json")["controls"]) == {"skeleton"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crossfit": 1}, "give 2 to 20 folds"),
        ({"crossfit": 21}, "give 2 to 20 folds"),
        ({"crossfit": 3, "split_by_cluster": "0.7,0.1,0.2"}, "there is no test part"),
        ({"crossfit": 3, "benchmark": "phantom"}, "train_data and benchmark are two"),
        ({"crossfit": 3, "push_to_hub": "true"}, "push_to_hub publishes one adapter"),
        ({"crossfit": 3, "resume_from_checkpoint": "x"}, "goes on in its own folder"),
    ],
)
def test_what_a_cross_fitted_run_refuses(
    recipe: Recipe,
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    assert recipe(train_data=phantom, **options) == 2
    assert message in capsys.readouterr().err
