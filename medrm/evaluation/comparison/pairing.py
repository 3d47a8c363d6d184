"""Two evaluations case by case: differences with their intervals and tests; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from medrm.errors import DataError
from medrm.evaluation.benchmark import RULES, best_rule, rule_scores
from medrm.evaluation.measures import accuracy
from medrm.evaluation.measures.biases import excess
from medrm.evaluation.records.jsonl import VERDICTS_FILE, grouped, read_verdicts
from medrm.evaluation.records.stored_cases import read_stored_cases
from medrm.evaluation.report import Report, read_report
from medrm.schema import Verdict
from medrm.scorer.verdict_rules import EVALUATE_AGAIN
from medrm.statistics import significance
from medrm.statistics.intervals import Floats, bootstrap_intervals, mean, mean_interval

Entry = dict[str, Any]

UNPAIRED: Entry = {**dict.fromkeys(("before", "after", "delta", "ci95")), "n": 0, "clusters": 0}
"""The difference where both have judged no case."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder: its report and its verdict rows by dimension, for each protocol."""

    folder: Path
    report: Report
    robust: Mapping[str, list[Verdict]]
    official: Mapping[str, list[Verdict]]

    @cached_property
    def scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """The score of each case with a majority label, counted in three ways.

        `robust`: the mean over the presented orders; `forward`: in the stored order only;
        `official`: under the official protocol. Each is dimension, in the benchmark's order, to
        case, by id, to its score.
        """
        forward = {
            name: [row for row in rows if row.order == "forward"]
            for name, rows in self.robust.items()
        }
        counted = {"robust": self.robust, "forward": forward, "official": self.official}
        return {
            counting: {name: accuracy.case_scores(rows) for name, rows in of_dimension.items()}
            for counting, of_dimension in counted.items()
        }

    @cached_property
    def judged_cases(self) -> dict[str, Verdict]:
        """One verdict on every judged case, which has its cluster and its groups."""
        return {row.case_id: row for row in chain.from_iterable(self.robust.values())}

    @cached_property
    def clusters(self) -> dict[str, str]:
        """The cluster of every judged case."""
        return {case_id: row.cluster for case_id, row in self.judged_cases.items()}

    @cached_property
    def orders(self) -> list[str]:
        """The orders in which cases were presented."""
        return sorted({row.order for row in chain.from_iterable(self.robust.values())})


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation folder.

    Raises:
        DataError: it is incomplete, or was not judged under the robust protocol.
    """
    report = read_report(folder)
    rows = read_verdicts(folder / VERDICTS_FILE)
    foreign = [row.dimension for row in rows if row.dimension not in report["ceiling"]]
    if foreign:
        raise DataError(
            f"{VERDICTS_FILE} and report.json in {str(folder)!r} do not belong together: one "
            f"judges {foreign[0]!r}, the other does not. {EVALUATE_AGAIN}"
        )
    judged = accuracy.verdicts_by_dimension(rows, report["ceiling"])
    evaluation = Evaluation(folder, report, *judged)
    if not evaluation.robust:
        raise DataError(
            f"{str(folder)!r} was not judged under the robust protocol, which a comparison needs. "
            "Evaluate again with --protocol both."
        )
    counts = Counter(row.case_id for row in rows if row.protocol == "robust")
    fewest = min(counts, key=counts.__getitem__)
    if counts[fewest] < max(counts.values()):
        raise DataError(
            f"{VERDICTS_FILE} in {str(folder)!r} lacks verdicts on case {fewest!r}. "
            f"{EVALUATE_AGAIN}"
        )
    return evaluation


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

    def entries(self) -> dict[str, Entry]:
        """Returns before, after and their difference on each dimension, see `paired_entry`."""
        columns = zip(self.names, self.before.T, self.after.T, strict=True)
        return {name: paired_entry(first, last, self.clusters) for name, first, last in columns}

    def of_cases(self, chosen: Sequence[int]) -> Pairing:
        """Returns some of the cases, given by their indices."""
        cases = [self.cases[index] for index in chosen]
        clusters = [self.clusters[index] for index in chosen]
        return Pairing(self.names, cases, clusters, self.before[chosen], self.after[chosen])


def pair(before: Evaluation, after: Evaluation, counting: str = "robust") -> Pairing:
    """Returns the scores of two evaluations on what both have judged.

    Args:
        before: evaluation before training.
        after: of the trained model.
        counting: which of `Evaluation.scores`.

    Raises:
        DataError: they have no case in common.
    """
    scores = [side.scores[counting] for side in (before, after)]
    names = [name for name in after.report["ceiling"] if all(name in of_side for of_side in scores)]
    cases = sorted(before.clusters.keys() & after.clusters.keys())
    if not cases:
        raise DataError(
            f"{str(before.folder)!r} and {str(after.folder)!r} have no case in common. "
            "Evaluate both models on the same benchmark."
        )
    shared = [{name: of_side[name] for name in names} for of_side in scores]
    first, second = (accuracy.score_matrix(of_side, cases) for of_side in shared)
    first[np.isnan(second)] = np.nan
    second[np.isnan(first)] = np.nan
    return Pairing(names, cases, [after.clusters[case] for case in cases], first, second)


def paired_entry(
    before: Floats, after: Floats, clusters: Sequence[str], widest: float = 1.0
) -> Entry:
    """Returns the means of two columns of scores (n) and their difference with its interval.

    Rows with NaN are left out; all is None where nothing else is left. `widest` is the largest
    difference that there could be.
    """
    paired = np.flatnonzero(~np.isnan(after - before)).tolist()
    if not paired:
        return dict(UNPAIRED)
    chosen = [clusters[index] for index in paired]
    interval = mean_interval((after - before)[paired].tolist(), chosen, span=(-widest, widest))
    return {
        "before": fmean(before[paired]),
        "after": fmean(after[paired]),
        "delta": interval.mean,
        "ci95": interval.bounds,
        "n": len(paired),
        "clusters": interval.clusters,
    }


def tested_entry(pairing: Pairing, dimension: str) -> Entry:
    """Returns the difference on one dimension with its p, not adjusted for the others."""
    difference = {"dimension": dimension, **UNPAIRED, "p": None}
    difference |= pairing.entries().get(dimension, {})
    if difference["n"]:
        changes = pairing.differences[:, [pairing.names.index(dimension)]]
        difference["p"] = significance.sign_flip_test(changes, pairing.clusters).p[0]
    return difference


def against_best_rule(after: Evaluation, dimension: str) -> Entry | None:
    """Returns `best_rule` of `comparison.json`: the trained model against a rule without a model.

    None where the folder does not hold its cases, or none is labelled.
    """
    found = rule_pairing(after, dimension)
    return None if found is None else {**rule_words(found[0]), **tested_entry(found[1], dimension)}


def rule_pairing(after: Evaluation, dimension: str) -> tuple[str, Pairing] | None:
    """Returns the best rule without a model, and its scores paired with the trained model's.

    It is the rule that is right most often by the labels of the very cases. That favours the rule:
    what is shown against it is shown against any of `RULES`. None as in `against_best_rule`.
    """
    try:
        cases = read_stored_cases(after.folder)
    except DataError:
        return None
    scores, by_rule = after.scores["robust"].get(dimension, {}), rule_scores(cases, dimension)
    table = {rule: {dimension: mean(by_rule.get(rule, {}).values())} for rule in RULES}
    best = best_rule(table, dimension)
    judged = sorted(scores.keys() & by_rule[best[0]].keys()) if best else []
    if best is None or not judged:
        return None
    columns = ([[of_case[case]] for case in judged] for of_case in (by_rule[best[0]], scores))
    clusters = [after.clusters[case] for case in judged]
    return best[0], Pairing([dimension], judged, clusters, *map(np.array, columns))


def rule_words(rule: str) -> dict[str, str]:
    """Returns which rule it is, and how it was chosen."""
    return {"rule": rule, "chosen": "by the labels of these cases, which favours the rule"}


def paired_measures(before: Evaluation, after: Evaluation, primary: str) -> Entry:
    """Returns what `comparison.json` says of the differences in score, but for the groups.

    `forward_only` has the differences in the stored order alone, None where no side was shown both
    orders. `position` is the rest of the exact split: delta in the stored order = delta over the
    presented orders + position.
    """
    pairing = pair(before, after)
    dimensions = dimension_entries(before, after, pairing)
    other: dict[str, dict[str, Entry] | None] = {"official": None, "forward_only": None}
    if before.official and after.official:
        other["official"] = pair(before, after, "official").entries()
    if not before.orders == after.orders == ["forward"]:
        forward = pair(before, after, "forward").entries()
        for name, difference in forward.items():
            difference["position"] = excess(difference["delta"], dimensions[name]["delta"])
        other["forward_only"] = forward
    return {
        "minimum_detectable": detectable(pairing, primary),
        "dimensions": dimensions,
        "mean": mean_entry(pairing),
        **other,
    }


def dimension_entries(before: Evaluation, after: Evaluation, pairing: Pairing) -> dict[str, Entry]:
    """Returns each dimension of the benchmark before and after.

    `p` is adjusted over the dimensions that both have judged. Where only one side has judged one,
    its own accuracy stands alone, without a difference. Cases are judged better (`fixed`) or worse
    (`broken`) than before, or as before: `both_right` in all orders, else `both_wrong`.
    """
    test = significance.sign_flip_test(pairing.differences, pairing.clusters)
    labelled = np.flatnonzero(~np.isnan(pairing.before).all(axis=0)).tolist()
    by_holm = dict(
        zip(labelled, significance.holm([test.p[index] for index in labelled]), strict=True)
    )
    resampled = bootstrap_intervals(pairing.differences, pairing.clusters)
    paired, entries = pairing.entries(), {}
    for name, ceiling in after.report["ceiling"].items():
        difference: Entry = {"dimension": name, **UNPAIRED, "p": None, "ceiling": ceiling}
        for key, side in (("before", before), ("after", after)):
            difference[key] = mean(side.scores["robust"].get(name, {}).values())
        difference |= paired.get(name, {})
        if difference["n"]:
            column = pairing.names.index(name)
            first, last = pairing.before[:, column], pairing.after[:, column]
            fixed, broken = int((last > first).sum()), int((last < first).sum())
            bounds = resampled[column]
            difference |= {
                "p": test.adjusted[column],
                "p_unadjusted": test.p[column],
                "p_holm": by_holm.get(column),
                "ci95_bootstrap": None if bounds is None else list(bounds),
                "fixed": fixed,
                "broken": broken,
                "both_right": int(((last == first) & (last == 1.0)).sum()),
                "both_wrong": int(((last == first) & (last < 1.0)).sum()),
                "p_mcnemar": significance.mcnemar_midp(fixed, broken),
            }
        entries[name] = dict.fromkeys(_MORE) | difference
    return entries


_MORE = (
    *("p_unadjusted", "p_holm", "p_mcnemar", "ci95_bootstrap"),
    *("fixed", "broken", "both_right", "both_wrong"),
)


def mean_entry(pairing: Pairing) -> Entry:
    """Returns the unweighted mean of the dimensions' accuracies before and after."""
    scores = mean_columns(pairing)
    return dict(UNPAIRED) if scores is None else paired_entry(*scores)


def mean_columns(pairing: Pairing) -> tuple[Floats, Floats, list[str]] | None:
    """Returns n values before and after whose means are the dimensions' mean, and their clusters.

    None where no case is labelled.
    """
    labelled = pairing.of_cases(np.flatnonzero(~np.isnan(pairing.before).all(axis=1)).tolist())
    before, after = (accuracy.mean_scores(scores) for scores in (labelled.before, labelled.after))
    if before is None or after is None:
        return None
    return before, after, labelled.clusters


def detectable(pairing: Pairing, primary: str) -> Entry:
    """Returns the smallest gain on a dimension that such cases show with 80 % power.

    `discordance` is the mean squared difference; `points` is None below two clusters, where nothing
    changed, or where even changes in one direction, the mean absolute difference, are no such gain.
    """
    column = pairing.differences[:, pairing.names.index(primary)]
    paired = np.flatnonzero(~np.isnan(column)).tolist()
    effect = discordance = points = None
    if paired:
        changes = column[paired]
        interval = mean_interval(changes.tolist(), [pairing.clusters[index] for index in paired])
        effect, discordance = interval.design_effect, float((changes**2).mean())
        if discordance and interval.clusters > 1 and (effect is None or effect > 0):
            least = significance.minimum_detectable(len(paired), discordance, effect or 1.0)
            points = least if least <= float(np.abs(changes).mean()) else None
    return {"n": len(paired), "design_effect": effect, "discordance": discordance, "points": points}


def cells(before: Evaluation, after: Evaluation, group: str) -> list[Entry]:
    """Returns the difference in every cell of a group's member and dimension; exploratory.

    `p_bh` is adjusted over all cells of the group by Benjamini and Hochberg.

    Args:
        before: evaluation before training.
        after: of the trained model.
        group: to look at, such as organ.
    """
    pairing = pair(before, after)
    member_names = [accuracy.member_of(after.judged_cases[case], group) for case in pairing.cases]
    members = grouped(range(len(member_names)), member_names.__getitem__)
    entries: list[Entry] = []
    for member, chosen in sorted(members.items()):
        of_member = pairing.of_cases(chosen)
        test = significance.sign_flip_test(of_member.differences, of_member.clusters)
        for (name, cell), p in zip(of_member.entries().items(), test.p, strict=True):
            tested_p = p if cell["n"] else None
            entries.append({"member": member, "dimension": name, **cell, "p": tested_p})
    tested = [cell["p"] for cell in entries if cell["n"]]
    adjusted = iter(significance.benjamini_hochberg(tested))
    return [cell | {"p_bh": next(adjusted) if cell["n"] else None} for cell in entries]
