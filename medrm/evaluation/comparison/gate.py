"""What a claim passes: evaluations that can be compared, and what must not get worse.

Two evaluations may differ in their weights; any other difference that was not declared beforehand
blocks the headline.

While the accuracy gets better, some measures must not get worse. A check fails where the paired
loss is larger than its margin and its 95 % interval lies above zero. A loss that is noise therefore
fails one check in forty, even where the margin is zero; the rule "any loss fails" would fail every
other good model. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from medrm.errors import nearest, refuse
from medrm.evaluation.comparison.pairing import Evaluation
from medrm.evaluation.measures import biases
from medrm.evaluation.measures.biases import Presented
from medrm.evaluation.records.jsonl import verdicts_by_case
from medrm.evaluation.report import Report
from medrm.schema import UNREAD
from medrm.statistics.crossed import CrossedMean
from medrm.statistics.intervals import Floats, Interval, mean_interval

NAMES = ("benchmark", "cases", "labels", "readout", "dimensions", "orders")
"""What is compared besides the settings."""

RECORDED_LATER = ("image_processing", "rendered_prompt_digest")
"""Settings of models in memory that versions before 0.3 did not record: unknown, not different."""

_LIMITS = ("min_pixels", "max_pixels")
"""Those versions recorded the options alone: None is the processor's own limit, whichever that is.
"""

_OF_SOME_READOUTS = ("max_length",)
"""Those versions recorded it of some readouts alone."""

OTHER_DATA = {"benchmark", "cases", "labels"}
"""Differences that leave nothing to compare; a recipe has no reason to declare them."""


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


def find_differences(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """Returns everything but the weights in which two evaluations differ: name -> both values.

    Settings that only one side has, and the presented orders, belong to the readout: they count
    only where the readout is the same. A setting that both have counts always. What an earlier
    version did not record is unknown, not different: see `not_recorded`.
    """
    same_readout = before.report["readout"] == after.report["readout"]
    pairs: dict[str, tuple[Any, Any]] = {
        "benchmark": (before.report["benchmark"]["digest"], after.report["benchmark"]["digest"]),
        "readout": (before.report["readout"], after.report["readout"]),
        "dimensions": (list(before.robust), list(after.robust)),
        **({"orders": (before.orders, after.orders)} if same_readout else {}),
    }
    pairs |= _compared_settings(before.report, after.report, same_readout)
    differences = {
        name: {"before": values[0], "after": values[1]}
        for name, values in pairs.items()
        if values[0] != values[1]
    }
    cases = (before.clusters.keys(), after.clusters.keys())
    if cases[0] != cases[1]:
        counts = map(len, (*cases, cases[0] & cases[1]))
        differences["cases"] = dict(zip(("before", "after", "shared"), counts, strict=True))
    if _labels(before, after) != _labels(after, before):
        differences["labels"] = {"before": "other labels or clusters", "after": "than these"}
    return differences


def _compared_settings(
    before: Report, after: Report, same_readout: bool
) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that count, of both sides."""
    first, second = flat_settings(before), flat_settings(after)
    earlier = [bool(not_recorded(report)) for report in (before, after)]
    pairs = {}
    for name in sorted(first.keys() | second.keys()):
        values = (first.get(name), second.get(name))
        in_both = name in first and name in second
        counts = in_both or (same_readout and name not in _OF_SOME_READOUTS)
        if name in _LIMITS and earlier[0] != earlier[1]:
            counts = counts and None not in values
        if any(earlier) and name.partition(".")[0] in RECORDED_LATER:
            counts = False
        if counts:
            pairs[name] = values
    return pairs


def flat_settings(report: Report) -> dict[str, Any]:
    """Returns the settings of an evaluation; of one with parts, each part: `NAME.PART`."""
    flat: dict[str, Any] = {}
    for name, value in report["settings"].items():
        parts = value.items() if isinstance(value, Mapping) else ()
        flat |= {f"{name}.{part}": of_part for part, of_part in parts} or {name: value}
    return flat


def not_recorded(report: Report) -> list[str]:
    """Returns the settings of a model in memory that an earlier version did not record."""
    settings = report["settings"]
    lacking = [name for name in RECORDED_LATER if name not in settings]
    return lacking if "chat_template_digest" in settings else []


def _labels(evaluation: Evaluation, other: Evaluation) -> set[tuple[Any, ...]]:
    """Labels and clusters of an evaluation, where another has judged as well."""
    return {
        (row.case_id, row.dimension, row.label, row.cluster)
        for row in chain.from_iterable(evaluation.robust.values())
        if row.dimension in other.robust and row.case_id in other.clusters
    }


def check_declared(declared: Sequence[str], *reports: Report) -> None:
    """Raises unless every declared difference names something that is compared.

    Args:
        declared: the allowed differences.
        reports: of the evaluations; their settings are compared.

    Raises:
        ConfigError: names what is unknown.
    """
    names = [*NAMES, *sorted({name for side in reports for name in flat_settings(side)})]
    problems = [
        f"{name!r} is not compared.{nearest(name, names)}" for name in declared if name not in names
    ]
    accepted = f"{len(problems)} unknown. Accepted: {', '.join(names)}."
    refuse(problems, f"allowed_differences: {accepted}")


Losses = tuple[float | None, float | None, Floats | None]
"""A measure before and after, and values (n) whose mean is how much worse it got; None: not known.
"""


def non_inferiority_checks(
    before: Evaluation, after: Evaluation, primary: str
) -> dict[str, dict[str, Any]]:
    """Returns `guardrails` of `comparison.json`: the checks on the primary dimension.

    They are over the cases that both have judged. Each has `before`, `after`, `loss` (how much
    worse it got), `ci95` of the loss, `margin` and `state`: held, failed, or skipped where one side
    has no such number.
    """
    return checks_over(
        [(before, after)],
        primary,
        lambda losses, clusters: mean_interval(losses[0].tolist(), clusters),
    )


def checks_over(
    pairs: Sequence[tuple[Evaluation, Evaluation]],
    primary: str,
    interval: Callable[[Floats, Sequence[str]], Interval | CrossedMean],
) -> dict[str, dict[str, Any]]:
    """Returns the checks over S pairs of evaluations of the same n cases.

    A measure that one of the pairs has no number for has none.

    Args:
        pairs: evaluations before and after, one pair for each seed.
        primary: the dimension.
        interval: returns the mean of losses (S, n) with its bounds, given the cases' clusters.
    """
    measured = [_measured_losses(before, after, primary) for before, after in pairs]
    clusters, checks = measured[0][0], {}
    for name in MARGINS:
        first, last, losses = zip(*(of_pair[name] for _, of_pair in measured), strict=True)
        loss, bounds = None, None
        if clusters and all(of_pair is not None for of_pair in losses):
            estimate = interval(np.stack(losses), clusters)
            loss, bounds = estimate.mean, estimate.bounds and list(estimate.bounds)
        checks[name] = _check(name, _mean_over(first), _mean_over(last), loss, bounds)
    return checks


def _mean_over(values: Sequence[float | None]) -> float | None:
    """The mean over the pairs; None where one of them has no such number."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if len(numbers) == len(values) else None


def _measured_losses(
    before: Evaluation, after: Evaluation, primary: str
) -> tuple[list[str], dict[str, Losses]]:
    """Returns the clusters of the n cases that both have judged, and what each measure lost."""
    by_case = [verdicts_by_case(side.robust[primary]) for side in (before, after)]
    cases = [case for case in by_case[0] if case in by_case[1]]
    both = [name for name in after.robust if name in before.robust]
    measured = [
        _measured([of_side[case] for case in cases]) | {"halo": _halo(side, both, set(cases))}
        for side, of_side in zip((before, after), by_case, strict=True)
    ]
    losses: dict[str, Losses] = {}
    for name in MARGINS:
        (first, of_before), (last, of_after) = (of_side[name] for of_side in measured)
        lost = None if of_before is None or of_after is None else of_before - of_after
        losses[name] = (first, last, lost)
    return [after.clusters[case] for case in cases], losses


def _check(
    name: str,
    before: float | None,
    after: float | None,
    loss: float | None,
    bounds: Sequence[float] | None,
) -> dict[str, Any]:
    """Returns the check of one measure.

    Args:
        name: of the measure.
        before: its value before.
        after: its value after.
        loss: how much worse it got; None: not known.
        bounds: of the loss; None: no interval.
    """
    state = "skipped"
    if loss is not None:
        clear = bounds is None or bounds[0] > _ROUNDING
        state = "failed" if clear and loss > MARGINS[name] + _ROUNDING else "held"
    measured = {"before": before, "after": after, "loss": loss, "ci95": bounds}
    return {**measured, "margin": MARGINS[name], "state": state}


def _mean_of(values: Floats | None) -> Measured:
    """A measure that is the mean of the cases' values."""
    return None if values is None or not len(values) else float(values.mean()), values


def _measured(cases: Sequence[Presented]) -> dict[str, Measured]:
    """The measures of one dimension."""
    coverage = np.array([fmean(row.outcome != UNREAD for row in case) for case in cases])
    return {
        "coverage": _mean_of(coverage),
        "consistency": _mean_of(
            biases.consistent(cases).numerator if biases.in_both_orders(cases) else None
        ),
        "first_rate": _first_rate(cases),
        "balanced_accuracy": _balanced(cases),
    }


def _first_rate(cases: Sequence[Presented]) -> Measured:
    """The values' mean is minus the rate's distance from one half."""
    first = biases.named_first(cases)
    if first.rate is None:
        return None, None
    distance = first.linearised() - 0.5
    return first.rate, -distance if first.rate >= 0.5 else distance


def _balanced(cases: Sequence[Presented]) -> Measured:
    """The mean recall over the labels that name one answer."""
    single = [
        case[0].correct is not None and not isinstance(case[0].label, tuple) for case in cases
    ]
    labels = np.array([str(case[0].label) for case in cases], dtype=np.str_)
    scores = np.array([fmean(row.correct or 0.0 for row in case) for case in cases])
    chosen = [np.array(single) & (labels == label) for label in np.unique(labels[single])]
    return _mean_of(
        biases.mean_of_rates(biases.Contributions(scores * of, of * 1.0) for of in chosen)
    )


def _halo(evaluation: Evaluation, dimensions: Sequence[str], cases: Collection[str]) -> Measured:
    """Halo on the dimensions both have judged; only what lies above the experts' own counts.

    A base that guesses each dimension anew has less of it than the experts, and rises to theirs
    when it learns: no loss.
    """
    rows = (row for name in dimensions for row in evaluation.robust[name] if row.case_id in cases)
    judged, experts = biases.all_same(biases.signs_of(rows, dimensions))
    halo = biases.excess(judged.rate, experts.rate)
    if len(dimensions) < 2 or halo is None:
        return None, None
    above = experts.linearised() - judged.linearised()
    return halo, above if halo > 0 else np.zeros(len(above))
