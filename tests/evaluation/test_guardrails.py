"""Guardrails: what fails them, what is noise, and where they do not apply."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle, ranked_case

from medrm.evaluation.compare import compare
from medrm.evaluation.comparison.gate import MARGINS, non_inferiority_checks
from medrm.evaluation.comparison.pairing import read_evaluation
from medrm.evaluation.evaluator import evaluate
from medrm.schema import Case, RankingLabel

NAMES = ("accuracy", "relevance", "creativity")


def number_of(case: Case) -> int:
    return int(case.case_id[-3:])


def rails(tmp_path: Path, before: object, after: object, letters: str = "AB" * 50) -> dict:
    benchmark = make_benchmark(make_cases(letters))
    for name, scorer in (("before", before), ("after", after)):
        evaluate(scorer, benchmark, tmp_path / name, name, overwrite=True)
    return compare(tmp_path / "before", tmp_path / "after")["guardrails"]


def reads(unread: range) -> Judge:
    """Right where it reads, in both orders."""
    return Judge(lambda case, order: None if number_of(case) in unread else oracle(case)[0])


def flips(flipped: range, order_lost: str = "reversed") -> Judge:
    """Right in both orders, but in one of them where the case is flipped."""

    def rule(case: Case, order: str) -> float:
        right = oracle(case)[0]
        return 1 - right if number_of(case) in flipped and order == order_lost else right

    return Judge(rule)


def test_coverage_by_hand(tmp_path: Path) -> None:
    """10 of 100 cases are lost: 10 points, clear of zero."""
    rail = rails(tmp_path, reads(range(0)), reads(range(10)))["coverage"]
    assert (rail["before"], rail["after"], rail["margin"]) == (1.0, 0.9, 0.01)
    assert rail["loss"] == pytest.approx(0.1)
    assert rail["ci95"][0] > 0
    assert rail["state"] == "failed"
    assert rails(tmp_path, reads(range(10)), reads(range(0)))["coverage"]["state"] == "held"


def test_a_loss_within_the_margin_is_held(tmp_path: Path) -> None:
    """One of 100 cases is 1 point, the margin of coverage."""
    assert rails(tmp_path, reads(range(0)), reads(range(1)))["coverage"]["state"] == "held"


def test_a_loss_that_noise_explains_is_held(tmp_path: Path) -> None:
    """Two points of balanced accuracy lost (8 fixed, 10 broken): the interval holds zero."""

    def wrong_in(cases: range) -> Rewards:
        return Rewards(lambda case: oracle(case)[:: -1 if number_of(case) in cases else 1])

    rail = rails(tmp_path, wrong_in(range(0, 32, 4)), wrong_in(range(1, 40, 4)))[
        "balanced_accuracy"
    ]
    assert rail["loss"] == pytest.approx(0.02)
    assert rail["ci95"][0] < 0 < rail["ci95"][1]
    assert rail["state"] == "held"


def test_consistency_and_the_first_slot(tmp_path: Path) -> None:
    """20 cases labelled A or B alike flip to the answer shown first."""

    def primacy(case: Case, order: str) -> float:
        if number_of(case) < 20:
            return float(order == "forward")
        return oracle(case)[0]

    found = rails(tmp_path, flips(range(0)), Judge(primacy))
    assert (found["consistency"]["state"], found["consistency"]["after"]) == ("failed", 0.8)
    first = found["first_rate"]
    assert (first["before"], first["after"], first["state"]) == (0.5, 0.6, "failed")
    assert first["loss"] == pytest.approx(0.1)
    # From one side to the other at the same distance is no loss.
    recency = Judge(lambda case, order: 1 - primacy(case, order) if number_of(case) < 20 else 0.9)
    back = rails(tmp_path, Judge(primacy), recency)["first_rate"]
    assert (back["before"], back["after"]) == (0.6, 0.4)
    assert back["loss"] == pytest.approx(0.0)
    assert back["state"] == "held"


def test_scalar_models_skip_what_needs_two_orders(tmp_path: Path) -> None:
    found = rails(tmp_path, flips(range(10)), Rewards(oracle))
    states = {name: rail["state"] for name, rail in found.items()}
    assert states == {
        **{"coverage": "held", "consistency": "skipped", "first_rate": "skipped"},
        **{"balanced_accuracy": "held", "halo": "skipped"},  # of one dimension
    }
    assert list(found) == list(MARGINS)


def test_balanced_accuracy_is_over_cases_with_one_right_answer(tmp_path: Path) -> None:
    """Four cases of one right answer, and one of two, which is lost."""
    several = replace(ranked_case(9, 0), labels={"accuracy": RankingLabel((((0, 1), (2, 3)),) * 3)})
    benchmark = make_benchmark([*(ranked_case(number, number) for number in range(4)), several])

    def rule(case: Case, lost: bool) -> list[float]:
        best = case.labels["accuracy"].rankings[0][0][0]
        best = 3 if lost and case.case_id == several.case_id else best
        return [float(index == best) for index in range(4)]

    for name, lost in (("before", False), ("after", True)):
        scorer = Rewards(lambda case, lost=lost: rule(case, lost))
        evaluate(scorer, benchmark, tmp_path / name, name, "robust", overwrite=True)
    result = compare(tmp_path / "before", tmp_path / "after")
    assert result["primary"]["delta"] == pytest.approx(-0.2)
    rail = result["guardrails"]["balanced_accuracy"]
    assert (rail["before"], rail["after"]) == (1.0, 1.0)


def judge_of(same: range) -> Writer:
    """Right on accuracy; the other dimensions are copied from it in some cases, right elsewhere."""

    def rule(case: Case, order: str, *_: object) -> str:
        copied = number_of(case) in same
        named = {
            name: case.labels["accuracy" if copied else name].choice == int(order == "reversed")
            for name in NAMES
        }
        return json.dumps({name: "A" if first else "B" for name, first in named.items()})

    return Writer(rule, NAMES)


def halo_of(tmp_path: Path, before: range, after: range) -> dict:
    """Labels: all alike in a quarter of 80 cases."""
    generator = np.random.default_rng(3)
    cases = []
    for case in make_cases("AB" * 40):
        label, other = case.labels["accuracy"], make_cases("BA")[number_of(case) % 2].labels
        alike = number_of(case) % 4 == 0
        rest = label if alike else other["accuracy"]
        cases.append(
            replace(case, labels={"accuracy": label, "relevance": rest, "creativity": label})
        )
    generator.shuffle(cases)
    benchmark = make_benchmark(cases, NAMES)
    for name, same in (("before", before), ("after", after)):
        evaluate(judge_of(same), benchmark, tmp_path / name, name, overwrite=True)
    return compare(tmp_path / "before", tmp_path / "after")["guardrails"]["halo"]


def test_halo_counts_above_the_experts(tmp_path: Path) -> None:
    rail = halo_of(tmp_path, range(0), range(80))
    assert (rail["before"], rail["after"], rail["state"]) == (0.0, 0.75, "failed")
    assert rail["loss"] == pytest.approx(0.75)
    assert halo_of(tmp_path, range(80), range(0))["state"] == "held"


def test_rising_to_the_halo_of_the_experts_is_no_loss(tmp_path: Path) -> None:
    """Before never one answer on all dimensions, less than the experts; after exactly theirs."""
    rail = halo_of(tmp_path, range(0), range(0))
    assert (rail["loss"], rail["state"]) == (0.0, "held")
    cases = [
        replace(case, labels=dict.fromkeys(NAMES, case.labels["accuracy"]))
        for case in make_cases("AB" * 40)
    ]
    benchmark = make_benchmark(cases, NAMES)

    def split(case: Case, order: str, *_: object) -> str:
        letter = "A" if order == "forward" else "B"
        other = "B" if order == "forward" else "A"
        return json.dumps({"accuracy": letter, "relevance": other, "creativity": letter})

    evaluate(Writer(split, NAMES), benchmark, tmp_path / "before", "b", overwrite=True)
    evaluate(judge_of(range(0)), benchmark, tmp_path / "after", "a", overwrite=True)
    rail = compare(tmp_path / "before", tmp_path / "after")["guardrails"]["halo"]
    assert (rail["before"], rail["after"], rail["loss"], rail["state"]) == (-1.0, 0.0, 0.0, "held")


def test_noise_fails_a_guardrail_of_margin_zero_seldom(tmp_path: Path) -> None:
    """Models of one skill: any loss would fail half of them, a shown one fails one in forty."""
    generator = np.random.default_rng(0)
    benchmark = make_benchmark(make_cases("AB" * 50))
    failed = losses = 0
    for _ in range(30):
        for name in ("before", "after"):
            right = generator.random(100) < 0.7

            def rule(case: Case, right: np.ndarray = right) -> tuple[float, float]:
                first, second = oracle(case)
                return (first, second) if right[number_of(case)] else (second, first)

            evaluate(Rewards(rule), benchmark, tmp_path / name, name, "robust", overwrite=True)
        sides = [read_evaluation(tmp_path / name) for name in ("before", "after")]
        rail = non_inferiority_checks(*sides, "accuracy")["balanced_accuracy"]
        failed += rail["state"] == "failed"
        losses += rail["loss"] > 0
    assert losses > 8
    assert failed <= 3  # P(more than 3 of 30 at 2.5 %) < 1 %
