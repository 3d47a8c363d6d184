"""The numbers of `report.json`, computed from verdict rows and cases alone; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from medrm.evaluation.measures.confidence_measures import calibration_measures
from medrm.evaluation.measures.contributions import contributions, mean_of_rates
from medrm.evaluation.measures.gain import Answered, answered
from medrm.evaluation.measures.position import position_measures
from medrm.evaluation.records.verdicts import verdicts_by_case
from medrm.schema import LETTERS, TIE, UNREAD, Case, Expected, Verdict
from medrm.scorer.verdict_rules import label_of
from medrm.statistics.agreement import cohen_kappa, gwet_ac1
from medrm.statistics.intervals import mean, mean_interval, small_cell_interval

NOT_STATED = "not stated"
"""The row of cases that name no organ, or whatever they are grouped by."""

RULES = {
    "always_a": "always the first answer",
    "always_b": "always the second answer",
    "majority": "the more frequent label",
    "longer": "the longer answer",
    "first_slot": "whichever is shown first",
    "random": "a coin",
}
"""What can be right without a model, in words."""


def case_scores(rows: Iterable[Verdict]) -> dict[str, float]:
    """Returns, for each case with a majority label, its mean score over the presented orders.

    Args:
        rows: of one dimension and one protocol.
    """
    scores = {}
    for case_id, presentations in verdicts_by_case(rows):
        correct = [row.correct for row in presentations if row.correct is not None]
        if correct:
            scores[case_id] = fmean(correct)
    return scores


def robust_measures(rows: Sequence[Verdict]) -> dict[str, Any]:
    """Returns the entry of `protocols.robust.dimensions` for the rows of one dimension.

    Unread is wrong; a tie verdict is wrong against A or B; cases that the experts call a tie are
    counted and scored apart, cases without a majority are in no denominator but those of the
    position measures. Agreement and balanced accuracy leave out cases of which several answers are
    right. `bounds`: the accuracy if all that is unread were wrong, and if it were
    right.
    """
    cases = [presented for _, presented in verdicts_by_case(rows)]
    labelled = [row for row in rows if row.correct is not None]
    tied = [row for row in rows if row.label == TIE]
    single = [row for row in labelled if not isinstance(row.label, tuple)]
    outcomes = [str(row.outcome) for row in single]
    labels = [str(row.label) for row in single]
    measures = accuracy_measures(rows)
    read = answered(rows, {row.case_id for row in labelled}) if labelled else Answered(0.0, None)
    accuracy = measures["accuracy"]
    return {
        **measures,
        "n_tie": len({row.case_id for row in tied}),
        "tie_accuracy": share(tied, lambda row: row.outcome == TIE) if tied else None,
        "coverage": share(rows, lambda row: row.outcome != UNREAD),
        "parsed_accuracy": read.accuracy,
        "bounds": None if accuracy is None else [accuracy, accuracy + (1 - read.coverage)],
        **position_measures(cases),
        "kappa": cohen_kappa(outcomes, labels),
        "ac1": gwet_ac1(outcomes, labels),
        "balanced_accuracy": balanced_accuracy(single),
        "calibration": calibration_measures(cases),
    }


def accuracy_measures(rows: Sequence[Verdict], *, small: bool = False) -> dict[str, Any]:
    """Returns the accuracy with `ci95`, `n` and what is known of the clusters.

    Args:
        rows: of one dimension.
        small: whether these may be few cases, so that Wilson's interval is taken.
    """
    clusters = {row.case_id: row.cluster for row in rows}
    return interval_measures(case_scores(rows), clusters, small=small)


def interval_measures(
    scores: Mapping[str, float], clusters: Mapping[str, str], *, small: bool = False
) -> dict[str, Any]:
    """Returns the mean of cases' scores as `accuracy`, with `ci95`, `n` and the clusters.

    Args:
        scores: of each case, by its id.
        clusters: case id to cluster.
        small: whether these may be few cases, so that Wilson's interval is taken.
    """
    keys = ("ci95", "n", "clusters", "largest_cluster", "design_effect")
    if not scores:
        return {"accuracy": None, **dict(zip(keys, (None, 0, 0, 0, None), strict=True))}
    interval_of = small_cell_interval if small else mean_interval
    interval = interval_of(list(scores.values()), [clusters[case_id] for case_id in scores])
    values = (interval.bounds, interval.n, interval.clusters)
    spread = (interval.largest_cluster, interval.design_effect)
    return {"accuracy": interval.mean, **dict(zip(keys, (*values, *spread), strict=True))}


def group_measures(
    rows: Sequence[Verdict], group: str, dimensions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the accuracy by a property of the case: member -> dimension -> measures."""
    rows_of: dict[str, dict[str, list[Verdict]]] = {}
    for row in rows:
        rows_of.setdefault(member_of(row, group), {}).setdefault(row.dimension, []).append(row)
    return {
        member: {
            name: accuracy_measures(rows_of[member].get(name, []), small=True)
            for name in dimensions
        }
        for member in sorted(rows_of)
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
    clusters = {row.case_id: row.cluster for chosen in rows.values() for row in chosen}
    organs = groups.get("organ", {}).values()
    return {
        "mean": _mean_entry(mean_scores(scores), clusters),
        "joint": _mean_entry(joint_scores(rows), clusters),
        "macro": {name: mean(cells[name]["accuracy"] for cells in organs) for name in rows},
    }


def mean_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns a value for each labelled case; their mean is the mean of the dimensions' means.

    Args:
        scores: dimension to case to score.
    """
    cases = sorted({case_id for of_case in scores.values() for case_id in of_case})
    rates = [
        contributions((of_case.get(case_id, 0.0), float(case_id in of_case)) for case_id in cases)
        for of_case in scores.values()
    ]
    values = mean_of_rates(rates) if cases else None
    return {} if values is None else dict(zip(cases, values.tolist(), strict=True))


def joint_scores(rows: Mapping[str, Sequence[Verdict]]) -> dict[str, float]:
    """Returns, for cases labelled on all dimensions, the share of orders that are right on all."""
    correct_by_order: dict[str, dict[str, list[float]]] = {}
    for chosen in rows.values():
        for row in chosen:
            if row.correct is not None:
                correct_by_order.setdefault(row.case_id, {}).setdefault(row.order, []).append(
                    row.correct
                )
    return {
        case_id: fmean(min(of_order) for of_order in correct_by_order[case_id].values())
        for case_id in sorted(correct_by_order)
        if all(len(of_order) == len(rows) for of_order in correct_by_order[case_id].values())
    }


def _mean_entry(scores: Mapping[str, float], clusters: Mapping[str, str]) -> dict[str, Any]:
    measures = interval_measures(scores, clusters)
    return {key: measures[key] for key in ("accuracy", "ci95", "n", "clusters")}


def balanced_accuracy(labelled: Sequence[Verdict]) -> float | None:
    """Returns the mean recall over the labels that occur: a constant letter reaches 1/2 at most."""
    labels = sorted({str(row.label) for row in labelled})
    recalls = [
        fmean(row.correct or 0.0 for row in labelled if str(row.label) == label) for label in labels
    ]
    return mean(recalls)


def official_measures(rows: Sequence[Verdict], dimensions: Sequence[str]) -> dict[str, Any]:
    """Returns `protocols.official`: the released scorer's table, and its micro and macro means.

    The released scorer has one row for each organ; its denominators are the distinct ids with a
    label A or B, whatever is unread or tied is wrong. It computes no mean: `micro` is over cases,
    `macro` over organs.
    """
    organs = sorted({member_of(row, "organ") for row in rows})
    table: dict[str, dict[str, float | None]] = {organ: {} for organ in organs}
    micro: dict[str, float | None] = {}
    macro: dict[str, float | None] = {}
    for dimension in dimensions:
        chosen = [row for row in rows if row.dimension == dimension]
        micro[dimension] = mean(case_scores(chosen).values())
        for organ in organs:
            of_organ = [row for row in chosen if member_of(row, "organ") == organ]
            table[organ][dimension] = mean(case_scores(of_organ).values())
        cells = [table[organ][dimension] for organ in organs]
        macro[dimension] = mean(cells)
    return {"micro": micro, "macro": macro, "organs": table}


def baselines(
    cases: Sequence[Case], dimensions: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns the accuracies that need no model: rule -> dimension -> accuracy.

    `always_a`, `always_b`: a stored answer; `majority`: the label that is the more frequent one on
    the dimension; `longer`: the answer with most characters, the first one of equals;
    `first_slot`: whichever is shown first, over both orders of pairs (None where a case has more
    than two answers); `random`: what a coin expects, 1/K with K answers of which one is right.
    """
    table: dict[str, dict[str, float | None]] = {name: {} for name in RULES}
    for dimension in dimensions:
        labelled = [
            (case, label)
            for case in cases
            if (label := label_of(case.labels.get(dimension), len(case.answers))[0]) is not None
            and label != TIE
        ]
        for name, accuracy in _rules(labelled).items():
            table[name][dimension] = accuracy
    return table


def _rules(labelled: Sequence[tuple[Case, Expected]]) -> dict[str, float | None]:
    """What each rule reaches on cases with a label for one answer."""
    if not labelled:
        return dict.fromkeys(RULES)
    best = [_indices(label) for _, label in labelled]
    counts = Counter(index for indices in best for index in indices)
    longest = [max(range(len(c.answers)), key=lambda k: len(c.answers[k])) for c, _ in labelled]
    pairs = all(len(case.answers) == 2 for case, _ in labelled)
    return {
        "always_a": counts[0] / len(best),
        "always_b": counts[1] / len(best),
        "majority": max(counts.values()) / len(best),
        "longer": fmean(a in b for a, b in zip(longest, best, strict=True)),
        "first_slot": 0.5 if pairs else None,
        "random": fmean(len(b) / len(c.answers) for (c, _), b in zip(labelled, best, strict=True)),
    }


def _indices(label: Expected) -> tuple[int, ...]:
    """The answers that are right."""
    if isinstance(label, tuple):
        return label
    return (LETTERS.index(label),) if isinstance(label, str) else (label,)


def best_rule(
    table: Mapping[str, Mapping[str, float | None]], dimension: str
) -> tuple[str, float] | None:
    """Returns the rule of `baselines` that is right most often, with its accuracy.

    Of equal ones it is the one that `RULES` names first; None where no case is labelled.
    """
    best = None
    for name in RULES:
        value = table[name][dimension]
        if value is not None and (best is None or value > best[1]):
            best = (name, value)
    return best


def share(rows: Sequence[Verdict], condition: Callable[[Verdict], bool]) -> float:
    """Returns the share of `rows` (not empty) that meet a condition."""
    return fmean(condition(row) for row in rows)


def member_of(row: Verdict, group: str) -> str:
    """Returns what the case of a row is in a group."""
    return row.groups.get(group) or NOT_STATED
