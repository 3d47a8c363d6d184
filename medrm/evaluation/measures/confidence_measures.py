"""Whether a model is right as often as its probabilities say; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from medrm.evaluation.measures.position import Presented
from medrm.schema import LETTERS
from medrm.statistics import calibration


def calibration_measures(cases: Sequence[Presented]) -> dict[str, Any] | None:
    """Returns the fields of `medrm.statistics.Calibration` for one dimension.

    Over pairs labelled A or B, with the mean over the presented orders of the probability that A is
    better, as in section 3 of Wang, Zhang and Choi (arXiv 2503.03064). None where no probability
    is stated; a case with an order that has none is left out, so `n` says how many there are.
    """
    known = [
        (fmean(stated), case[0].label == LETTERS[0])
        for case in cases
        if case[0].label in LETTERS and len(stated := _stated(case)) == len(case)
    ]
    if not known:
        return None
    found = calibration([chance for chance, _ in known], [is_a for _, is_a in known])
    return {
        "n": found.n,
        "ece": found.ece,
        "ece_debiased": found.ece_debiased,
        "brier": found.brier,
        "nll": found.nll,
        "auroc": found.auroc,
        "accuracy_at_80": found.accuracy_at_80,
        "bins": [one._asdict() for one in found.bins],
        "risk_coverage": [list(point) for point in found.risk_coverage],
    }


def _stated(case: Presented) -> list[float]:
    return [row.probability_a for row in case if row.probability_a is not None]
