"""The metrics of benchmarks' authors, from verdict rows and cases alone; imports no torch.

Each is computed on the rows of one presented order, as the authors do, and averaged over the orders
that were presented. What is unread is wrong and in every denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.measures.accuracy import NOT_STATED
from medrm.evaluation.measures.best_of_n import best_of_n, ties
from medrm.evaluation.measures.criteria import macro_f1
from medrm.schema import Case, Verdict
from medrm.statistics import mean

Numbers = dict[str, Any]
"""Names to numbers, or to further names."""

PROMPT = "prompt"
"""The group that pairs of answers to one prompt share."""


def benchmark_metrics(rows: Sequence[Verdict], benchmark: Benchmark) -> Numbers:
    """Returns `metrics` of a report: dimension -> metric -> numbers.

    Args:
        rows: of an evaluation; those of the robust protocol count where there are any.
        benchmark: which metrics its authors use, and its cases.
    """
    robust = [row for row in rows if row.protocol == "robust"]
    chosen = robust or list(rows)
    cases = {case.case_id: case for case in benchmark.cases} if benchmark.metrics else {}
    found: Numbers = {}
    for dimension in benchmark.dimensions:
        judged = [row for row in chosen if row.dimension == dimension]
        orders = [[row for row in judged if row.order == o] for o in ("forward", "reversed")]
        if judged and benchmark.metrics:
            found[dimension] = {
                name: _averaged([_METRICS[name](part, cases, benchmark) for part in orders if part])
                for name in benchmark.metrics
            }
    return found


def macro_group(
    rows: Sequence[Verdict], cases: Mapping[str, Case], benchmark: Benchmark
) -> Numbers:
    """Returns the accuracy overall, by each group, and the mean over a group's members.

    VL-RewardBench's Overall and Macro Average Accuracy (arXiv 2411.17451, `cal.py`), and Multimodal
    RewardBench's accuracies by category (arXiv 2502.14191, `2_get_accuracy.py`).
    """
    numbers: Numbers = {"overall": _accuracy(rows)}
    for group in benchmark.groups:
        members = _by_member(rows, group)
        accuracies = {name: _accuracy(part) for name, part in members.items()}
        numbers[group] = {"macro": mean(accuracies.values()), "members": accuracies}
    return numbers


def acc_plus(rows: Sequence[Verdict], cases: Mapping[str, Case], benchmark: Benchmark) -> Numbers:
    """Returns ACC and ACC+, overall and by each group.

    ACC+ is the share of prompts all of whose pairs are judged right (MM-RLHF, arXiv 2502.10391,
    `cal_performance_mmreward_bench.py`).
    """
    numbers: Numbers = {"overall": _acc_plus(rows)}
    for group in benchmark.groups:
        members = _by_member(rows, group)
        numbers[group] = {name: _acc_plus(part) for name, part in members.items()}
    return numbers


def _acc_plus(rows: Sequence[Verdict]) -> dict[str, float | None]:
    prompts: dict[str, list[float]] = {}
    for row in rows:
        if row.correct is not None:
            prompts.setdefault(row.groups.get(PROMPT, row.case_id), []).append(row.correct)
    whole = [float(all(correct)) for correct in prompts.values()]
    return {"accuracy": _accuracy(rows), "acc_plus": mean(whole)}


def _accuracy(rows: Sequence[Verdict]) -> float | None:
    correct = [row.correct for row in rows if row.correct is not None]
    return mean(correct)


def _by_member(rows: Sequence[Verdict], group: str) -> dict[str, list[Verdict]]:
    members: dict[str, list[Verdict]] = {}
    for row in rows:
        members.setdefault(row.groups.get(group, NOT_STATED), []).append(row)
    return {name: members[name] for name in sorted(members)}


def _averaged(parts: Sequence[Any]) -> Any:
    """Returns numbers of the same names averaged one by one; None where one of them is None."""
    if isinstance(parts[0], dict):
        return {name: _averaged([part[name] for part in parts]) for name in parts[0]}
    return None if None in parts else fmean(parts)


_METRICS: dict[str, Callable[[Sequence[Verdict], Mapping[str, Case], Benchmark], Numbers]] = {
    "macro_group": macro_group,
    "acc_plus": acc_plus,
    "best_of_n": best_of_n,
    "ties": ties,
    "macro_f1": macro_f1,
}
