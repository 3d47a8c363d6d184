"""The metrics of benchmarks' authors, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
from mock_scorers import make_benchmark

from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.measures.benchmark_metrics import METRICS, WEIGHTS
from medrm.evaluation.report import benchmark_metrics
from medrm.schema import Case, Label, PairLabel, RankingLabel, Verdict
from medrm.scorer.verdict_rules import labelled

A = PairLabel((1.0, 0.0, 0.0))
B = PairLabel((0.0, 0.0, 1.0))
Order = Literal["forward", "reversed"]


def case(case_id: str, label: Label, answers: int = 2, **groups: str) -> Case:
    texts = tuple(f"answer {number}" for number in range(answers))
    return Case(case_id, (), "q", texts, {"overall": label}, case_id, groups)


def benchmark(cases: Sequence[Case], metric: str, *groups: str) -> Benchmark:
    source = make_benchmark(cases, ("overall",)).source
    return Benchmark("hand-made", source, groups, (), (metric,))


def judged(one: Case, outcome: str | int, order: Order = "forward", **others: object) -> Verdict:
    return labelled(one, Verdict(one.case_id, "overall", "robust", order, outcome, **others))


def read(one: Case, outcome: str, order: Order = "forward") -> Verdict:
    return judged(one, outcome, order)


def scored(one: Case, *scores: float) -> Verdict:
    top = [index for index, score in enumerate(scores) if score == max(scores)]
    outcome: str | int = top[0] if len(top) == 1 else "tie"
    if len(scores) == 2 and isinstance(outcome, int):
        outcome = "AB"[outcome]
    return judged(one, outcome, scores=scores)


def test_only_what_the_benchmark_asks_for_is_computed() -> None:
    one = case("a", A)
    assert benchmark_metrics([read(one, "A")], make_benchmark([one], ("overall",))) == {}
    for metric in METRICS:
        found = benchmark_metrics([read(one, "A")], benchmark([one], metric, "subset"))
        assert list(found["overall"]) == [metric]


def test_macro_group_weighs_groups_alike_and_keeps_what_is_unread() -> None:
    cases = [case(f"g{n}", A, subset="general") for n in range(3)] + [case("r", B, subset="hard")]
    rows = [read(one, outcome) for one, outcome in zip(cases, "AAAA", strict=True)]
    rows[1] = read(cases[1], "unread")
    found = benchmark_metrics(rows, benchmark(cases, "macro_group", "subset"))
    assert found["overall"]["macro_group"] == {
        "overall": pytest.approx(2 / 4),
        "subset": {
            "macro": pytest.approx((2 / 3 + 0) / 2),
            "members": {"general": pytest.approx(2 / 3), "hard": 0.0},
        },
    }


def test_each_order_is_measured_by_itself() -> None:
    cases = [case("p", A, prompt="p"), case("p#2", A, prompt="p")]
    rows = [
        *(read(cases[0], "A"), read(cases[1], "B")),
        *(read(cases[0], "B", "reversed"), read(cases[1], "A", "reversed")),
    ]
    found = benchmark_metrics(rows, benchmark(cases, "acc_plus"))
    assert found["overall"]["acc_plus"]["overall"] == {"accuracy": 0.5, "acc_plus": 0.0}


def test_acc_plus_wants_all_pairs_of_a_prompt() -> None:
    cases = [
        case("p", A, prompt="p", subset="mcq"),
        case("p#2", B, prompt="p", subset="mcq"),
        case("q", A, prompt="q", subset="long"),
    ]
    rows = [read(one, outcome) for one, outcome in zip(cases, "AAA", strict=True)]
    found = benchmark_metrics(rows, benchmark(cases, "acc_plus", "subset"))["overall"]["acc_plus"]
    assert found["overall"] == {"accuracy": pytest.approx(2 / 3), "acc_plus": 0.5}
    assert found["subset"]["mcq"] == {"accuracy": 0.5, "acc_plus": 0.0}
    assert found["subset"]["long"] == {"accuracy": 1.0, "acc_plus": 1.0}


def best(answers: int, *right: int) -> RankingLabel:
    rest = tuple(index for index in range(answers) if index not in right)
    return RankingLabel(((right, rest),))


def test_a_shared_top_score_counts_in_part() -> None:
    cases = [
        case("alone", best(4, 2), 4, subset="Math"),
        case("shared", best(4, 0), 4, subset="Math"),
        case("wrong", best(4, 1), 4, subset="Focus"),
        case("pair", A, 2, subset="Focus"),
        case("lost", best(4, 1), 4, subset="Focus"),
    ]
    rows = [
        scored(cases[0], 0, 1, 3, 2),
        scored(cases[1], 5, 5, 5, 1),
        scored(cases[2], 2, 1, 0, 0),
        scored(cases[3], 1, 1),
        judged(cases[4], "unread", reason="too_long"),
    ]
    found = benchmark_metrics(rows, benchmark(cases, "best_of_n", "subset"))
    math_score, focus = (1 + 1 / 3) / 2, (0 + 0.5 + 0) / 3
    assert found["overall"]["best_of_n"] == {
        "mean": pytest.approx((math_score + focus) / 2),
        "subsets": {"Focus": pytest.approx(focus), "Math": pytest.approx(math_score)},
    }


def tied(case_id: str, answers: int, *right: int) -> Case:
    name = case_id.replace(":", "-")
    return case(name, best(answers, *right), answers, subset="Ties", prompt=case_id)


def test_the_ties_score_by_hand() -> None:
    cases = [
        tied("ref:0", 3, 0),
        tied("tied:0", 4, 0, 1),
        tied("ref:1", 3, 1),
        tied("tied:1", 4, 2, 3),
        tied("tied:9", 3, 0, 1),
    ]
    rows = [
        scored(cases[0], 4.0, 1.0, 0.0),  # margin 3
        scored(cases[1], 5.0, 4.0, 2.0, 0.0),  # spread 1, margin 2
        scored(cases[2], 1.0, 1.5, 0.0),  # margin 0.5
        scored(cases[3], 0.0, 1.0, 3.0, 4.0),  # spread 1, margin 2
        scored(cases[4], 1.0, 0.0, 2.0),  # wrong, without a form with one answer
    ]
    found = benchmark_metrics(rows, benchmark(cases, "ties"))["overall"]["ties"]
    parts = {
        "tied_accuracy": 2 / 3,
        "ref_accuracy": 1.0,
        "correctness_preferred": 1.0,
        "correctness_preferred_hard": 0.5,
        "margin": (math.tanh(2 / 1 - 1) + math.tanh(0.5 / 1 - 1)) / 2,
    }
    score = 0.3 * 2 / 3 + 0.3 + 0.2 + 0.2 * 0.5 + 0.01 * parts["margin"]
    assert found == pytest.approx({"score": score, **parts})
    assert sum(WEIGHTS.values()) == pytest.approx(1.01)
    whole = benchmark_metrics(rows, benchmark(cases, "best_of_n"))["overall"]["best_of_n"]
    assert whole == {"mean": pytest.approx(score), "subsets": {"Ties": pytest.approx(score)}}


@pytest.mark.parametrize(
    ("right", "wrong", "margin"),
    [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, -1.0)],
)
def test_equal_right_answers_have_no_spread(right: float, wrong: float, margin: float) -> None:
    cases = [tied("ref:0", 2, 0), tied("tied:0", 3, 0, 1)]
    rows = [scored(cases[0], right, wrong), scored(cases[1], right, right, wrong)]
    found = benchmark_metrics(rows, benchmark(cases, "ties"))["overall"]["ties"]
    assert found["margin"] == margin


def test_an_unread_prompt_of_ties_is_wrong() -> None:
    cases = [tied("ref:0", 3, 0), tied("tied:0", 3, 0, 1)]
    rows = [judged(one, "unread", reason="too_long") for one in cases]
    found = benchmark_metrics(rows, benchmark(cases, "ties"))["overall"]["ties"]
    assert found["score"] == 0.0
    assert benchmark_metrics(rows[:1], benchmark(cases, "ties"))["overall"]["ties"]["score"] is None


def rated(name: str, met: int, of: int, category: str) -> Case:
    label = PairLabel((met / of, 0.0, 1 - met / of), of)
    return case(name, label, category=category, subset="theme")


def test_macro_f1_against_the_numbers_of_the_authors_own_test() -> None:
    # Grader met, not met, met; physicians 2 of 3, 1 of 2, 0 of 1 (healthbench_meta_eval_test.py).
    cases = [rated("1", 2, 3, "a"), rated("2", 1, 2, "a"), rated("3", 0, 1, "b")]
    rows = [read(one, outcome) for one, outcome in zip(cases, "ABA", strict=True)]
    found = benchmark_metrics(rows, benchmark(cases, "macro_f1", "subset"))["overall"]["macro_f1"]
    precision, recall = (2 / 4, 1 / 2), (2 / 3, 1 / 3)
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    assert found["pooled"] == pytest.approx(sum(f1) / 2)
    # Of category a: precision 2/3 and 1/2, recall 2/3 and 1/2; of b there is one class only.
    assert found["criteria"] == {"a": pytest.approx((2 / 3 + 1 / 2) / 2), "b": None}
    assert found["macro"] == found["criteria"]["a"] == found["subset"]["theme"]


def test_macro_f1_misses_what_is_unread() -> None:
    cases = [rated("1", 2, 2, "a"), rated("2", 0, 2, "a"), rated("3", 2, 2, "a")]
    whole = [read(one, outcome) for one, outcome in zip(cases, "ABA", strict=True)]
    found = benchmark_metrics(whole, benchmark(cases, "macro_f1"))["overall"]["macro_f1"]
    assert found["pooled"] == 1.0
    less = [*whole[:2], read(cases[2], "unread")]
    found = benchmark_metrics(less, benchmark(cases, "macro_f1"))["overall"]["macro_f1"]
    assert found["pooled"] == pytest.approx((2 * 0.5 / 1.5 + 1) / 2)


def test_a_class_that_is_never_said_has_an_f1_of_zero() -> None:
    cases = [rated("1", 1, 2, "a"), rated("2", 2, 2, "a")]
    rows = [read(one, "A") for one in cases]
    found = benchmark_metrics(rows, benchmark(cases, "macro_f1"))["overall"]["macro_f1"]
    assert found["macro"] == found["pooled"] == pytest.approx((2 * 3 / (4 + 3) + 0) / 2)
