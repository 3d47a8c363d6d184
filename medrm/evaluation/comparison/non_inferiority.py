"""What must not get worse while the accuracy gets better; imports no torch.

A check fails where the paired loss is larger than its margin and its 95 % interval lies above
zero. A loss that is noise therefore fails one check in forty, even where the margin is zero;
the rule "any loss fails" would fail every other good model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medrm.evaluation.comparison.evaluations import Evaluation
from medrm.evaluation.measures.contributions import Contributions, contributions, mean_of_rates
from medrm.evaluation.measures.position import Presented, consistent, in_both_orders, named_first
from medrm.evaluation.measures.structure import all_same, sheets_of
from medrm.schema import UNREAD, Verdict
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

_ROUNDING = 1e-12


def non_inferiority_checks(
    before: Evaluation, after: Evaluation, primary: str
) -> dict[str, dict[str, Any]]:
    """Returns `guardrails` of `comparison.json`: the checks on the primary dimension.

    They are over the cases that both have judged. Each has `before`, `after`, `loss` (how much
    worse it got), `ci95` of the loss, `margin` and `state`: held, failed, or skipped where one side
    has no such number.
    """
    by_case = [_by_case(side, primary) for side in (before, after)]
    cases = sorted(by_case[0].keys() & by_case[1].keys())
    clusters = [after.clusters[case] for case in cases]
    sides = [[of_side[case] for case in cases] for of_side in by_case]
    return {
        "coverage": _check("coverage", [_coverage(side) for side in sides], clusters),
        "consistency": _check("consistency", [_consistency(side) for side in sides], clusters),
        "first_rate": _first_rate(sides, clusters),
        "balanced_accuracy": _check("balanced_accuracy", [_balanced(s) for s in sides], clusters),
        "halo": _halo(before, after),
    }


def _by_case(evaluation: Evaluation, dimension: str) -> dict[str, list[Verdict]]:
    cases: dict[str, list[Verdict]] = {}
    for row in evaluation.robust[dimension]:
        cases.setdefault(row.case_id, []).append(row)
    return cases


def _check(name: str, values: Sequence[Floats | None], clusters: Sequence[str]) -> dict[str, Any]:
    """A check of a measure of which more is better.

    Args:
        name: in `MARGINS`.
        values: of each side, (n) whose mean is the number; None: it has none.
        clusters: of the n cases.
    """
    means = [None if value is None or not len(value) else float(value.mean()) for value in values]
    return _judged(name, means, _fall(values), clusters)


def _fall(values: Sequence[Floats | None]) -> Floats | None:
    """By how much each case fell from before to after; None where a side has no values."""
    before, after = values
    return None if before is None or after is None else before - after


def _judged(
    name: str, means: Sequence[float | None], loss: Floats | None, clusters: Sequence[str]
) -> dict[str, Any]:
    check: dict[str, Any] = {"before": means[0], "after": means[1], "loss": None, "ci95": None}
    check |= {"margin": MARGINS[name], "state": "skipped"}
    if loss is None or not len(loss):
        return check
    interval = mean_interval(loss.tolist(), clusters)
    clear = interval.low is None or interval.low > _ROUNDING
    failed = interval.mean > MARGINS[name] + _ROUNDING and clear
    state = "failed" if failed else "held"
    return check | {"loss": interval.mean, "ci95": interval.bounds, "state": state}


def _coverage(side: Sequence[Presented]) -> Floats:
    return np.array([np.mean([row.outcome != UNREAD for row in case]) for case in side])


def _consistency(side: Sequence[Presented]) -> Floats | None:
    return consistent(side).numerator if in_both_orders(side) else None


def _first_rate(sides: Sequence[Sequence[Presented]], clusters: Sequence[str]) -> dict[str, Any]:
    rates = [named_first(side) if in_both_orders(side) else None for side in sides]
    means = [None if rate is None else rate.rate for rate in rates]
    closeness = [None if rate is None else _closeness(rate) for rate in rates]
    return _judged("first_rate", means, _fall(closeness), clusters)


def _closeness(rate: Contributions) -> Floats | None:
    """Values whose mean is minus the rate's distance from one half."""
    if rate.rate is None:
        return None
    distance = rate.linearised() - 0.5
    return -distance if rate.rate >= 0.5 else distance


def _balanced(side: Sequence[Presented]) -> Floats | None:
    """Values whose mean is the mean recall over the labels that name one answer."""
    named = [None if case[0].correct is None else case[0].label for case in side]
    labels = {label for label in named if label is not None and not isinstance(label, tuple)}
    return mean_of_rates(
        [
            contributions(
                (float(np.mean([row.correct for row in case])), 1.0)
                if answer == label
                else (0.0, 0.0)
                for answer, case in zip(named, side, strict=True)
            )
            for label in sorted(labels, key=str)
        ]
    )


def _halo(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Halo on the dimensions both have judged; only what lies above the experts' own counts.

    A base that guesses each dimension anew has less of it than the experts, and rises to theirs
    when it learns: no loss.
    """
    names = [name for name in after.judged if name in before.judged]
    values: list[Floats | None] = []
    means: list[float | None] = []
    cases = sorted(before.clusters.keys() & after.clusters.keys())
    for side in (before, after):
        rows = [row for name in names for row in side.robust[name]]
        sheets = sheets_of(rows)
        judged, experts = all_same({case: sheets[case] for case in cases}, names)
        if len(names) < 2 or judged.rate is None or experts.rate is None:
            values.append(None)
            means.append(None)
            continue
        halo = judged.rate - experts.rate
        means.append(halo)
        above = experts.linearised() - judged.linearised()
        values.append(above if halo > 0 else np.zeros(len(cases)))
    return _judged("halo", means, _fall(values), [after.clusters[case] for case in cases])
