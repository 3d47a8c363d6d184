"""The mock judges' known answers, through prompt, reply, parser and report, on a phantom set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import fmean

import pytest
from scorer.cases import mock_judge

from medrm.data.case_set import read_set
from medrm.data.phantom.phantom_set import write_phantom
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.report import Report
from medrm.schema import DIMENSIONS, PairLabel


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(folder, cases=150, seed=21)
    return Benchmark("phantom", read_set(str(folder)))


def judged(name: str, benchmark: Benchmark, folder: Path) -> tuple[Report, dict, dict]:
    """The report, and the robust measures and official micro accuracies by dimension."""
    judge = mock_judge(name, DIMENSIONS)
    report = evaluate(
        judge, benchmark, folder, f"mock:{name}", settings=judge.settings, overwrite=True
    )
    assert report["protocols"]["official"]["label"] == "official scorer, medrm prompt"
    robust = report["protocols"]["robust"]["dimensions"]
    assert tuple(robust) == DIMENSIONS
    return report, robust, report["protocols"]["official"]["micro"]


def test_always_a(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, official = judged("always-a", benchmark, tmp_path)
    for name in DIMENSIONS:
        share = report["baselines"]["always_a"][name]
        assert robust[name]["accuracy"] == official[name] == pytest.approx(share)
        assert (robust[name]["consistency"], robust[name]["first_rate"]) == (1, 0.5)
        assert robust[name]["coverage"] == 1
        # The same answer twice: right in both orders or in none, and no slot wins twice.
        assert robust[name]["both_correct"] == robust[name]["net_correct"] == pytest.approx(share)
        flips = robust[name]["flips"]
        assert (flips["first_twice"], flips["second_twice"], flips["skew"]) == (0, 0, None)
        assert robust[name]["position_gap"] == 0.0
        assert robust[name]["balanced_accuracy"] == 0.5
        labelled = [
            label.choice
            for case in benchmark.cases
            if isinstance(label := case.labels.get(name), PairLabel) and label.choice in (0, 1)
        ]
        assert robust[name]["n"] == len(labelled)
        assert share == pytest.approx(labelled.count(0) / len(labelled))


def test_first_slot(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, official = judged("first-slot", benchmark, tmp_path)
    for name in DIMENSIONS:
        assert robust[name]["accuracy"] == report["baselines"]["first_slot"][name] == 0.5
        assert (robust[name]["consistency"], robust[name]["first_rate"]) == (0, 1)
        assert (robust[name]["both_correct"], robust[name]["net_correct"]) == (0, 0)
        assert (robust[name]["position_gap"], robust[name]["flips"]["skew"]) == (1, -1)
        assert robust[name]["flips"]["first_twice"] == len(benchmark.cases)
        assert official[name] == pytest.approx(report["baselines"]["always_a"][name])


def test_longer_and_oracle(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, official = judged("longer", benchmark, tmp_path)
    for name in DIMENSIONS:
        expected = report["baselines"]["longer"][name]
        assert robust[name]["accuracy"] == official[name] == pytest.approx(expected)
    report, robust, official = judged("oracle", benchmark, tmp_path)
    assert {robust[name]["accuracy"] for name in DIMENSIONS} == {1.0}
    assert set(official.values()) == {1.0}
    means = report["protocols"]["robust"]["means"]
    assert (means["mean"]["accuracy"], means["joint"]["accuracy"]) == (1.0, 1.0)
    assert {robust[name]["kappa"] for name in DIMENSIONS} == {1.0}
    assert {robust[name]["ac1"] for name in DIMENSIONS} == {1.0}
    assert report["structure"]["halo"] == 0.0
    for own, experts in zip(*(report["structure"][k] for k in ("phi", "phi_label")), strict=True):
        assert own == pytest.approx(experts)
    assert {entry["bias"] for entry in report["length"].values()} == {0.0}


def test_the_longer_answer_is_a_length_bias(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, _ = judged("longer", benchmark, tmp_path)
    for name in DIMENSIONS:
        entry = report["length"][name]
        assert (entry["longer_rate"], entry["accuracy_longer"], entry["accuracy_shorter"]) == (
            *(1.0, 1.0, 0.0),
        )
        assert entry["bias"] == pytest.approx(1 - entry["longer_rate_label"])
        assert robust[name]["both_correct"] == pytest.approx(robust[name]["accuracy"])
    assert report["structure"]["all_same"] == 1.0  # one answer is the longer one on all


def test_what_is_malformed_is_format_alone(benchmark: Benchmark, tmp_path: Path) -> None:
    """From the oracle to the same with malformed replies: coverage is lost, no judgement."""
    judged("oracle", benchmark, tmp_path / "before")
    _, robust, _ = judged("oracle-malformed-10", benchmark, tmp_path / "after")
    result = compare(tmp_path / "before", tmp_path / "after")
    for name in DIMENSIONS:
        lost = 1 - robust[name]["accuracy"]
        assert result["dimensions"][name]["delta"] == pytest.approx(-lost)
        assert result["gain"][name]["format"] == pytest.approx(-lost)
        assert result["gain"][name]["judgement"] == pytest.approx(0.0)
        assert robust[name]["parsed_accuracy"] == pytest.approx(1.0)
        assert robust[name]["bounds"] == pytest.approx([1 - lost, 1.0])
    rails = {name: rail["state"] for name, rail in result["guardrails"].items()}
    assert rails["coverage"] == rails["consistency"] == "failed"
    assert (rails["first_rate"], rails["halo"]) == ("held", "held")
    assert result["verdict"] == "Regressed"


def test_oracle_malformed_10(benchmark: Benchmark, tmp_path: Path) -> None:
    """Right but where its reply cannot be read: the share of those cases is lost, no more."""
    malformed = {
        case.case_id
        for case in benchmark.cases
        if int(hashlib.sha256(case.case_id.encode()).hexdigest(), 16) % 10 == 0
    }
    assert malformed
    report, robust, official = judged("oracle-malformed-10", benchmark, tmp_path)
    for name in DIMENSIONS:
        labelled = [
            case.case_id not in malformed
            for case in benchmark.cases
            if isinstance(label := case.labels.get(name), PairLabel) and label.choice in (0, 1)
        ]
        assert robust[name]["accuracy"] == official[name] == pytest.approx(fmean(labelled))
        share = len(malformed) / len(benchmark.cases)
        assert robust[name]["coverage"] == robust[name]["consistency"] == pytest.approx(1 - share)
    assert list(report["unread"].values()) == [len(malformed)]
    assert report["parsing"]["strict"]["stages"]["none"] == 2 * len(malformed)


def test_refuse(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, official = judged("refuse", benchmark, tmp_path)
    for name in DIMENSIONS:
        measures = robust[name]
        assert (measures["accuracy"], measures["coverage"], measures["consistency"]) == (0, 0, 0)
        assert (measures["first_rate"], measures["flips"]) == (None, None)
        assert (measures["both_correct"], measures["parsed_accuracy"]) == (0, None)
        assert measures["bounds"] == [0.0, 1.0]
    assert report["structure"]["all_same"] is None
    assert set(official.values()) == {0.0}
    assert report["parsing"]["official"]["stages"] == {"none": len(benchmark.cases)}


def test_random_is_near_one_half(benchmark: Benchmark, tmp_path: Path) -> None:
    report, robust, _ = judged("random", benchmark, tmp_path)
    for name in DIMENSIONS:
        assert abs(robust[name]["accuracy"] - 0.5) < 0.13  # 4 standard errors of 2 x 120 coins
        assert report["baselines"]["random"][name] == 0.5
    assert 0.3 < robust["overall"]["consistency"] < 0.7
    for name in DIMENSIONS:  # one coin an order: both heads in a quarter
        assert abs(robust[name]["both_correct"] - 0.25) < 0.16
        assert abs(robust[name]["net_correct"] - 0.25) < 0.16


def test_evaluating_a_judge_twice_writes_the_same_bytes(
    benchmark: Benchmark, tmp_path: Path
) -> None:
    files = ("report.json", "verdicts.jsonl", "responses.jsonl", "official.csv")
    for folder in ("one", "two"):
        judged("random", benchmark, tmp_path / folder)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    line = json.loads((tmp_path / "one/responses.jsonl").read_text("utf-8").split("\n")[0])
    assert line["state"] == "ok"
    assert len(line["prompt_digest"]) == 64
