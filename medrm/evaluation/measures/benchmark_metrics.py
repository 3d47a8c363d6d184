"""The metrics of benchmarks' authors, from verdict rows and cases alone; imports no torch.

Each is computed on the rows of one presented order, as the authors do. What is unread is wrong and
in every denominator. To add a metric: write a
function of rows, cases (by id) and groups, put it into `METRICS`, and name it in a YAML file of
`evaluation/benchmarks/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medrm.evaluation.measures.accuracy import member_of
from medrm.evaluation.measures.best_of_n import best_of_n, ties
from medrm.evaluation.measures.criteria import macro_f1
from medrm.schema import Case, Verdict
from medrm.statistics.intervals import mean

Numbers = dict[str, Any]
"""Names to numbers, or to further names."""

Metric = Callable[[Sequence[Verdict], Mapping[str, Case], Sequence[str]], Numbers]
"""Rows of one dimension and order, the cases by id, and the groups results are broken down by."""

PROMPT = "prompt"
"""The group that pairs of answers to one prompt share."""


def macro_group(
    rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]
) -> Numbers:
    """Returns the accuracy overall, by each group, and the mean over a group's members.

    VL-RewardBench's Overall and Macro Average Accuracy (arXiv 2411.17451, `cal.py`), and Multimodal
    RewardBench's accuracies by category (arXiv 2502.14191, `2_get_accuracy.py`).
    """
    numbers: Numbers = {"overall": _accuracy(rows)}
    for group in groups:
        accuracies = _by_member(rows, group, _accuracy)
        numbers[group] = {"macro": mean(accuracies.values()), "members": accuracies}
    return numbers


def acc_plus(rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]) -> Numbers:
    """Returns ACC and ACC+, overall and by each group.

    ACC+ is the share of prompts all of whose pairs are judged right (MM-RLHF, arXiv 2502.10391,
    `cal_performance_mmreward_bench.py`).
    """
    return {"overall": _acc_plus(rows)} | {g: _by_member(rows, g, _acc_plus) for g in groups}


def _acc_plus(rows: Sequence[Verdict]) -> dict[str, float | None]:
    prompts: dict[str, list[float]] = {}
    for row in rows:
        if row.correct is not None:
            prompts.setdefault(row.groups.get(PROMPT, row.case_id), []).append(row.correct)
    all_correct = [float(all(correct)) for correct in prompts.values()]
    return {"accuracy": _accuracy(rows), "acc_plus": mean(all_correct)}


def _accuracy(rows: Sequence[Verdict]) -> float | None:
    return mean([row.correct for row in rows if row.correct is not None])


def _by_member(
    rows: Sequence[Verdict], group: str, measure: Callable[[Sequence[Verdict]], Any]
) -> dict[str, Any]:
    """A measure of the rows of each member of a group."""
    members: dict[str, list[Verdict]] = {}
    for row in rows:
        members.setdefault(member_of(row, group), []).append(row)
    return {name: measure(members[name]) for name in sorted(members)}


METRICS: dict[str, Metric] = {
    "macro_group": macro_group,
    "acc_plus": acc_plus,
    "best_of_n": best_of_n,
    "ties": ties,
    "macro_f1": macro_f1,
}
"""What a benchmark's authors compute besides accuracies, by its name in a benchmark's YAML."""
