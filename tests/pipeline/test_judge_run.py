"""Whole runs of generative judges on a tiny base, and judges from the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.entry import Recipe
from presentations import by_order
from safetensors.torch import load_file
from torch import Tensor

import medrm
from medrm.cli import main as medrm_command
from medrm.config.options import JudgeOptions
from medrm.models.published_contract import images_of
from medrm.scorer.readouts.pair_judge import Judge


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_judge_run_leaves_the_run_folder(recipe: Recipe, phantom: Path, tmp_path: Path) -> None:
    controls = "base_skeleton,base_averaged,skeleton,blank_images,shuffled_images,text_only"
    options = {"objective": "judge_sft", "train_data": phantom / "votes.jsonl"}
    assert recipe(**options, controls=controls) == 0
    run = tmp_path / "run"
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        "before", "after", *controls.split(",")
    }  # fmt: skip
    for folder in (run / "evaluation").iterdir():
        recorded = set() if folder.name == "base_averaged" else {"responses.jsonl"}
        assert {"verdicts.jsonl", "report.json", *recorded} <= {
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
    assert "A generative judge" in (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert {field.name for field in fields(JudgeOptions)} <= read(run / "run.json")["config"].keys()
    for name in ("base_skeleton", "skeleton"):
        assert read(run / "evaluation" / name / "report.json")["readout"] == "skeleton"
    assert read(run / "evaluation" / "skeleton" / "report.json")["model"].endswith("(skeleton)")


@pytest.mark.slow
def test_a_saved_judge_gives_the_same_responses(
    recipe: Recipe, phantom: Path, other: Path, tmp_path: Path, capsys: Any
) -> None:
    options = {"objective": "judge_sft", "train_data": phantom / "votes.jsonl"}
    assert recipe(**options, controls="blank_images") == 0
    judge = medrm.load(tmp_path / "run" / "adapter", device="cpu")
    assert isinstance(judge, Judge)
    cases = {case.case_id: case for case in medrm.read_cases(phantom / "votes.jsonl")}
    for line in lines(tmp_path / "run" / "evaluation" / "after" / "responses.jsonl"):
        scored = by_order(judge, [cases[line["case_id"]]])
        again = next(response for response in scored if response.order == line["order"])
        assert again.responses[0].text == line["text"]  # alone instead of in a batch
        assert again.responses[0].prompt_digest == line["prompt_digest"]
    arguments = ["evaluate", "--model", str(tmp_path / "run" / "adapter"), "--benchmark", "phantom"]
    arguments += ["--data_root", str(other), "--output_dir", str(tmp_path / "again")]
    sampled = ["--readout", "votes", "--votes", "3", "--judge_temperature", "1"]
    assert medrm_command([*arguments, *sampled, "--max_new_tokens", "2"]) == 0
    report = read(tmp_path / "again" / "report.json")
    assert (report["settings"]["votes"], report["settings"]["max_new_tokens"]) == (3, 2)
    assert len(lines(tmp_path / "again" / "responses.jsonl")) == 6 * report["benchmark"]["cases"]
    capsys.readouterr()
    assert medrm_command([*arguments, "--judge_prompt", "json_short"]) == 2
    assert "keeps its prompt. Leave out --judge_prompt." in capsys.readouterr().err
    assert medrm_command([*arguments, "--readout", "likelihood"]) == 2
    assert "is scored by generate" in capsys.readouterr().err


def tensors(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def replies(folder: Path) -> dict[tuple[str, str], str]:
    return {(r["case_id"], r["order"]): r["text"] for r in lines(folder / "responses.jsonl")}


@pytest.mark.slow
def test_dpo_and_grpo_go_on_from_a_judge(
    recipe: Recipe,
    phantom: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {"train_data": phantom / "votes.jsonl"}
    sft = tmp_path / "sft"
    assert recipe(objective="judge_sft", **data, output_dir=sft, learning_rate=0.03) == 0
    seen = {"objective": "judge_sft", **data, "init_adapter": sft / "adapter", "crossfit": 2}
    assert recipe(**seen, output_dir=tmp_path / "seen") == 2
    assert "was trained on images of benchmark" in capsys.readouterr().err
    learned = replies(sft / "evaluation" / "after")
    assert learned != replies(sft / "evaluation" / "before")
    more = {**data, "controls": "init_adapter", "init_adapter": sft / "adapter"}
    dpo = {**more, "objective": "judge_dpo", "load_best_model_at_end": "false"}
    assert recipe(**dpo, output_dir=tmp_path / "dpo") == 0
    grpo = {**more, "num_generations": 2, "max_completion_length": 8}
    assert recipe(objective="judge_grpo", **grpo, output_dir=tmp_path / "grpo") == 0
    for run in (tmp_path / "dpo", tmp_path / "grpo"):
        assert set(read(run / "comparison.json")["controls"]) == {"init_adapter"}
        # Before the training it is the judge that was saved.
        assert replies(run / "evaluation" / "init_adapter") == learned
        assert tensors(run).keys() == tensors(sft).keys()  # without DPO's frozen copy
        assert not [path for path in (run / "adapter").iterdir() if path.is_dir()]
        assert medrm.load(run / "adapter", device="cpu").dimensions == medrm.DIMENSIONS
        assert "the LoRA adapter sft, trained further" in (run / "adapter/README.md").read_text()
    assert images_of(tmp_path / "dpo" / "adapter").gap is None
    start, straight = tensors(sft), tensors(tmp_path / "dpo")
    assert not all(torch.equal(straight[name], start[name]) for name in start)
    logged = lines(tmp_path / "grpo" / "metrics.jsonl")
    assert {"rewards/agreement/mean", "rewards/format/mean"} <= logged[0].keys()
    # Resumed, the preferences are still those to the adapter as it started.
    for name in ("adapter", "checkpoint-4"):
        shutil.rmtree(tmp_path / "dpo" / name)
    assert recipe(**dpo, output_dir=tmp_path / "dpo", resume_from_checkpoint="true") == 0
    resumed = tensors(tmp_path / "dpo")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    steps = [line["step"] for line in lines(tmp_path / "dpo/metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4]
    # Without the digests of the first adapter nobody can say what the next one has seen.
    (tmp_path / "tiny-base").symlink_to(base)
    shutil.copytree(sft / "adapter", tmp_path / "copied")
    unknown = {**data, "objective": "judge_sft", "init_adapter": tmp_path / "copied"}
    assert recipe(**unknown, output_dir=tmp_path / "on", max_steps=1) == 0
    report = read(tmp_path / "on" / "evaluation" / "after" / "report.json")
    assert report["leak_check"] == "not_possible"
    assert report["leak_check_details"]["training_images"] > 0
    line = "leak_check: not_possible (whether it was trained"
    assert line in " ".join(read(tmp_path / "on" / "comparison.json")["notes"])
    for page in ("report.html", "adapter/README.md"):
        assert line in (tmp_path / "on" / page).read_text().replace("\\_", "_")


@pytest.mark.slow
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
    arguments = ["evaluate", "--model", f"mock:{mock}", "--benchmark", "phantom"]
    arguments += ["--data_root", str(phantom), "--output_dir", str(tmp_path / "out")]
    assert medrm_command(arguments) == 0
    report = read(tmp_path / "out" / "report.json")
    measures = report["protocols"]["robust"]["dimensions"]["accuracy"]
    assert measures["accuracy"] == accuracy
    assert measures["consistency"] == pytest.approx(consistency)


@pytest.mark.parametrize("readout", ["generate", "skeleton", "votes"])
def test_a_base_from_the_command_line(
    base: Path, other: Path, tmp_path: Path, readout: str
) -> None:
    arguments = ["evaluate", "--model", str(base), "--benchmark", "phantom", "--readout", readout]
    arguments += ["--data_root", str(other), "--output_dir", str(tmp_path), "--max_new_tokens", "4"]
    if readout == "votes":
        arguments += ["--votes", "3", "--judge_temperature", "1"]
    assert medrm_command(arguments) == 0
    report = read(tmp_path / "report.json")
    assert report["readout"] == readout
    assert set(report["protocols"]) == {"official", "robust"}
    votes = 3 if readout == "votes" else 1
    assert len(lines(tmp_path / "responses.jsonl")) == 2 * votes * report["benchmark"]["cases"]
