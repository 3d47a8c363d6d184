"""Whether a judge tells the dimensions apart, beside how far the experts do; imports no torch.

Over pairs that the experts label A or B on every judged dimension, and over the presentations in
which every dimension was read, so that silence is not taken for discernment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medrm.evaluation.measures.contributions import Contributions, contributions
from medrm.schema import LETTERS, UNREAD, Expected, Outcome, Verdict
from medrm.statistics.agreement import phi_matrix
from medrm.statistics.intervals import Floats

OVERALL = "overall"

_SIGNS: dict[Expected | None, float] = {LETTERS[0]: 1.0, LETTERS[1]: -1.0}


class Sheet(NamedTuple):
    """One case: its labels, and the outcomes of each presentation, by dimension."""

    labels: Mapping[str, Expected | None]
    presentations: Sequence[Mapping[str, Outcome]]


Sheets = Mapping[str, Sheet]
"""By case id."""


def sheets_of(rows: Sequence[Verdict]) -> Sheets:
    """Returns the cases with labels and outcomes of all dimensions, sorted by case id."""
    labels: dict[str, dict[str, Expected | None]] = {}
    outcomes: dict[str, dict[str, dict[str, Outcome]]] = {}
    for row in rows:
        labels.setdefault(row.case_id, {})[row.dimension] = row.label
        in_order = outcomes.setdefault(row.case_id, {})
        in_order.setdefault(row.order, {})[row.dimension] = row.outcome
    return {
        case_id: Sheet(labels[case_id], [named for _, named in sorted(outcomes[case_id].items())])
        for case_id in sorted(labels)
    }


def structure_measures(rows: Sequence[Verdict], dimensions: Sequence[str]) -> dict[str, Any] | None:
    """Returns `structure` of `report.json`; None below two judged dimensions, or without pairs.

    `all_same`: share of presentations that name one answer on all dimensions; `halo` is what that
    is above the experts' share. `overall_vs_parts`: share in which overall is what most of the
    other dimensions say, where one answer has most. `phi`: correlation of two dimensions' verdicts.

    Args:
        rows: of all dimensions, robust.
        dimensions: that were judged.
    """
    sheets = sheets_of(rows)
    if len(dimensions) < 2 or not any(
        label in LETTERS for sheet in sheets.values() for label in sheet.labels.values()
    ):
        return None
    judged, experts = all_same(sheets, dimensions)
    overall, overall_label = _overall_vs_parts(sheets, dimensions)
    phi, phi_label = _phi(sheets, dimensions)
    halo = None if judged.rate is None or experts.rate is None else judged.rate - experts.rate
    return {
        "dimensions": list(dimensions),
        "cases": int((judged.denominator > 0).sum()),
        "all_same": judged.rate,
        "all_same_label": experts.rate,
        "halo": halo,
        "overall_vs_parts": overall.rate,
        "overall_vs_parts_label": overall_label.rate,
        "phi": phi,
        "phi_label": phi_label,
    }


def all_same(sheets: Sheets, dimensions: Sequence[str]) -> tuple[Contributions, Contributions]:
    """Returns how often the judge, and the experts, name one answer on all dimensions."""
    judged, experts = [], []
    for sheet in sheets.values():
        complete = _complete(sheet, dimensions)
        same = sum(_one_answer(outcomes, dimensions) for outcomes in complete)
        judged.append((float(same), float(len(complete))))
        label = float(_one_answer(sheet.labels, dimensions)) * len(complete)
        experts.append((label, float(len(complete))))
    return contributions(judged), contributions(experts)


def _complete(sheet: Sheet, dimensions: Sequence[str]) -> list[Mapping[str, Outcome]]:
    """The presentations that were read on all dimensions, of a case with labels on all."""
    if any(sheet.labels.get(name) not in LETTERS for name in dimensions):
        return []
    return [
        outcomes
        for outcomes in sheet.presentations
        if all(outcomes.get(name, UNREAD) != UNREAD for name in dimensions)
    ]


def _one_answer(named: Mapping[str, Expected | None], dimensions: Sequence[str]) -> bool:
    return {named[name] for name in dimensions} in ({LETTERS[0]}, {LETTERS[1]})


def _overall_vs_parts(
    sheets: Sheets, dimensions: Sequence[str]
) -> tuple[Contributions, Contributions]:
    specific = [name for name in dimensions if name != OVERALL]
    judged, experts = [], []
    for sheet in sheets.values():
        complete = (
            _complete(sheet, dimensions) if OVERALL in dimensions and len(specific) > 1 else []
        )
        judged += [_agrees(outcomes, specific) for outcomes in complete]
        experts += [_agrees(sheet.labels, specific) for _ in complete]
    return contributions(judged), contributions(experts)


def _agrees(named: Mapping[str, Expected | None], specific: Sequence[str]) -> tuple[float, float]:
    """Whether overall is what most of the others say, and whether one answer has most of them."""
    counts = Counter(named[name] for name in specific)
    first, second = (counts[letter] for letter in LETTERS)
    if first == second:
        return 0.0, 0.0
    return float(named[OVERALL] == LETTERS[int(second > first)]), 1.0


def _phi(
    sheets: Sheets, dimensions: Sequence[str]
) -> tuple[list[list[float | None]], list[list[float | None]]]:
    """The matrices of the judge and of the experts, over the pairs that the experts have labelled.

    Each two dimensions are compared where both have a label.
    """
    labels = [
        [_SIGNS.get(sheet.labels.get(name), np.nan) for name in dimensions]
        for sheet in sheets.values()
    ]
    verdicts = [
        [
            _SIGNS.get(outcomes.get(name), np.nan) if sheet.labels.get(name) in LETTERS else np.nan
            for name in dimensions
        ]
        for sheet in sheets.values()
        for outcomes in sheet.presentations
    ]
    return _listed(phi_matrix(np.array(verdicts))), _listed(phi_matrix(np.array(labels)))


def _listed(matrix: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(cell) else float(cell) for cell in line] for line in matrix]
