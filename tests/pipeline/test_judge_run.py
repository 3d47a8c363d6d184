"""Whole runs of generative judges on a tiny base, and judges from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe

import medrm
from medrm.cli import main as medrm_command
from medrm.scorer.judge import Judge


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_judge_run_leaves_the_run_folder(recipe: Recipe, phantom: Path, tmp_path: Path) -> None:
    controls = "base_skeleton,skeleton,blank_images"
    options = {"objective": "judge_sft", "train_data": phantom / "votes.jsonl"}
    assert recipe(**options, controls=controls) == 0
    run = tmp_path / "run"
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        "before", "after", *controls.split(",")
    }  # fmt: skip
    for folder in (run / "evaluation").iterdir():
        assert {"responses.jsonl", "verdicts.jsonl", "report.json"} <= {
            path.name for path in folder.iterdir()
        }
    comparison = read(run / "comparison.json")
    assert comparison["comparable"]
    assert set(comparison["controls"]) == set(controls.split(","))
    responses = lines(run / "evaluation" / "after" / "responses.jsonl")
    cases = {row["case_id"] for row in lines(run / "evaluation" / "after" / "verdicts.jsonl")}
    assert len(responses) == 2 * len(cases)
    assert {line["order"] for line in responses} == {"forward", "reversed"}
    contract = read(run / "adapter" / "medrm.json")
    assert contract["readout"] == "generate"
    assert contract["head"] is None
    assert contract["judge"]["prompt"] == "json"
    assert "judge" in (run / "adapter" / "README.md").read_text(encoding="utf-8")


def test_a_saved_judge_gives_the_same_responses(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    options = {"objective": "judge_sft", "train_data": phantom / "votes.jsonl"}
    assert recipe(**options, controls="blank_images") == 0
    judge = medrm.load(tmp_path / "run" / "adapter", device="cpu")
    assert isinstance(judge, Judge)
    cases = {case.case_id: case for case in medrm.read_cases(phantom / "votes.jsonl")}
    for line in lines(tmp_path / "run" / "evaluation" / "after" / "responses.jsonl"):
        scored = judge.judge([cases[line["case_id"]]])
        again = next(one for one in scored if one.order == line["order"])
        assert again.responses[0].text == line["text"]  # alone instead of in a batch
        assert again.responses[0].prompt_digest == line["prompt_digest"]


def test_dpo_and_grpo_go_on_from_a_judge(recipe: Recipe, phantom: Path, tmp_path: Path) -> None:
    data = {"train_data": phantom / "votes.jsonl", "controls": "init_adapter"}
    assert recipe(objective="judge_sft", **data, output_dir=tmp_path / "sft") == 0
    start = {"init_adapter": tmp_path / "sft" / "adapter"}
    for name in ("judge_dpo", "judge_grpo"):
        extra = {"num_generations": 2, "max_completion_length": 8} if name == "judge_grpo" else {}
        output = tmp_path / name
        assert recipe(objective=name, **data, **start, **extra, output_dir=output) == 0
        assert set(read(output / "comparison.json")["controls"]) == {"init_adapter"}
        before = (tmp_path / "sft" / "adapter" / "adapter_model.safetensors").read_bytes()
        if name == "judge_dpo":  # a tiny judge writes nothing that GRPO could reward
            assert (output / "adapter" / "adapter_model.safetensors").read_bytes() != before
        assert medrm.load(output / "adapter", device="cpu").dimensions == medrm.DIMENSIONS


def test_dpo_on_answers_gives_an_implicit_reward(
    recipe: Recipe, phantom: Path, tmp_path: Path
) -> None:
    assert (
        recipe(
            objective="judge_dpo",
            dpo_pairs="answers",
            dimensions="overall",
            primary_dimension="overall",
            train_data=phantom / "votes.jsonl",
            allowed_differences="readout",
            controls="blank_images",
        )
        == 0
    )
    rm = medrm.load(tmp_path / "run" / "adapter", device="cpu")
    assert rm.readout == "implicit_reward"
    assert rm.score(images=[], question="Is there a lesion?", answers=["Yes.", "No."]).shape == (
        2, 1
    )  # fmt: skip


def test_grpo_needs_a_judge_to_start_from(
    recipe: Recipe, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(objective="judge_grpo", train_data=phantom / "votes.jsonl") == 2
    assert "init_adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mock", "accuracy", "consistency"), [("oracle", 1.0, 1.0), ("first-slot", 0.5, 0.0)]
)
def test_mocks_from_the_command_line(
    phantom: Path, tmp_path: Path, mock: str, accuracy: float, consistency: float
) -> None:
    words = ["evaluate", "--model", f"mock:{mock}", "--benchmark", "phantom"]
    words += ["--data_root", str(phantom), "--output_dir", str(tmp_path / "out")]
    assert medrm_command(words) == 0
    report = read(tmp_path / "out" / "report.json")
    measures = report["protocols"]["robust"]["dimensions"]["accuracy"]
    assert measures["accuracy"] == accuracy
    assert measures["consistency"] == pytest.approx(consistency)


@pytest.mark.parametrize("readout", ["generate", "skeleton", "votes"])
def test_a_base_from_the_command_line(
    base: Path, other: Path, tmp_path: Path, readout: str
) -> None:
    words = ["evaluate", "--model", str(base), "--benchmark", "phantom", "--readout", readout]
    words += ["--data_root", str(other), "--output_dir", str(tmp_path), "--max_new_tokens", "4"]
    if readout == "votes":
        words += ["--votes", "3", "--judge_temperature", "1"]
    assert medrm_command(words) == 0
    report = read(tmp_path / "report.json")
    assert report["readout"] == readout
    assert set(report["protocols"]) == {"official", "robust"}
    votes = 3 if readout == "votes" else 1
    assert len(lines(tmp_path / "responses.jsonl")) == 2 * votes * report["benchmark"]["cases"]
