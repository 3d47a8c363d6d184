"""The folds of a cross-fitted evaluation, each by itself: accuracy and calibration.

Each fold was judged by a model of its own, whose scores have a scale of their own, so probabilities
are calibrated fold by fold. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medrm.evaluation.measures.accuracy import accuracy_measures, stated_probabilities
from medrm.evaluation.records.jsonl import verdicts_by_case
from medrm.schema import Verdict
from medrm.statistics.calibration import calibration, fit_temperature

_LEAST_PROBABILITY = 1e-9
"""A probability of 0 or 1 has no log odds."""


def fold_measures(
    rows: Sequence[Verdict],
    primary: str,
    assignment: Mapping[str, int],
    temperatures: Sequence[float | None],
) -> dict[str, Any]:
    """Returns the entry `crossfit` of `report.json`.

    Args:
        rows: of all folds.
        primary: the dimension that is shown.
        assignment: case id to fold, counted from 1.
        temperatures: of each fold's model, None where it gives no probabilities.
    """
    return {
        "folds": len(temperatures),
        "per_fold": [
            _measures(
                number, [row for row in rows if assignment[row.case_id] == number], primary, scale
            )
            for number, scale in enumerate(temperatures, start=1)
        ],
    }


def temperature_of(rows: Sequence[Verdict], primary: str) -> float | None:
    """Returns the temperature that fits a model's verdicts on its own development cases.

    None where it gave no probability on the primary dimension.
    """
    log_odds, labels = _log_odds(_robust(rows, primary))
    return fit_temperature(log_odds.tolist(), labels) if labels else None


def _measures(
    number: int, rows: Sequence[Verdict], primary: str, temperature: float | None
) -> dict[str, Any]:
    clusters = {row.case_id: row.cluster for row in rows}
    judged = _robust(rows, primary)
    log_odds, labels = _log_odds(judged)
    measured = None
    if temperature is not None and labels:
        measured = {
            "raw": _calibration(log_odds, labels),
            "scaled": _calibration(log_odds / temperature, labels),
        }
    return {
        "fold": number,
        "cases": len(clusters),
        "clusters": len(set(clusters.values())),
        "accuracy": accuracy_measures(judged)["accuracy"],
        "temperature": temperature,
        "calibration": measured,
    }


def _robust(rows: Sequence[Verdict], dimension: str) -> list[Verdict]:
    return [row for row in rows if row.protocol == "robust" and row.dimension == dimension]


def _log_odds(rows: Sequence[Verdict]) -> tuple[NDArray[np.float64], list[bool]]:
    """The log odds of A on each pair, and whether A is the label."""
    probabilities, labels = stated_probabilities(verdicts_by_case(rows).values())
    clipped = np.array(probabilities).clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(clipped / (1 - clipped)), labels


def _calibration(log_odds: NDArray[np.float64], labels: list[bool]) -> dict[str, Any]:
    measured = asdict(calibration((1 / (1 + np.exp(-log_odds))).tolist(), labels))
    return {
        name: value for name, value in measured.items() if name not in ("bins", "risk_coverage")
    }
