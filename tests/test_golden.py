"""Files that version 0.1.0 wrote: every later version loads, scores, compares and reports them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medrm.cli import main
from medrm.parsers import PARSER_VERSION

GOLDEN = Path(__file__).resolve().parent / "golden"
"""Adapters, evaluations and a comparison of 0.1.0; votes and images are synthetic."""

TOLERANCE = 1e-6
"""Of scores: other kernels round otherwise."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(found: Any, golden: Any, path: str = "") -> None:
    """Everything that the golden value says, the other says too; further keys may have come."""
    if isinstance(golden, dict):
        for key, value in golden.items():
            assert key in found, f"{path}.{key} is gone"
            same(found[key], value, f"{path}.{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), path
        for number, (one, other) in enumerate(zip(found, golden, strict=True)):
            same(one, other, f"{path}[{number}]")
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=TOLERANCE, abs=TOLERANCE), path
    else:
        assert found == golden, path


def evaluate(model: str, output: Path, *options: str) -> None:
    data = ["--benchmark", "med_rewardbench", "--data_root", str(GOLDEN / "cases")]
    arguments = ["--model", model, *data, "--no_images", "--output_dir", str(output), *options]
    assert main(["evaluate", *arguments]) == 0


@pytest.mark.parametrize(
    ("model", "name", "options"),
    [
        (str(GOLDEN / "reward_adapter"), "reward", ()),
        (str(GOLDEN / "judge_adapter"), "judge", ()),
        ("phantom-base", "base_likelihood", ("--readout", "likelihood")),
    ],
)
def test_models_score_as_then(
    tmp_path: Path, model: str, name: str, options: tuple[str, ...]
) -> None:
    evaluate(model, tmp_path / "now", *options)
    golden = GOLDEN / "evaluations" / name
    assert lines(golden / "verdicts.jsonl")
    same(lines(tmp_path / "now" / "verdicts.jsonl"), lines(golden / "verdicts.jsonl"))
    if (golden / "responses.jsonl").is_file():
        same(lines(tmp_path / "now" / "responses.jsonl"), lines(golden / "responses.jsonl"))


@pytest.mark.parametrize(
    ("model", "readout"),
    [("phantom-base", "verdict_probability"), (str(GOLDEN / "judge_adapter"), "skeleton")],
)
def test_probabilities_are_those_of_then(tmp_path: Path, model: str, readout: str) -> None:
    evaluate(model, tmp_path / "now", "--readout", readout)
    golden = lines(GOLDEN / "probabilities" / f"{readout}.jsonl")
    assert golden
    same(lines(tmp_path / "now" / "responses.jsonl"), golden)


def test_evaluations_compare_as_then(tmp_path: Path) -> None:
    folders = [str(GOLDEN / "evaluations" / name) for name in ("base_likelihood", "reward")]
    declared = ["--allowed_differences", "readout", "--output_dir", str(tmp_path)]
    assert main(["compare", *folders, *declared]) == 0
    golden = json.loads((GOLDEN / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    assert golden["comparable"]
    same(json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8")), golden)


@pytest.mark.parametrize("name", ["base_likelihood", "reward", "judge"])
def test_evaluations_are_reported(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN / "evaluations" / name, tmp_path / name)
    assert main(["report", str(tmp_path / name), "--export"]) == 0
    assert "golden-03" in (tmp_path / name / "report.html").read_text(encoding="utf-8")


def test_a_judge_is_scored_again_as_then(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "evaluations" / "judge", tmp_path / "judge")
    for name in ("report.json", "verdicts.jsonl", "official.csv"):
        (tmp_path / "judge" / name).unlink()
    assert main(["rescore", str(tmp_path / "judge")]) == 0
    for name in ("report.json", "verdicts.jsonl"):
        golden, now = GOLDEN / "evaluations" / "judge" / name, tmp_path / "judge" / name
        read = lines if name.endswith("l") else lambda p: json.loads(p.read_text(encoding="utf-8"))
        then = read(golden)
        if name == "report.json":
            # A reply is read by the parser of today, and the report says by which.
            then["settings"]["parser"] = PARSER_VERSION
        same(read(now), then)
