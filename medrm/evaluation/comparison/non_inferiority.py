"""What must not get worse while the accuracy gets better; imports no torch.

A check fails where the paired loss is larger than its margin and its 95 % interval lies above
zero. A loss that is noise therefore fails one check in forty, even where the margin is zero;
the rule "any loss fails" would fail every other good model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from medrm.evaluation.comparison.evaluations import Evaluation
from medrm.evaluation.measures.biases import (
    Presented,
    all_same,
    consistent,
    contributions,
    excess,
    in_both_orders,
    mean_of_rates,
    named_first,
    signs_of,
)
from medrm.evaluation.records.jsonl import verdicts_by_case
from medrm.schema import UNREAD
from medrm.statistics.intervals import Floats, mean_interval

MARGINS = {
    "coverage": 0.01,
    "consistency": 0.02,
    "first_rate": 0.02,
    "balanced_accuracy": 0.0,
    "halo": 0.0,
}
"""How much worse a measure may get: `first_rate` in its distance from one half, `halo` in what
lies above the experts' own."""

Measured = tuple[float | None, Floats | None]
"""A measure, and values (n) whose mean is the larger the better it is, one for each of n cases."""

_ROUNDING = 1e-12


def non_inferiority_checks(
    before: Evaluation, after: Evaluation, primary: str
) -> dict[str, dict[str, Any]]:
    """Returns `guardrails` of `comparison.json`: the checks on the primary dimension.

    They are over the cases that both have judged. Each has `before`, `after`, `loss` (how much
    worse it got), `ci95` of the loss, `margin` and `state`: held, failed, or skipped where one side
    has no such number.
    """
    by_case = [verdicts_by_case(side.robust[primary]) for side in (before, after)]
    cases = [case for case in by_case[0] if case in by_case[1]]
    clusters = [after.clusters[case] for case in cases]
    both = [name for name in after.robust if name in before.robust]
    measured = []
    for side, of_side in zip((before, after), by_case, strict=True):
        presented = [of_side[case] for case in cases]
        measured.append(
            {
                "coverage": _coverage(presented),
                "consistency": _consistency(presented),
                "first_rate": _first_rate(presented),
                "balanced_accuracy": _balanced(presented),
                "halo": _halo(side, both, set(cases)),
            }
        )
    return {
        name: _check(margin, clusters, *(of_side[name] for of_side in measured))
        for name, margin in MARGINS.items()
    }


def _check(
    margin: float, clusters: Sequence[str], before: Measured, after: Measured
) -> dict[str, Any]:
    check: dict[str, Any] = {"before": before[0], "after": after[0], "loss": None, "ci95": None}
    check |= {"margin": margin, "state": "skipped"}
    if before[1] is None or after[1] is None or not clusters:
        return check
    interval = mean_interval((before[1] - after[1]).tolist(), clusters)
    clear = interval.low is None or interval.low > _ROUNDING
    state = "failed" if clear and interval.mean > margin + _ROUNDING else "held"
    return check | {"loss": interval.mean, "ci95": interval.bounds, "state": state}


def _mean_of(values: Floats | None) -> Measured:
    """A measure that is the mean of the cases' values."""
    return None if values is None or not len(values) else float(values.mean()), values


def _coverage(cases: Sequence[Presented]) -> Measured:
    return _mean_of(np.array([fmean(row.outcome != UNREAD for row in case) for case in cases]))


def _consistency(cases: Sequence[Presented]) -> Measured:
    return _mean_of(consistent(cases).numerator if in_both_orders(cases) else None)


def _first_rate(cases: Sequence[Presented]) -> Measured:
    """The values' mean is minus the rate's distance from one half."""
    first = named_first(cases)
    if not in_both_orders(cases) or first.rate is None:
        return None, None
    distance = first.linearised() - 0.5
    return first.rate, -distance if first.rate >= 0.5 else distance


def _balanced(cases: Sequence[Presented]) -> Measured:
    """The mean recall over the labels that name one answer."""
    named = [None if case[0].correct is None else case[0].label for case in cases]
    labels = {label for label in named if label is not None and not isinstance(label, tuple)}
    scores = [fmean(row.correct or 0.0 for row in case) for case in cases]
    return _mean_of(
        mean_of_rates(
            contributions(
                (score, 1.0) if answer == label else (0.0, 0.0)
                for answer, score in zip(named, scores, strict=True)
            )
            for label in sorted(labels, key=str)
        )
    )


def _halo(evaluation: Evaluation, dimensions: Sequence[str], cases: Collection[str]) -> Measured:
    """Halo on the dimensions both have judged; only what lies above the experts' own counts.

    A base that guesses each dimension anew has less of it than the experts, and rises to theirs
    when it learns: no loss.
    """
    rows = (row for name in dimensions for row in evaluation.robust[name] if row.case_id in cases)
    judged, experts = all_same(signs_of(rows, dimensions))
    halo = excess(judged.rate, experts.rate)
    if len(dimensions) < 2 or halo is None:
        return None, None
    above = experts.linearised() - judged.linearised()
    return halo, above if halo > 0 else np.zeros(len(above))
