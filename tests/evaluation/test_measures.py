"""Measures of one dimension, of position, length and structure against numbers worked out by hand.

Every judge here is a rule whose numbers can be counted on the labels.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle, ranked_case

from medrm.evaluation.benchmark import baselines
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.measures.biases import contributions, mean_of_rates
from medrm.evaluation.report import Report, read_report
from medrm.schema import Case, PairLabel
from medrm.statistics.intervals import bootstrap_intervals, mean_interval, small_cell_interval

A, B, TIE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)


def accuracy_of(report: Report) -> dict:
    return report["protocols"]["robust"]["dimensions"]["accuracy"]


def says(said: str) -> Writer:
    """A judge of accuracy that says, case by case, two stored letters: forward, then reversed.

    `?` is unread, `t` a tie; the letters written are those of the slots.
    """
    words = said.split()

    def rule(case: Case, order: str, *_: object) -> str:
        stored = words[int(case.case_id[-3:])][order == "reversed"]
        if stored in "?t":
            return "?" if stored == "?" else json.dumps({"accuracy": "tie"})
        return json.dumps({"accuracy": "A" if (stored == "A") == (order == "forward") else "B"})

    return Writer(rule, ("accuracy",))


def test_both_orders_by_hand(tmp_path: Path) -> None:
    """Labels A A A B B -: twice right, first slot twice, tie and right, unread, wrong, unlabelled.

    The first slot wins twice in case 1, the second one in case 5.
    """
    judge = says("AA AB tA ?B AA BA")
    measures = accuracy_of(evaluate(judge, make_benchmark(make_cases("AAABB-")), tmp_path, "m"))
    assert measures["n"] == 5
    assert measures["accuracy"] == pytest.approx((1 + 0.5 + 0.5 + 0.5 + 0) / 5)
    assert measures["coverage"] == pytest.approx(11 / 12)
    assert measures["parsed_accuracy"] == pytest.approx(2.5 / 4.5)
    assert measures["bounds"] == pytest.approx([0.5, 0.6])
    assert measures["both_correct"] == pytest.approx(1 / 5)
    # Right against wrong: 2:0, 1:1, 1:0, 1:0, 0:2.
    assert measures["net_correct"] == pytest.approx(3 / 5)
    # The preferred answer is first in the forward order of A and in the reversed order of B.
    assert measures["position_gap"] == pytest.approx(
        (1 + 1 + 0 + 1 + 0) / 5 - (1 + 0 + 1 + 0 + 0) / 5
    )
    assert measures["consistency"] == pytest.approx(2 / 6)
    # Cases 0, 1, 4, 5 name an answer twice and case 2 once; first slots: 1 + 2 + 0 + 1 + 0.
    assert measures["first_rate"] == pytest.approx(4 / 9)
    assert measures["flips"] == {"first_twice": 1, "second_twice": 1, "skew": 0.0, "p": 1.0}
    assert measures["calibration"] is None


def test_a_slot_that_always_wins_has_a_direction(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AABB" * 3))
    flips = accuracy_of(evaluate(says("AB " * 12), benchmark, tmp_path, "m"))["flips"]
    assert (flips["first_twice"], flips["second_twice"], flips["skew"]) == (12, 0, -1)
    assert flips["p"] == pytest.approx(2 * 0.5**12 / 2)  # mid-p of 0 out of 12, two-sided
    assert (
        accuracy_of(evaluate(says("BA " * 12), benchmark, tmp_path, "m", overwrite=True))["flips"][
            "skew"
        ]
        == 1
    )


def test_a_scalar_model_has_no_position(tmp_path: Path) -> None:
    measures = accuracy_of(
        evaluate(Rewards(oracle), make_benchmark(make_cases("AB")), tmp_path, "m")
    )
    names = ("consistency", "first_rate", "both_correct", "net_correct", "position_gap", "flips")
    assert [measures[name] for name in names] == [None] * 6
    assert measures["calibration"]["n"] == 2
    assert measures["calibration"]["brier"] == pytest.approx((1 - 1 / (1 + math.exp(-1))) ** 2)


def test_calibration_takes_the_mean_of_both_orders(tmp_path: Path) -> None:
    """P(A) is 0.9 and 0.7 on every case: confidence 0.8, right on the cases labelled A."""
    judge = Judge(lambda case, order: 0.9 if order == "forward" else 0.7)
    report = evaluate(judge, make_benchmark(make_cases("AAABt")), tmp_path, "m")
    found = accuracy_of(report)["calibration"]
    assert found["n"] == 4
    assert found["ece"] == pytest.approx(0.05)  # 0.75 right at 0.8
    assert found["brier"] == pytest.approx((3 * 0.2**2 + 0.8**2) / 4)
    (only,) = found["bins"]
    assert set(only) == {"confidence", "accuracy", "n", "low", "high"}
    assert only["confidence"] == pytest.approx(0.8)
    assert found["risk_coverage"][-1] == pytest.approx([1.0, 0.25])


def test_a_case_without_a_probability_leaves_the_calibration(tmp_path: Path) -> None:
    def rule(case: Case, order: str) -> float | None:
        return None if case.case_id == "case-000" and order == "reversed" else 0.8

    report = evaluate(Judge(rule), make_benchmark(make_cases("AAB")), tmp_path, "m")
    assert accuracy_of(report)["calibration"]["n"] == 2


def sized(case: Case, first: int, second: int) -> Case:
    return replace(case, answers=("a" * first, "b" * second))


def test_length_by_hand(tmp_path: Path) -> None:
    """A longer-answer judge on 6 pairs; the last two differ by 30 characters and by none."""
    sizes = [(100, 50), (50, 100), (100, 50), (50, 100), (80, 50), (50, 50)]
    cases = [sized(case, *size) for case, size in zip(make_cases("AAABBA"), sizes, strict=True)]
    judge = says("AA BB AA BB AA AA")
    report = evaluate(judge, make_benchmark(cases), tmp_path, "m")
    found = report["length"]["accuracy"]
    assert found == {
        "n": 4,
        "longer_rate": 1.0,
        "longer_rate_label": 0.75,  # A, A, B of the longer ones; case 1 prefers the shorter
        "bias": 0.25,
        "accuracy_longer": 1.0,
        "accuracy_shorter": 0.0,
        "coefficient": None,
        "ci95": None,
    }


def test_length_coefficient_finds_a_preference(tmp_path: Path) -> None:
    """log odds of naming A = label + 2 tanh(z), z the standardised length difference."""
    generator = random.Random(7)
    cases = make_cases("".join(generator.choice("AB") for _ in range(800)))
    cases = [sized(case, *generator.choices(range(10, 300), k=2)) for case in cases]
    gaps = {case.case_id: len(case.answers[0]) - len(case.answers[1]) for case in cases}
    spread = float(np.std([gap for gap in gaps.values() if abs(gap) > 30]))

    def judge(strength: float) -> Rewards:
        def rule(case: Case) -> tuple[float, float]:
            odds = (1 if oracle(case)[0] else -1) + strength * math.tanh(
                gaps[case.case_id] / spread
            )
            first = generator.random() < 1 / (1 + math.exp(-odds))
            return float(first), float(not first)

        return Rewards(rule)

    for strength in (0.0, 2.0):
        report = evaluate(judge(strength), make_benchmark(cases), tmp_path, "m", overwrite=True)
        found = report["length"]["accuracy"]
        low, high = found["ci95"]
        assert found["coefficient"] == pytest.approx(strength, abs=0.5)  # 3 standard errors
        assert high - low < 1.2
        assert found["coefficient"] == pytest.approx((low + high) / 2)


def test_length_bias_is_measured_where_an_answer_is_named(tmp_path: Path) -> None:
    cases = [sized(case, 100, 10) for case in make_cases("AB")]
    found = evaluate(says("?? BB"), make_benchmark(cases), tmp_path, "m")["length"]["accuracy"]
    assert (found["longer_rate"], found["longer_rate_label"], found["bias"]) == (0, 0, 0)
    assert (found["accuracy_longer"], found["accuracy_shorter"]) == (0, 1)


DIMENSIONS = ("accuracy", "relevance", "creativity", "overall")


def labelled(letters: str, number: int) -> Case:
    """A case with one letter a dimension; - is no label."""
    (case,) = make_cases("A" * (number + 1))[number:]
    shares = {"A": A, "B": B, "t": TIE}
    pairs = zip(DIMENSIONS, letters, strict=True)
    return replace(
        case, labels={name: PairLabel(shares[letter]) for name, letter in pairs if letter != "-"}
    )


def judge_of(verdicts: list[str]) -> Writer:
    """Names the same stored letters in both orders; ? leaves a dimension out."""

    def rule(case: Case, order: str, *_: object) -> str:
        named = zip(DIMENSIONS, verdicts[int(case.case_id[-3:])], strict=True)
        turned = {"A": "B", "B": "A"}
        return json.dumps(
            {
                name: letter if order == "forward" else turned[letter]
                for name, letter in named
                if letter != "?"
            }
        )

    return Writer(rule, DIMENSIONS)


def test_structure_and_means_by_hand(tmp_path: Path) -> None:
    """Four cases with all labels, of which one is not wholly read; one lacks a label."""
    cases = [labelled(word, n) for n, word in enumerate(["AAAA", "AABA", "BBAB", "ABBB", "AA-A"])]
    judge = judge_of(["AAAA", "AAAA", "BBBB", "A?BB", "AAAA"])
    report = evaluate(judge, make_benchmark(cases, DIMENSIONS), tmp_path, "m")
    structure = report["structure"]
    assert structure["cases"] == 3
    assert structure["all_same"] == 1.0
    assert structure["all_same_label"] == pytest.approx(1 / 3)
    assert structure["halo"] == pytest.approx(2 / 3)
    assert (structure["overall_vs_parts"], structure["overall_vs_parts_label"]) == (1, 1)
    # Accuracy and overall over all five cases, which the judge labels as the experts do.
    labels = np.corrcoef([1, 1, -1, 1, 1], [1, 1, -1, -1, 1])[0, 1]
    assert structure["phi_label"][0][3] == pytest.approx(labels)
    assert structure["phi"][0][3] == pytest.approx(labels)
    assert structure["phi"][0][0] == 1.0
    means = report["protocols"]["robust"]["means"]
    # accuracy 5/5, relevance 4/5 (one unread), creativity 2/4, overall 5/5.
    assert means["mean"]["accuracy"] == pytest.approx((1 + 0.8 + 0.5 + 1) / 4)
    assert means["mean"]["n"] == 5
    # Right on all: only the first of the four cases with labels on all.
    assert (means["joint"]["accuracy"], means["joint"]["n"]) == (0.25, 4)
    # Brain: cases 0, 2, 4; lung: 1, 3. An organ may be few cases: Wilson's interval.
    brain = report["protocols"]["robust"]["groups"]["organ"]["brain"]["accuracy"]
    assert brain["ci95"] == small_cell_interval([1, 1, 1], list("xyz")).bounds
    assert means["macro"]["relevance"] == pytest.approx((1 + 0.5) / 2)


def test_structure_leaves_out_even_parts_and_what_has_no_label(tmp_path: Path) -> None:
    """Two parts: case 0 is even for both; case 3 is named apart, and has no label on relevance."""
    cases = [labelled(word, n) for n, word in enumerate(["ABAA", "AAAA", "BBAA", "A-AB"])]
    judge = judge_of(["ABAB", "AAAA", "BBAA", "BAAB"])
    names = ("accuracy", "relevance", "overall")
    structure = evaluate(judge, make_benchmark(cases, names), tmp_path, "m")["structure"]
    assert (structure["overall_vs_parts"], structure["overall_vs_parts_label"]) == (0.5, 0.5)
    expected = np.corrcoef([1, 1, -1], [-1, 1, -1])[0, 1]  # cases 0 to 2
    assert structure["phi"][0][1] == pytest.approx(expected)
    assert structure["phi_label"][0][1] == pytest.approx(expected)


def test_one_dimension_has_no_structure(tmp_path: Path) -> None:
    report = evaluate(Rewards(oracle), make_benchmark(make_cases("AB")), tmp_path, "m")
    assert report["structure"] is None


def test_more_than_two_answers_leave_out_what_has_no_meaning(tmp_path: Path) -> None:
    """Four answers; labels 2 and 1: always the third is right once; numbers of pairs are null."""
    cases = [ranked_case(0, best=2), ranked_case(1, best=1)]
    scorer = Rewards(lambda case: (0.0, 0.1, 0.7, 0.2))
    report = evaluate(scorer, make_benchmark(cases), tmp_path, "m")
    measures = accuracy_of(report)
    assert (measures["accuracy"], measures["parsed_accuracy"]) == (0.5, 0.5)
    assert (measures["calibration"], measures["flips"]) == (None, None)
    assert report["structure"] is None
    assert report["length"]["accuracy"]["n"] == 0
    rules = {name: value["accuracy"] for name, value in report["baselines"].items()}
    assert rules == {
        **{"always_a": 0.0, "always_b": 0.5, "majority": 0.5, "longer": 0.0},
        **{"first_slot": None, "random": 0.25},
    }


def test_rules_on_pairs() -> None:
    cases = [*make_cases("AABt-"), ranked_case(0, best=0, answers=3)]
    found = baselines(cases, ["accuracy"])
    assert found["always_a"]["accuracy"] == pytest.approx(3 / 4)
    assert found["random"]["accuracy"] == pytest.approx((3 / 2 + 1 / 3) / 4)
    assert found["first_slot"]["accuracy"] is None
    assert baselines(make_cases("t-"), ["accuracy"])["longer"]["accuracy"] is None


def test_the_order_of_cases_and_rows_changes_no_number(tmp_path: Path) -> None:
    generator = random.Random(1)
    words = ["".join(generator.choice("AB") for _ in DIMENSIONS) for _ in range(60)]
    cases = [labelled("".join(generator.choice("ABt-") for _ in DIMENSIONS), n) for n in range(60)]
    cases = [sized(case, *generator.choices(range(10, 300), k=2)) for case in cases]
    contents = set()
    for _ in range(3):
        benchmark = make_benchmark(cases, DIMENSIONS)
        evaluate(judge_of(words), benchmark, tmp_path, "m", overwrite=True)
        contents.add(json.dumps(read_report(tmp_path), sort_keys=True))
        generator.shuffle(cases)
    assert len(contents) == 1


def test_a_linearised_rate_has_the_intervals_of_the_bootstrap() -> None:
    """A ratio of sums over clusters, against resampled clusters."""
    generator = np.random.default_rng(5)
    counts = generator.integers(0, 5, 400).astype(float)
    hits = generator.binomial(counts.astype(int), 0.3).astype(float)
    rate = contributions(zip(hits, counts, strict=True))
    assert rate.rate == pytest.approx(hits.sum() / counts.sum())
    names = [f"c{number // 2}" for number in range(400)]
    found = mean_interval(rate.linearised().tolist(), names)
    assert found.mean == pytest.approx(rate.rate)
    means = []
    for _ in range(2000):
        drawn = generator.integers(0, 200, 200)
        index = np.concatenate([2 * drawn, 2 * drawn + 1])
        means.append(hits[index].sum() / counts[index].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.bounds == pytest.approx([low, high], abs=0.006)
    assert contributions([(0.0, 0.0)]).rate is None
    with pytest.raises(ValueError, match="no rate"):
        contributions([(0.0, 0.0)]).linearised()
    assert mean_of_rates([contributions([(0.0, 0.0)])]) is None
    plain = contributions((value, 1.0) for value in hits)
    (bounds,) = bootstrap_intervals(plain.linearised()[:, None], names)
    assert mean_interval(hits.tolist(), names).bounds == pytest.approx(list(bounds), abs=0.006)
