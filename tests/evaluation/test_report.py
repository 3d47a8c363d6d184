"""Verdict rows, `report.json` and `official.csv` against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mock_scorers import (
    Judge,
    Rewards,
    make_benchmark,
    make_cases,
    oracle,
    ranked_case,
    rewarded,
)

from medrm.errors import ConfigError, DataError
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.records.jsonl import read_verdicts, write_rows
from medrm.evaluation.report import read_report
from medrm.scorer.verdict_rules import verdicts_of
from medrm.statistics.intervals import mean_interval

ROW_KEYS = [
    *("case_id", "dimension", "protocol", "order", "outcome", "reason", "label", "label_shares"),
    *("probability_a", "score_a", "score_b", "cluster", "groups"),
]
RESPONSE_KEYS = [
    *("case_id", "order", "dimension", "vote", "readout", "prompt_digest", "text"),
    *("probabilities", "finish_reason", "state", "reason", "rewards"),
]


def always_a(case: object) -> tuple[float, float]:
    return 1.0, 0.0


def accuracy_of(report: dict) -> dict:
    return report["protocols"]["robust"]["dimensions"]["accuracy"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scalar_rows(tmp_path: Path) -> None:
    evaluate(Rewards(always_a), make_benchmark(make_cases("AtB-")), tmp_path, "mock")
    rows = lines(tmp_path / "verdicts.jsonl")
    assert [list(row) for row in rows] == [ROW_KEYS] * 8  # 4 cases, 2 protocols, forward only
    assert {row["order"] for row in rows} == {"forward"}
    assert [row["label"] for row in rows[::2]] == ["A", "tie", "B", None]
    assert rows[0]["label_shares"] == [1, 0, 0]
    assert (rows[0]["score_a"], rows[0]["score_b"]) == (1, 0)
    assert rows[0]["probability_a"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert rows[0]["groups"] == {"organ": "brain"}
    responses = lines(tmp_path / "responses.jsonl")
    assert [list(line) for line in responses] == [RESPONSE_KEYS] * 4
    assert [line["rewards"] for line in responses] == [{"accuracy": [1.0, 0.0]}] * 4


def test_always_a(tmp_path: Path) -> None:
    """3 of 5 labels are A; the tie and the split vote are in no denominator."""
    report = evaluate(Rewards(always_a), make_benchmark(make_cases("AAABBt-")), tmp_path, "mock")
    measures = accuracy_of(report)
    assert measures["accuracy"] == pytest.approx(0.6)
    assert (measures["n"], measures["n_tie"], measures["clusters"]) == (5, 1, 3)
    assert measures["tie_accuracy"] == 0.0
    assert measures["kappa"] == 0.0
    assert measures["balanced_accuracy"] == 0.5
    assert measures["coverage"] == 1.0
    assert measures["consistency"] is None
    assert measures["first_rate"] is None
    assert measures["ci95"] == mean_interval([1, 1, 1, 0, 0], list("ppqqr")).bounds
    assert (measures["largest_cluster"], measures["parsed_accuracy"]) == (2, 0.6)
    assert measures["bounds"] == [0.6, 0.6]
    assert report["baselines"]["always_a"]["accuracy"] == pytest.approx(0.6)
    assert report["baselines"]["always_b"]["accuracy"] == pytest.approx(0.4)
    assert report["baselines"]["majority"]["accuracy"] == pytest.approx(0.6)
    assert report["baselines"]["longer"]["accuracy"] == pytest.approx(3 / 5)  # cases 0, 2 and 3


def test_official_table(tmp_path: Path) -> None:
    """Brain has labels A, A, B and lung A, B: the denominators differ, so micro is not macro."""
    benchmark = make_benchmark(make_cases("AAABB", "AABBB"), ("accuracy", "overall"))
    report = evaluate(Rewards(always_a), benchmark, tmp_path, "org/model")
    official = report["protocols"]["official"]
    assert official["organs"]["brain"] == {"accuracy": pytest.approx(2 / 3), "overall": None}
    assert official["organs"]["lung"]["accuracy"] == pytest.approx(1 / 2)
    assert official["micro"] == {"accuracy": pytest.approx(3 / 5), "overall": None}
    assert official["macro"]["accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (tmp_path / "official.csv").read_text(encoding="utf-8").splitlines() == [
        "modality,model,accuracy_acc,overall_acc",
        "brain,org/model,0.6667,",
        "lung,org/model,0.5000,",
    ]
    assert report["not_scored"] == ["overall"]
    assert report["protocols"]["robust"]["dimensions"]["overall"] is None
    assert report["ceiling"] == {"accuracy": 0.96, "overall": None}


def test_oracle_and_equal_scores(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("ABAB"))
    assert accuracy_of(evaluate(Rewards(oracle), benchmark, tmp_path, "o"))["accuracy"] == 1.0
    report = evaluate(
        Rewards(lambda case: (0.5, 0.5)), benchmark, tmp_path, "equal", overwrite=True
    )
    assert accuracy_of(report)["accuracy"] == 0.0
    assert report["protocols"]["official"]["micro"]["accuracy"] == 0.0
    assert {row.outcome for row in read_verdicts(tmp_path / "verdicts.jsonl")} == {"tie"}


def test_unread_cases_stay_and_are_wrong(tmp_path: Path) -> None:
    def rule(case: object) -> tuple[float, float] | None:
        return None if case.case_id == "case-000" else oracle(case)

    report = evaluate(Rewards(rule), make_benchmark(make_cases("ABAB")), tmp_path, "mock")
    measures = accuracy_of(report)
    assert (measures["accuracy"], measures["n"], measures["coverage"]) == (0.75, 4, 0.75)
    assert report["protocols"]["official"]["micro"]["accuracy"] == 0.75
    assert report["unread"] == {"bad_image": 1}
    row = read_verdicts(tmp_path / "verdicts.jsonl")[0]
    assert (row.outcome, row.reason, row.score_a) == ("unread", "bad_image", None)
    assert report["verdict_mass"] is None


def test_first_slot_judge(tmp_path: Path) -> None:
    """Whichever is shown first: right in exactly one of two orders, consistent never."""
    judge = Judge(lambda case, order: 0.9 if order == "forward" else 0.1)
    report = evaluate(judge, make_benchmark(make_cases("AAAB")), tmp_path, "mock")
    measures = accuracy_of(report)
    assert (measures["accuracy"], measures["consistency"], measures["first_rate"]) == (0.5, 0, 1)
    assert measures["ci95"] == [0.5, 0.5]
    assert report["protocols"]["official"]["micro"]["accuracy"] == 0.75  # forward only
    responses = lines(tmp_path / "responses.jsonl")
    assert [list(line) for line in responses] == [RESPONSE_KEYS] * 8
    assert responses[0]["probabilities"]["accuracy"] == pytest.approx([0.81, 0.09, 0.9])
    rows = lines(tmp_path / "verdicts.jsonl")
    assert len(rows) == 4 * 3  # robust in both orders, official in one
    assert rows[0]["probability_a"] == pytest.approx(0.9)
    assert rows[0]["score_a"] is None
    assert report["verdict_mass"] == pytest.approx(0.9)


def test_judge_with_an_unread_order(tmp_path: Path) -> None:
    """Case 0 is unread when reversed: half right, inconsistent, and outside the first rate."""

    def rule(case: object, order: str) -> float | None:
        if case.case_id == "case-000" and order == "reversed":
            return None
        return oracle(case)[0]

    report = evaluate(Judge(rule), make_benchmark(make_cases("AB")), tmp_path, "mock")
    measures = accuracy_of(report)
    assert (measures["accuracy"], measures["coverage"], measures["consistency"]) == (
        0.75,
        0.75,
        0.5,
    )
    assert measures["first_rate"] == 0.5
    states = [line["state"] for line in lines(tmp_path / "responses.jsonl")]
    assert states == ["ok", "too_long", "ok", "ok"]


def test_more_than_two_answers(tmp_path: Path) -> None:
    """Two of three votes put `best` on top; the scorer finds it in case 0 only."""
    cases = [ranked_case(0, best=2), ranked_case(1, best=1)]
    scorer = Rewards(lambda case: (0.0, 0.1, 0.7, 0.2))
    report = evaluate(scorer, make_benchmark(cases), tmp_path, "mock")
    row = lines(tmp_path / "verdicts.jsonl")[0]
    assert (row["outcome"], row["label"], row["score_a"]) == (2, 2, None)
    assert row["scores"] == pytest.approx([0.0, 0.1, 0.7, 0.2])
    assert row["label_shares"] == pytest.approx([1 / 3, 0, 2 / 3, 0])
    assert accuracy_of(report)["accuracy"] == 0.5
    assert "official" not in report["protocols"]  # which knows pairs only
    with pytest.raises(ConfigError, match="judges pairs"):
        evaluate(scorer, make_benchmark(cases), tmp_path, "mock", "official")


def test_protocol_choice_and_leftovers(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AB"))
    judge = Judge(lambda case, order: 0.7)
    evaluate(judge, benchmark, tmp_path, "mock")
    report = evaluate(
        Rewards(oracle), benchmark, tmp_path, "mock", overwrite=True, protocol="robust"
    )
    assert set(report["protocols"]) == {"robust"}
    files = ["cases.jsonl", "evaluation.json", "report.json", "responses.jsonl", "verdicts.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    with pytest.raises(ConfigError, match="Did you mean 'official'"):
        evaluate(Rewards(oracle), benchmark, tmp_path, "mock", protocol="offical")


def test_evaluating_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("ABAAB"))
    contents = []
    for order in (benchmark.cases, benchmark.cases[::-1]):
        again = make_benchmark(order)
        evaluate(
            Rewards(oracle), again, tmp_path, "mock", overwrite=True, settings={"dtype": "float32"}
        )
        contents.append((tmp_path / "report.json").read_bytes())
    assert contents[0] == contents[1]
    assert read_report(tmp_path)["settings"] == {"dtype": "float32"}


def test_rows_survive_the_file(tmp_path: Path) -> None:
    scored = [(case, np.array([[0.1], [0.3]], np.float32)) for case in make_cases("A-")]
    scored.append((ranked_case(0, 1), np.arange(4, dtype=np.float32)[:, None]))
    names = ("accuracy",)
    rows = [
        row
        for case, scores in scored
        for row in verdicts_of(case, [rewarded(case, scores)], names, (*names, "overall"))
    ]
    write_rows(tmp_path / "verdicts.jsonl", rows)
    assert read_verdicts(tmp_path / "verdicts.jsonl") == rows


def test_likelihood_states_no_probability() -> None:
    (case,) = make_cases("A")
    names = ("accuracy",)
    response = rewarded(case, np.array([[-1.0], [-2.0]], np.float32), readout="likelihood")
    (row,) = verdicts_of(case, [response], names, names, ("robust",))
    assert (row.outcome, row.probability_a, row.score_a) == ("A", None, -1.0)


def test_what_cannot_be_a_verdict_stops_the_run(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AB"))
    with pytest.raises(ValueError, match="case-000"):
        evaluate(Rewards(lambda case: (float("nan"), 0.0)), benchmark, tmp_path, "mock")
    with pytest.raises(DataError, match="no case"):
        evaluate(Rewards(oracle), make_benchmark([]), tmp_path, "mock")
    with pytest.raises(ConfigError, match="creativity"):
        evaluate(Rewards(oracle, ("creativity",)), benchmark, tmp_path, "mock")
    forgetful = Rewards(oracle)
    forgetful.respond = lambda cases: iter([rewarded(cases[0], np.zeros((2, 1)))])
    with pytest.raises(RuntimeError, match="passed over 1 cases"):
        evaluate(forgetful, benchmark, tmp_path, "mock", overwrite=True)
    assert not (tmp_path / "report.json").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no report\.json"):
        read_report(tmp_path)
    (tmp_path / "verdicts.jsonl").write_text('{"case_id": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_verdicts(tmp_path / "verdicts.jsonl")


def test_ties_are_scored_apart(tmp_path: Path) -> None:
    """Equal scores are right where the experts call a tie, wrong elsewhere."""
    report = evaluate(
        Rewards(lambda case: (1.0, 1.0)), make_benchmark(make_cases("ABtt")), tmp_path, "mock"
    )
    measures = accuracy_of(report)
    assert (measures["accuracy"], measures["n_tie"], measures["tie_accuracy"]) == (0.0, 2, 1.0)
