"""The numbers of `report.json`, computed from verdict rows and cases alone; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from operator import attrgetter
from statistics import fmean
from typing import Any

import numpy as np

from medrm.evaluation.measures import biases
from medrm.evaluation.measures.biases import Presented
from medrm.evaluation.records.jsonl import verdicts_by, verdicts_by_case
from medrm.schema import LETTERS, NEITHER, TIE, UNREAD, Case, Expected, Verdict
from medrm.statistics.agreement import cohen_kappa, gwet_ac1
from medrm.statistics.calibration import calibration, fit_temperature
from medrm.statistics.intervals import Floats, mean, mean_interval, small_cell_interval

NOT_STATED = "not stated"
"""The row of cases that name no organ, or whatever they are grouped by."""

_LEAST_PROBABILITY = 1e-9
"""A probability of 0 or 1 has no log odds."""


def verdicts_by_dimension(
    rows: Iterable[Verdict], dimensions: Collection[str]
) -> tuple[dict[str, list[Verdict]], dict[str, list[Verdict]]]:
    """Returns the robust rows and the official rows of each dimension that was judged.

    Args:
        rows: under one or both protocols.
        dimensions: all of the benchmark, in the order of the results.
    """
    rows_of: dict[str, dict[str, list[Verdict]]] = {
        protocol: {name: [] for name in dimensions} for protocol in ("robust", "official")
    }
    for row in rows:
        rows_of[str(row.protocol)][row.dimension].append(row)
    robust, official = (
        {name: chosen for name, chosen in of_protocol.items() if chosen}
        for of_protocol in rows_of.values()
    )
    return robust, official


def case_scores(rows: Iterable[Verdict]) -> dict[str, float]:
    """Returns, for each case with a majority label, its mean score over the presented orders.

    Args:
        rows: of one dimension and one protocol.
    """
    labelled = verdicts_by_case(row for row in rows if row.correct is not None)
    return {
        case_id: fmean(row.correct or 0.0 for row in presented)
        for case_id, presented in labelled.items()
    }


def robust_measures(rows: Sequence[Verdict]) -> dict[str, Any]:
    """Returns the entry of `protocols.robust.dimensions` for the rows of one dimension.

    Unread is wrong; a tie verdict is wrong against A or B; cases that the experts call a tie are
    counted and scored apart, cases of which they accept neither answer are counted as `n_neither`;
    these and cases without a majority are in no denominator but those of the position measures.
    Agreement and balanced accuracy leave out cases of which several answers are
    right. `bounds`: the accuracy if all that is unread were wrong, and if it were
    right.
    """
    cases = list(verdicts_by_case(rows).values())
    labelled = [row for row in rows if row.correct is not None]
    tied = [row for row in rows if row.label == TIE]
    single = [row for row in labelled if not isinstance(row.label, tuple)]
    outcomes, labels = [str(row.outcome) for row in single], [str(row.label) for row in single]
    measures = accuracy_measures(rows)
    coverage, parsed_accuracy = answered(rows, {row.case_id for row in labelled})
    accuracy = measures["accuracy"]
    return {
        **measures,
        "n_tie": len({row.case_id for row in tied}),
        "n_neither": len({row.case_id for row in rows if row.label == NEITHER}),
        "tie_accuracy": mean(row.outcome == TIE for row in tied),
        "coverage": mean(row.outcome != UNREAD for row in rows),
        "parsed_accuracy": parsed_accuracy,
        "bounds": None if accuracy is None else [accuracy, accuracy + (1 - coverage)],
        **biases.position_measures(cases),
        "kappa": cohen_kappa(outcomes, labels),
        "ac1": gwet_ac1(outcomes, labels),
        "balanced_accuracy": balanced_accuracy(single),
        "calibration": calibration_measures(cases),
    }


def calibration_measures(cases: Iterable[Presented]) -> dict[str, Any] | None:
    """Returns the fields of `medrm.statistics.Calibration` for one dimension.

    None where no probability is stated; a case with an order that has none is left out, so `n`
    says how many there are.
    """
    probabilities, labels = stated_probabilities(cases)
    if not labels:
        return None
    return asdict(calibration(probabilities, labels))


def stated_probabilities(cases: Iterable[Presented]) -> tuple[list[float], list[bool]]:
    """Returns the probability that A is better, and whether A is the label, of each pair.

    Over pairs labelled A or B, the mean over the presented orders, as in section 3 of Wang, Zhang
    and Choi (arXiv 2503.03064).
    """
    probabilities, labels = [], []
    for rows in cases:
        stated = [row.probability_a for row in rows if row.probability_a is not None]
        if rows[0].label in LETTERS and len(stated) == len(rows):
            probabilities.append(fmean(stated))
            labels.append(rows[0].label == LETTERS[0])
    return probabilities, labels


def answered(rows: Iterable[Verdict], cases: Collection[str]) -> tuple[float, float | None]:
    """Returns the share of some cases' presentations that were read, and the accuracy on those.

    Each case counts with the mean over its presentations.
    """
    read = correct = 0.0
    for presented in verdicts_by_case(row for row in rows if row.case_id in cases).values():
        read_rows = [row for row in presented if row.outcome != UNREAD]
        read += len(read_rows) / len(presented)
        correct += sum(row.correct or 0.0 for row in read_rows) / len(presented)
    return (read / len(cases) if cases else 0.0), (correct / read if read else None)


def split_gain(
    before: Iterable[Verdict], after: Iterable[Verdict], cases: Collection[str]
) -> dict[str, float]:
    """Returns `judgement` and `format`, which sum to the difference in accuracy exactly.

    With coverage c and accuracy a on what was read, accuracy = c a, and
    c1 a1 - c0 a0 = (c0 + c1)/2 (a1 - a0) + (a0 + a1)/2 (c1 - c0). Where one side has read nothing
    there is no judgement to compare, and all of the difference is format.

    Args:
        before: rows of one dimension.
        after: rows of the same dimension.
        cases: that count; at least one, all with a majority label.
    """
    (c0, a0), (c1, a1) = answered(before, cases), answered(after, cases)
    a0, a1 = (a1 if a0 is None else a0), (a0 if a1 is None else a1)
    if a0 is None or a1 is None:
        return {"judgement": 0.0, "format": 0.0}
    return {"judgement": (c0 + c1) / 2 * (a1 - a0), "format": (a0 + a1) / 2 * (c1 - c0)}


def accuracy_measures(rows: Sequence[Verdict], *, small: bool = False) -> dict[str, Any]:
    """Returns the accuracy with `ci95`, `n` and what is known of the clusters.

    Args:
        rows: of one dimension.
        small: whether these may be few cases, so that Wilson's interval is taken.
    """
    clusters = {row.case_id: row.cluster for row in rows}
    return interval_measures(case_scores(rows), clusters, small=small)


_INTERVAL = ("accuracy", "ci95", "n", "clusters", "largest_cluster", "design_effect")


def interval_measures(
    scores: Mapping[str, float], clusters: Mapping[str, str], *, small: bool = False
) -> dict[str, Any]:
    """Returns the mean of cases' scores as `accuracy`, with `ci95`, `n` and the clusters.

    Args:
        scores: of each case, by its id.
        clusters: case id to cluster.
        small: whether these may be few cases, so that Wilson's interval is taken.
    """
    if not scores:
        return dict.fromkeys(_INTERVAL) | {"n": 0, "clusters": 0, "largest_cluster": 0}
    interval_of = small_cell_interval if small else mean_interval
    interval = interval_of(list(scores.values()), [clusters[case_id] for case_id in scores])
    measures = {"accuracy": interval.mean, "ci95": interval.bounds, **asdict(interval)}
    return {name: measures[name] for name in _INTERVAL}


def group_measures(
    rows: Mapping[str, Sequence[Verdict]], group: str, dimensions: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Returns the accuracy by a property of the case: member -> dimension -> measures.

    Args:
        rows: dimension to its rows, of the judged dimensions.
        group: a property that cases have.
        dimensions: all of the benchmark.
    """
    rows_of = {
        name: verdicts_by(chosen, lambda row: member_of(row, group))
        for name, chosen in rows.items()
    }
    return {
        member: {
            name: accuracy_measures(rows_of.get(name, {}).get(member, ()), small=True)
            for name in dimensions
        }
        for member in sorted(set(chain.from_iterable(rows_of.values())))
    }


def mean_measures(
    rows: Mapping[str, Sequence[Verdict]], groups: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns `protocols.robust.means`: aggregates over the dimensions, and over the organs.

    `mean`: the unweighted mean of the dimensions' accuracies; `joint`: right on all dimensions,
    over the cases labelled on all; `macro`: for each dimension the unweighted mean over organs,
    None where the cases name none.

    Args:
        rows: dimension to its rows, of the judged dimensions.
        groups: `protocols.robust.groups`.
    """
    scores = {name: case_scores(chosen) for name, chosen in rows.items()}
    cases = sorted(set(chain.from_iterable(scores.values())))
    values = mean_scores(score_matrix(scores, cases))
    clusters = {row.case_id: row.cluster for chosen in rows.values() for row in chosen}
    means = {} if values is None else dict(zip(cases, values.tolist(), strict=True))
    measures: dict[str, Any] = {}
    for name, of_case in (("mean", means), ("joint", joint_scores(rows))):
        aggregate = interval_measures(of_case, clusters)
        measures[name] = {key: aggregate[key] for key in ("accuracy", "ci95", "n", "clusters")}
    organs = groups.get("organ", {}).values()
    macro = {name: mean(cells[name]["accuracy"] for cells in organs) for name in rows}
    return measures | {"macro": macro}


def score_matrix(scores: Mapping[str, Mapping[str, float]], cases: Sequence[str]) -> Floats:
    """Returns the scores of n cases on D dimensions, (n, D), NaN where a case has none.

    Args:
        scores: dimension to case to score.
        cases: ids of the n cases.
    """
    columns = [[of_case.get(case_id, np.nan) for case_id in cases] for of_case in scores.values()]
    return np.array(columns, dtype=np.float64).reshape(len(scores), len(cases)).T


def mean_scores(scores: Floats) -> Floats | None:
    """Returns n values whose mean is the mean of the dimensions' means; None without a score.

    Args:
        scores: of n cases on D dimensions, (n, D), NaN where a case has none.
    """
    columns = zip(np.nan_to_num(scores).T, (~np.isnan(scores)).T.astype(float), strict=True)
    return biases.mean_of_rates(biases.Contributions(*column) for column in columns)


def joint_scores(rows: Mapping[str, Sequence[Verdict]]) -> dict[str, float]:
    """Returns, for cases labelled on all dimensions, the share of orders that are right on all."""
    labelled = (row for row in chain.from_iterable(rows.values()) if row.correct is not None)
    scores = {}
    for case_id, presented in verdicts_by_case(labelled).items():
        orders = verdicts_by(presented, attrgetter("order")).values()
        if all(len(of_order) == len(rows) for of_order in orders):
            scores[case_id] = fmean(min(row.correct or 0.0 for row in of) for of in orders)
    return scores


def balanced_accuracy(labelled: Sequence[Verdict]) -> float | None:
    """Returns the mean recall over the labels that occur: a constant letter reaches 1/2 at most."""
    by_label = verdicts_by(labelled, lambda row: str(row.label))
    return mean(fmean(row.correct or 0.0 for row in chosen) for chosen in by_label.values())


def official_measures(
    rows: Mapping[str, Sequence[Verdict]], dimensions: Sequence[str]
) -> dict[str, Any]:
    """Returns `protocols.official`: the released scorer's table, and its micro and macro means.

    The released scorer has one row for each organ; its denominators are the distinct ids with a
    label A or B, whatever is unread or tied is wrong. It computes no mean: `micro` is over cases,
    `macro` over organs.

    Args:
        rows: dimension to its rows, of the judged dimensions.
        dimensions: all of the benchmark.
    """
    organs = {
        organ: {name: cell["accuracy"] for name, cell in cells.items()}
        for organ, cells in group_measures(rows, "organ", dimensions).items()
    }
    return {
        "micro": {name: mean(case_scores(rows.get(name, ())).values()) for name in dimensions},
        "macro": {name: mean(cells[name] for cells in organs.values()) for name in dimensions},
        "organs": organs,
    }


def right_answers(label: Expected | None) -> tuple[int, ...]:
    """Returns the indices of the answers that are right; none without a majority for an answer."""
    if isinstance(label, str):
        return (LETTERS.index(label),) if label in LETTERS else ()
    return (label,) if isinstance(label, int) else label or ()


def member_of(judged: Case | Verdict, group: str) -> str:
    """Returns what a case, or the case of a verdict, is in a group."""
    return judged.groups.get(group) or NOT_STATED


def fold_measures(
    rows: Sequence[Verdict],
    primary: str,
    assignment: Mapping[str, int],
    temperatures: Sequence[float | None],
) -> dict[str, Any]:
    """Returns the entry `crossfit` of `report.json`: each fold of a cross-fitted evaluation.

    Each was judged by a model of its own, whose scores have a scale of their own, so probabilities
    are calibrated fold by fold.

    Args:
        rows: of all folds.
        primary: the dimension that is shown.
        assignment: case id to fold, counted from 1.
        temperatures: of each fold's model, None where it gives no probabilities.
    """
    folds: list[dict[str, Any]] = []
    for number, temperature in enumerate(temperatures, start=1):
        of_fold = [row for row in rows if assignment[row.case_id] == number]
        clusters = {row.case_id: row.cluster for row in of_fold}
        judged = _robust(of_fold, primary)
        log_odds, labels = _log_odds(judged)
        measured = None
        if temperature is not None and labels:
            scaled = _calibration(log_odds / temperature, labels)
            measured = {"raw": _calibration(log_odds, labels), "scaled": scaled}
        sizes = {"cases": len(clusters), "clusters": len(set(clusters.values()))}
        accuracy = accuracy_measures(judged)["accuracy"]
        measures = {"accuracy": accuracy, "temperature": temperature, "calibration": measured}
        folds.append({"fold": number, **sizes, **measures})
    return {"folds": len(temperatures), "per_fold": folds}


def temperature_of(rows: Sequence[Verdict], primary: str) -> float | None:
    """Returns the temperature that fits a model's verdicts on its own development cases.

    None where it gave no probability on the primary dimension.
    """
    log_odds, labels = _log_odds(_robust(rows, primary))
    return fit_temperature(log_odds.tolist(), labels) if labels else None


def _robust(rows: Sequence[Verdict], dimension: str) -> list[Verdict]:
    return [row for row in rows if row.protocol == "robust" and row.dimension == dimension]


def _log_odds(rows: Sequence[Verdict]) -> tuple[Floats, list[bool]]:
    """The log odds of A on each pair, and whether A is the label."""
    probabilities, labels = stated_probabilities(verdicts_by_case(rows).values())
    clipped = np.array(probabilities).clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(clipped / (1 - clipped)), labels


def _calibration(log_odds: Floats, labels: list[bool]) -> dict[str, Any]:
    measured = asdict(calibration((1 / (1 + np.exp(-log_odds))).tolist(), labels))
    return {k: value for k, value in measured.items() if k not in ("bins", "risk_coverage")}
