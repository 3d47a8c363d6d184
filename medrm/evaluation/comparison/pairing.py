"""Two evaluations case by case: differences with their intervals and tests; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from medrm.errors import DataError
from medrm.evaluation.comparison.evaluations import Evaluation, Scores
from medrm.evaluation.measures.accuracy import NOT_STATED, mean_scores
from medrm.statistics.intervals import Floats, bootstrap_intervals, mean_interval
from medrm.statistics.significance import (
    benjamini_hochberg,
    holm,
    mcnemar_midp,
    minimum_detectable,
    sign_flip_test,
)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Pairing:
    """The cases and dimensions that both evaluations have judged.

    Attributes:
        names: the D dimensions.
        cases: ids of the n cases, sorted.
        clusters: of the n cases.
        before: scores of shape (n, D), NaN where a case has no label or one side has not judged it.
        after: the same, with NaN in the same cells.
    """

    names: list[str]
    cases: list[str]
    clusters: list[str]
    before: Floats
    after: Floats

    @property
    def differences(self) -> Floats:
        """After minus before, of shape (n, D)."""
        return self.after - self.before


def pair(
    before: Evaluation, after: Evaluation, before_scores: Scores, after_scores: Scores
) -> Pairing:
    """Returns the scores of two evaluations on what both have judged.

    Args:
        before: evaluation before training.
        after: of the trained model.
        before_scores: some scores of the first.
        after_scores: the same scores of the second.

    Raises:
        DataError: they have no case in common.
    """
    names = [
        name for name in after.report["ceiling"] if name in before_scores and name in after_scores
    ]
    cases = sorted(before.clusters.keys() & after.clusters.keys())
    if not cases:
        raise DataError(
            f"{str(before.folder)!r} and {str(after.folder)!r} have no case in common. "
            "Evaluate both models on the same benchmark."
        )
    columns = [
        np.array([[of[name].get(case, np.nan) for name in names] for case in cases]).reshape(
            len(cases), len(names)
        )
        for of in (before_scores, after_scores)
    ]
    missing = np.isnan(columns[0]) | np.isnan(columns[1])
    for scores in columns:
        scores[missing] = np.nan
    return Pairing(names, cases, [after.clusters[case] for case in cases], *columns)


def paired_entry(
    before: Floats, after: Floats, clusters: Sequence[str], widest: float = 1.0
) -> Entry:
    """Returns the means of two columns of scores (n) and their difference with its interval.

    Rows with NaN are left out; all is None where nothing else is left. `widest` is the largest
    difference that there could be.
    """
    paired = ~(np.isnan(before) | np.isnan(after))
    difference: Entry = dict.fromkeys(("before", "after", "delta", "ci95"))
    difference |= {"n": int(paired.sum()), "clusters": 0}
    if not paired.any():
        return difference
    chosen = [cluster for cluster, keep in zip(clusters, paired, strict=True) if keep]
    interval = mean_interval((after - before)[paired].tolist(), chosen, span=(-widest, widest))
    return difference | {
        "before": fmean(before[paired]),
        "after": fmean(after[paired]),
        "delta": interval.mean,
        "ci95": interval.bounds,
        "clusters": interval.clusters,
    }


def dimension_entries(before: Evaluation, after: Evaluation, pairing: Pairing) -> dict[str, Entry]:
    """Returns each dimension of the benchmark before and after.

    `p` is adjusted over the dimensions that both have judged. Where only one side has judged one,
    its own accuracy stands alone, without a difference.
    """
    test = sign_flip_test(pairing.differences, pairing.clusters)
    labelled = np.flatnonzero(~np.isnan(pairing.before).all(axis=0)).tolist()
    by_holm = dict(zip(labelled, holm([test.p[index] for index in labelled]), strict=True))
    resampled = bootstrap_intervals(pairing.differences, pairing.clusters)
    entries: dict[str, Entry] = {}
    for name, ceiling in after.report["ceiling"].items():
        difference = {
            "dimension": name,
            **_unpaired(name, before, after),
            "p": None,
            "ceiling": ceiling,
        }
        if name in pairing.names:
            column = pairing.names.index(name)
            scores = pairing.before[:, column], pairing.after[:, column]
            difference |= paired_entry(*scores, pairing.clusters)
            if difference["n"]:
                bounds = resampled[column]
                difference |= {
                    "p": test.adjusted[column],
                    "p_unadjusted": test.p[column],
                    "p_holm": by_holm.get(column),
                    "ci95_bootstrap": None if bounds is None else list(bounds),
                    **_transitions(*scores),
                }
        entries[name] = dict.fromkeys(_MORE) | difference
    return entries


_MORE = (
    *("p_unadjusted", "p_holm", "p_mcnemar", "ci95_bootstrap"),
    *("fixed", "broken", "both_right", "both_wrong"),
)


def _unpaired(name: str, before: Evaluation, after: Evaluation) -> Entry:
    """A dimension as either side has judged it."""
    scores = {"before": before.scores.get(name), "after": after.scores.get(name)}
    means = {side: fmean(of.values()) if of else None for side, of in scores.items()}
    return {**means, "delta": None, "ci95": None, "n": 0, "clusters": 0}


def _transitions(before: Floats, after: Floats) -> Entry:
    """Cases judged better (fixed) and worse (broken) than before, and those judged as before.

    Of the latter, `both_right` are right in all orders; the others are `both_wrong`.
    """
    fixed, broken = int((after > before).sum()), int((after < before).sum())
    return {
        "fixed": fixed,
        "broken": broken,
        "both_right": int(((after == before) & (after == 1.0)).sum()),
        "both_wrong": int(((after == before) & (after < 1.0)).sum()),
        "p_mcnemar": mcnemar_midp(fixed, broken),
    }


def simple_entries(
    before: Evaluation, after: Evaluation, before_scores: Scores, after_scores: Scores
) -> dict[str, Entry]:
    """Returns before, after, difference and interval of other scores, by dimension."""
    pairing = pair(before, after, before_scores, after_scores)
    columns = zip(pairing.before.T, pairing.after.T, strict=True)
    entries = [paired_entry(*scores, pairing.clusters) for scores in columns]
    return dict(zip(pairing.names, entries, strict=True))


def forward_entries(
    before: Evaluation, after: Evaluation, dimensions: Mapping[str, Entry]
) -> dict[str, Entry] | None:
    """Returns the differences in the stored order alone; None where no side was shown both orders.

    `position` is the rest of the exact split: delta in the stored order = delta over the presented
    orders + position.

    Args:
        before: evaluation before training.
        after: of the trained model.
        dimensions: entries over all presented orders.
    """
    if before.orders == after.orders == ["forward"]:
        return None
    entries = simple_entries(before, after, before.forward_scores, after.forward_scores)
    for name, difference in entries.items():
        deltas = (difference["delta"], dimensions[name]["delta"])
        difference["position"] = None if None in deltas else deltas[0] - deltas[1]
    return entries


def mean_entry(pairing: Pairing) -> Entry:
    """Returns the unweighted mean of the dimensions' accuracies before and after."""
    values = []
    for scores in (pairing.before, pairing.after):
        of_dimension = {
            name: {
                case: score
                for case, score in zip(pairing.cases, column.tolist(), strict=True)
                if not np.isnan(score)
            }
            for name, column in zip(pairing.names, scores.T, strict=True)
        }
        means = mean_scores(of_dimension)
        values.append(np.array([means.get(case, np.nan) for case in pairing.cases]))
    return paired_entry(values[0], values[1], pairing.clusters)


def detectable(pairing: Pairing, primary: str) -> Entry:
    """Returns the smallest gain on a dimension that such cases show with 80 % power.

    `discordance` is the mean squared difference; `points` is None below two clusters, where nothing
    changed, or where even changes in one direction, the mean absolute difference, are no such gain.
    """
    column = pairing.differences[:, pairing.names.index(primary)]
    paired = ~np.isnan(column)
    least_gain: Entry = {"n": int(paired.sum()), "design_effect": None, "discordance": None}
    least_gain["points"] = None
    if not paired.any():
        return least_gain
    chosen = [name for name, keep in zip(pairing.clusters, paired, strict=True) if keep]
    effect = mean_interval(column[paired].tolist(), chosen).design_effect
    discordance = float((column[paired] ** 2).mean())
    least_gain |= {"design_effect": effect, "discordance": discordance}
    if discordance and len({*chosen}) > 1 and (effect is None or effect > 0):
        least = minimum_detectable(least_gain["n"], discordance, effect or 1.0)
        within_reach = least <= float(np.abs(column[paired]).mean())
        least_gain["points"] = least if within_reach else None
    return least_gain


def cells(
    pairing: Pairing, groups: Mapping[str, Mapping[str, str]], names: Sequence[str]
) -> dict[str, list[Entry]]:
    """Returns the difference in every cell of member and dimension, by group; exploratory.

    `p_bh` is adjusted over all cells of a group by Benjamini and Hochberg.

    Args:
        pairing: of the robust scores.
        groups: of each case.
        names: of the groups to look at, such as organ.
    """
    return {name: _cells(pairing, groups, name) for name in names}


def _cells(pairing: Pairing, groups: Mapping[str, Mapping[str, str]], group: str) -> list[Entry]:
    members: dict[str, list[int]] = {}
    for index, case in enumerate(pairing.cases):
        members.setdefault(groups[case].get(group) or NOT_STATED, []).append(index)
    cells_of_group: list[Entry] = []
    for member in sorted(members):
        chosen = members[member]
        clusters = [pairing.clusters[index] for index in chosen]
        before, after = pairing.before[chosen], pairing.after[chosen]
        test = sign_flip_test(after - before, clusters)
        for column, name in enumerate(pairing.names):
            cell = paired_entry(before[:, column], after[:, column], clusters)
            cell["p"] = test.p[column] if cell["n"] else None
            cells_of_group.append({"member": member, "dimension": name, **cell, "p_bh": None})
    tested = [cell for cell in cells_of_group if cell["p"] is not None]
    for cell, p in zip(tested, benjamini_hochberg([cell["p"] for cell in tested]), strict=True):
        cell["p_bh"] = p
    return cells_of_group
