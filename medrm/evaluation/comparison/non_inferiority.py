"""What must not get worse while the accuracy gets better; imports no torch.

A guardrail fails where the paired loss is larger than its margin and its 95 % interval lies above
zero. A loss that is noise therefore fails one guardrail in forty, even where the margin is zero;
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
from medrm.statistics import Floats, mean_interval

MARGINS = {
    "coverage": 0.01,
    "consistency": 0.02,
    "first_rate": 0.02,
    "balanced_accuracy": 0.0,
    "halo": 0.0,
}
"""How much worse a guardrail may get: `first_rate` in its distance from one half, `halo` in what
lies above the experts' own."""

_ROUNDING = 1e-12


def guardrails(before: Evaluation, after: Evaluation, primary: str) -> dict[str, dict[str, Any]]:
    """Returns the guardrails on the primary dimension, over the cases that both have judged.

    Each has `before`, `after`, `loss` (how much worse it got), `ci95` of the loss, `margin` and
    `state`: held, failed, or skipped where one side has no such number.
    """
    old, new = _by_case(before, primary), _by_case(after, primary)
    cases = sorted(old.keys() & new.keys())
    clusters = [after.clusters[case] for case in cases]
    sides = [[side[case] for case in cases] for side in (old, new)]
    return {
        "coverage": _rail("coverage", [_coverage(side) for side in sides], clusters),
        "consistency": _rail("consistency", [_consistency(side) for side in sides], clusters),
        "first_rate": _first_rate(sides, clusters),
        "balanced_accuracy": _rail("balanced_accuracy", [_balanced(s) for s in sides], clusters),
        "halo": _halo(before, after),
    }


def _by_case(evaluation: Evaluation, dimension: str) -> dict[str, list[Verdict]]:
    cases: dict[str, list[Verdict]] = {}
    for row in evaluation.robust[dimension]:
        cases.setdefault(row.case_id, []).append(row)
    return cases


def _rail(name: str, values: Sequence[Floats | None], clusters: Sequence[str]) -> dict[str, Any]:
    """A guardrail of which more is better.

    Args:
        name: in `MARGINS`.
        values: of each side, (n) whose mean is the number; None: it has none.
        clusters: of the n cases.
    """
    early, late = values
    means = [None if one is None or not len(one) else float(one.mean()) for one in values]
    loss = None if early is None or late is None else early - late
    return _judged(name, means, loss, clusters)


def _judged(
    name: str, means: Sequence[float | None], loss: Floats | None, clusters: Sequence[str]
) -> dict[str, Any]:
    rail: dict[str, Any] = {"before": means[0], "after": means[1], "loss": None, "ci95": None}
    rail |= {"margin": MARGINS[name], "state": "skipped"}
    if loss is None or not len(loss):
        return rail
    interval = mean_interval(loss.tolist(), clusters)
    clear = interval.low is None or interval.low > _ROUNDING
    failed = interval.mean > MARGINS[name] + _ROUNDING and clear
    state = "failed" if failed else "held"
    return rail | {"loss": interval.mean, "ci95": interval.bounds, "state": state}


def _coverage(side: Sequence[Presented]) -> Floats:
    return np.array([np.mean([row.outcome != UNREAD for row in case]) for case in side])


def _consistency(side: Sequence[Presented]) -> Floats | None:
    return consistent(side).numerator if in_both_orders(side) else None


def _first_rate(sides: Sequence[Sequence[Presented]], clusters: Sequence[str]) -> dict[str, Any]:
    rates = [named_first(side) if in_both_orders(side) else None for side in sides]
    means = [None if one is None else one.rate for one in rates]
    away = [None if one is None else _distance(one) for one in rates]
    early, late = away
    loss = None if early is None or late is None else late - early
    return _judged("first_rate", means, loss, clusters)


def _distance(rate: Contributions) -> Floats | None:
    """Values whose mean is the rate's distance from one half."""
    if rate.rate is None:
        return None
    away = rate.linearised() - 0.5
    return away if rate.rate >= 0.5 else -away


def _balanced(side: Sequence[Presented]) -> Floats | None:
    """Values whose mean is the mean recall over the labels that name one answer."""
    named = [None if case[0].correct is None else case[0].label for case in side]
    labels = {label for label in named if label is not None and not isinstance(label, tuple)}
    return mean_of_rates(
        [
            contributions(
                (float(np.mean([row.correct for row in case])), 1.0) if own == label else (0.0, 0.0)
                for own, case in zip(named, side, strict=True)
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
        above = judged.linearised() - experts.linearised()
        values.append(above if halo > 0 else np.zeros(len(cases)))
    early, late = values
    loss = None if early is None or late is None else late - early
    return _judged("halo", means, loss, [after.clusters[case] for case in cases])
