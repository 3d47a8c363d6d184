"""HealthBench's agreement of a grader with physicians; imports no torch.

Source of the formulas: arXiv 2505.08775, section 8.1, and `compute_metrics_for_rater_by_class` of
the authors' code (github.com/openai/simple-evals, `healthbench_meta_eval.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from medrm.schema import LETTERS, Case, PairLabel, Verdict
from medrm.statistics.intervals import mean

CATEGORY = "category"
"""The group that names the criterion."""

CRITERIA = "criteria"
"""Where each criterion's number stands."""


def macro_f1(
    rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]
) -> dict[str, Any]:
    """Returns the balanced F1 against every physician's label.

    `pooled` is over all labels, the authors' script's score; `macro` is the mean over criteria, the
    paper's; each group's members have the mean over their criteria; `criteria` has them one by one,
    None where the physicians' labels are all of one class.
    """
    criteria: dict[str, list[Verdict]] = {}
    for row in rows:
        criteria.setdefault(row.groups.get(CATEGORY, ""), []).append(row)
    scores = {name: balanced_f1(criteria[name], cases) for name in sorted(criteria)}
    numbers: dict[str, Any] = {"pooled": balanced_f1(rows, cases), "macro": mean(scores.values())}
    for group in groups:
        members: dict[str, set[str]] = {}
        for row in rows:
            members.setdefault(row.groups.get(group, ""), set()).add(row.groups.get(CATEGORY, ""))
        numbers[group] = {
            member: mean(scores[name] for name in sorted(members[member]))
            for member in sorted(members)
        }
    return {**numbers, CRITERIA: scores}


def balanced_f1(rows: Sequence[Verdict], cases: Mapping[str, Case]) -> float | None:
    """Returns the mean of the F1 of the class met and of the class not met.

    Every label of a physician is one comparison. A verdict that says neither, such as a tie or one
    that is unread, agrees with nobody and is a prediction of neither class. A class that is never
    predicted has an F1 of 0; the authors' script leaves it out of its means.

    Args:
        rows: of one dimension and order; `A` says that the criterion is met.
        cases: whose labels keep the physicians' shares and number.
    """
    agreed, predicted, labelled = [0, 0], [0, 0], [0, 0]
    for row in rows:
        label = cases[row.case_id].labels.get(row.dimension)
        if not isinstance(label, PairLabel):
            continue
        counts = [round(label.shares[index] * label.votes) for index in (0, 2)]
        for number, letter in enumerate(LETTERS):
            labelled[number] += counts[number]
            if row.outcome == letter:
                predicted[number] += sum(counts)
                agreed[number] += counts[number]
    if not all(labelled):
        return None
    return fmean(2 * agreed[k] / (predicted[k] + labelled[k]) for k in (0, 1))
