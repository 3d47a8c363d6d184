"""A judge with both orders averaged: position cancels out, and what is left of a gain is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mock_scorers import Judge, Rewards, make_benchmark, make_cases, oracle

from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.records.jsonl import read_responses, read_verdicts
from medrm.evaluation.report import Report
from medrm.schema import Case
from medrm.scorer.readouts.pair_judge import AveragedOrders

BENCHMARK = make_benchmark(make_cases("AB" * 20))


def first_slot_with_a_hint(case: Case, order: str) -> float:
    """0.8 for the answer shown first, give or take 0.1 towards the better one."""
    return (0.8 if order == "forward" else 0.2) + (0.1 if oracle(case)[0] else -0.1)


def averaged(folder: Path, rule: Callable[[Case, str], float | None]) -> Report:
    """Evaluates a judge into `folder`/judge, and its averaged verdict into `folder`/averaged."""
    judge = Judge(rule)
    evaluate(judge, BENCHMARK, folder / "judge", "judge")
    responses = read_responses(folder / "judge" / "responses.jsonl")
    scorer = AveragedOrders(responses, judge.dimensions, {})
    return evaluate(scorer, BENCHMARK, folder / "averaged", "averaged")


def test_position_cancels_out(tmp_path: Path) -> None:
    report = averaged(tmp_path, first_slot_with_a_hint)
    assert report["protocols"]["robust"]["dimensions"]["accuracy"]["accuracy"] == 1.0
    assert report["protocols"]["robust"]["dimensions"]["accuracy"]["consistency"] is None
    for row in read_verdicts(tmp_path / "averaged" / "verdicts.jsonl"):
        mean = 0.6 if row.label == "A" else 0.4  # of 0.9 and 0.3, of 0.7 and 0.1
        assert row.order == "forward"
        assert row.probability_a == row.score_a == pytest.approx(mean)
        assert row.score_b == pytest.approx(1 - mean)


def test_position_alone_is_a_tie(tmp_path: Path) -> None:
    averaged(tmp_path, lambda _, order: 0.8125 if order == "forward" else 0.1875)
    rows = read_verdicts(tmp_path / "averaged" / "verdicts.jsonl")
    assert {row.outcome for row in rows} == {"tie"}


def test_an_order_that_was_not_read_leaves_the_case_unread(tmp_path: Path) -> None:
    def rule(case: Case, order: str) -> float | None:
        return None if case.case_id == "case-000" and order == "reversed" else 0.75

    averaged(tmp_path, rule)
    rows = read_verdicts(tmp_path / "averaged" / "verdicts.jsonl")
    unread = [(row.case_id, row.reason) for row in rows if row.outcome == "unread"]
    assert set(unread) == {("case-000", "too_long")}


def test_no_mass_on_either_answer_is_unread_not_a_number(tmp_path: Path) -> None:
    averaged(tmp_path, first_slot_with_a_hint)
    responses = list(read_responses(tmp_path / "judge" / "responses.jsonl"))
    responses[1] = replace(responses[1], probabilities={"accuracy": (0.0, 0.0, 0.0)})
    first, second = AveragedOrders(responses, ("accuracy",), {}).respond(BENCHMARK.cases[:2])
    assert (first.rewards, first.reason) == (None, "no_mass")
    assert second.rewards is not None


def test_what_is_left_of_a_gain_is_said(tmp_path: Path) -> None:
    """Position decides alone before (50 %); averaged it is right in 40 of 40, as after."""
    averaged(tmp_path, first_slot_with_a_hint)
    before = tmp_path / "judge"
    evaluate(Rewards(oracle), BENCHMARK, tmp_path / "after", "after")
    controls = {"zero_shot_averaged": tmp_path / "averaged"}
    result = compare(before, tmp_path / "after", controls=controls, allowed_differences=["readout"])
    (note,) = result["notes"]
    assert note.startswith("It is not shown that the gain is more than the base's position bias")
    assert "100.0 % on accuracy, not in 50.0 %; against that the trained model is at +0.0" in note
    # Where the averages are no better, nothing is said.
    result = compare(tmp_path / "after", tmp_path / "after", controls=controls)
    assert not any("position bias" in one for one in result["notes"])
