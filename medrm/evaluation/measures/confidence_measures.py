"""Whether a model is right as often as its probabilities say; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from statistics import fmean
from typing import Any

from medrm.evaluation.measures.position import Presented
from medrm.schema import LETTERS
from medrm.statistics.calibration import calibration


def calibration_measures(cases: Iterable[Presented]) -> dict[str, Any] | None:
    """Returns the fields of `medrm.statistics.Calibration` for one dimension.

    None where no probability is stated; a case with an order that has none is left out, so `n`
    says how many there are.
    """
    probabilities, labels = stated_probabilities(cases)
    if not labels:
        return None
    measured = calibration(probabilities, labels)
    return asdict(measured) | {
        "bins": [cell._asdict() for cell in measured.bins],
        "risk_coverage": [list(point) for point in measured.risk_coverage],
    }


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
