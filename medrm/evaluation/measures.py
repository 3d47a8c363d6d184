"""The numbers of `report.json`, computed from verdict rows and cases alone; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from medrm.evaluation.verdicts import LETTERS, TIE, UNREAD, VerdictRow, by_case, label_of
from medrm.schema import Case
from medrm.statistics import cohen_kappa, mean_interval

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


def case_scores(rows: Iterable[VerdictRow]) -> dict[str, float]:
    """Returns, for each case with a majority label, its mean score over the presented orders.

    Args:
        rows: of one dimension and one protocol.
    """
    scores = {}
    for case_id, presentations in by_case(rows):
        correct = [row.correct for row in presentations if row.correct is not None]
        if correct:
            scores[case_id] = fmean(correct)
    return scores


def robust_measures(rows: Sequence[VerdictRow]) -> dict[str, Any]:
    """Returns the entry of `protocols.robust.dimensions` for the rows of one dimension.

    Unread is wrong; a tie verdict is wrong against A or B; cases that the experts call a tie are
    counted and scored apart, cases without a majority are in no denominator but those of the
    position measures.
    """
    labelled = [row for row in rows if row.correct is not None]
    tied = [row for row in rows if row.label == TIE]
    return {
        **accuracy_measures(rows),
        "n_tie": len({row.case_id for row in tied}),
        "tie_accuracy": share(tied, lambda row: row.outcome == TIE) if tied else None,
        "coverage": share(rows, lambda row: row.outcome != UNREAD),
        **position_measures(rows),
        "kappa": cohen_kappa(
            [str(row.outcome) for row in labelled], [str(row.label) for row in labelled]
        ),
        "balanced_accuracy": balanced_accuracy(labelled),
    }


def accuracy_measures(rows: Sequence[VerdictRow]) -> dict[str, Any]:
    """Returns `accuracy`, `ci95`, `n` and `clusters` for the rows of one dimension."""
    scores = case_scores(rows)
    cluster_of = {row.case_id: row.cluster for row in rows}
    if not scores:
        return {"accuracy": None, "ci95": None, "n": 0, "clusters": 0}
    interval = mean_interval(list(scores.values()), [cluster_of[case_id] for case_id in scores])
    return {
        "accuracy": interval.mean,
        "ci95": interval.bounds,
        "n": interval.n,
        "clusters": interval.clusters,
    }


def group_measures(
    rows: Sequence[VerdictRow], group: str, dimensions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the accuracy by a property of the case: member -> dimension -> measures."""
    found: dict[str, dict[str, list[VerdictRow]]] = {}
    for row in rows:
        found.setdefault(_member(row, group), {}).setdefault(row.dimension, []).append(row)
    return {
        member: {name: accuracy_measures(found[member].get(name, [])) for name in dimensions}
        for member in sorted(found)
    }


def position_measures(rows: Sequence[VerdictRow]) -> dict[str, float | None]:
    """Returns `consistency` and `first_rate`, both None where only one order was presented.

    Consistency: the share of all cases with the same verdict in both orders, where unread is
    inconsistent. First rate: among cases read in both orders, the share of A/B verdicts that name
    the answer shown first; content cancels there, so a departure from 1/2 is a position effect.
    """
    if all(row.order == "forward" for row in rows):
        return {"consistency": None, "first_rate": None}
    consistent, first = [], []
    for _, presentations in by_case(rows):
        outcomes = {row.order: row.outcome for row in presentations}
        read = len(outcomes) == 2 and UNREAD not in outcomes.values()
        consistent.append(read and outcomes["forward"] == outcomes["reversed"])
        if read:
            shown_first = {"forward": LETTERS[0], "reversed": LETTERS[1]}
            first += [
                outcome == shown_first[order]
                for order, outcome in outcomes.items()
                if outcome in LETTERS
            ]
    return {"consistency": fmean(consistent), "first_rate": fmean(first) if first else None}


def balanced_accuracy(labelled: Sequence[VerdictRow]) -> float | None:
    """Returns the mean recall over the labels that occur: a constant letter reaches 1/2 at most."""
    labels = sorted({str(row.label) for row in labelled})
    recalls = [
        fmean(row.correct or 0.0 for row in labelled if str(row.label) == label) for label in labels
    ]
    return fmean(recalls) if recalls else None


def official_measures(rows: Sequence[VerdictRow], dimensions: Sequence[str]) -> dict[str, Any]:
    """Returns `protocols.official`: the released scorer's table, and its micro and macro means.

    The released scorer has one row for each organ; its denominators are the distinct ids with a
    label A or B, whatever is unread or tied is wrong. It computes no mean: `micro` is over cases,
    `macro` over organs.
    """
    organs = sorted({_member(row, "organ") for row in rows})
    table: dict[str, dict[str, float | None]] = {organ: {} for organ in organs}
    micro: dict[str, float | None] = {}
    macro: dict[str, float | None] = {}
    for dimension in dimensions:
        chosen = [row for row in rows if row.dimension == dimension]
        micro[dimension] = _mean(case_scores(chosen).values())
        for organ in organs:
            of_organ = [row for row in chosen if _member(row, "organ") == organ]
            table[organ][dimension] = _mean(case_scores(of_organ).values())
        cells = [table[organ][dimension] for organ in organs]
        macro[dimension] = _mean(cell for cell in cells if cell is not None)
    return {"micro": micro, "macro": macro, "organs": table}


def baselines(
    cases: Sequence[Case], dimensions: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns the accuracies that need no model, on pairs: rule -> dimension -> accuracy.

    `always_a`, `always_b`: a stored answer; `majority`: the label that is the more frequent one on
    the dimension; `longer`: the answer with more characters, the first one of equals;
    `first_slot`: whichever is shown first, over both orders; `random`: what a coin expects.
    """
    table: dict[str, dict[str, float | None]] = {name: {} for name in RULES}
    for dimension in dimensions:
        longer = []
        counts: Counter[str] = Counter()
        for case in cases:
            label, _ = label_of(case.labels.get(dimension), len(case.answers))
            if len(case.answers) == 2 and label in LETTERS:
                counts[str(label)] += 1
                first, second = map(len, case.answers)
                longer.append(label == LETTERS[int(second > first)])
        first_share = counts["A"] / len(longer) if longer else None
        accuracies = (
            dict.fromkeys(RULES)
            if first_share is None
            else {
                "always_a": first_share,
                "always_b": 1 - first_share,
                "majority": max(first_share, 1 - first_share),
                "longer": fmean(longer),
                "first_slot": 0.5,
                "random": 0.5,
            }
        )
        for name in RULES:
            table[name][dimension] = accuracies[name]
    return table


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


def share(rows: Sequence[VerdictRow], condition: Callable[[VerdictRow], bool]) -> float:
    """Returns the share of `rows` (not empty) that meet a condition."""
    return fmean(condition(row) for row in rows)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _member(row: VerdictRow, group: str) -> str:
    return row.groups.get(group) or NOT_STATED
