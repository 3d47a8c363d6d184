"""Whether a judge prefers the longer answer beyond what the experts do; imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from medrm.evaluation.measures.position import Presented
from medrm.schema import LETTERS
from medrm.statistics.intervals import mean

LEAST_DIFFERENCE = 30
"""Characters by which the lengths must differ by more (the convention of AlpacaEval)."""

LARGEST_ODDS = 10.0
"""A coefficient beyond this says that the data determine none."""

LEAST_CLUSTERS = 10
"""Below this the regression's interval would be far too narrow."""

Lengths = Mapping[str, tuple[int, ...]]
"""Characters of the answers, by case id."""


class _Choice(NamedTuple):
    """A presentation that names A or B."""

    chose_a: bool
    label_is_a: bool
    difference: int
    cluster: str

    @property
    def longer(self) -> bool:
        return self.chose_a == (self.difference > 0)

    @property
    def longer_label(self) -> bool:
        return self.label_is_a == (self.difference > 0)


def length_measures(cases: Sequence[Presented], lengths: Lengths) -> dict[str, Any]:
    """Returns the entry of `length` in `report.json` for one dimension.

    Over pairs labelled A or B whose answers differ by more than `LEAST_DIFFERENCE` characters: how
    often the longer answer is named and how often the experts prefer it, on the presentations that
    name an answer; `bias` is the difference. The accuracies are over all presentations of those
    pairs whose better answer is the longer, the shorter one. `coefficient` is that of
    tanh(length difference / its standard deviation) in a logistic regression of naming A on it and
    the label, with a cluster-robust 95 % interval: 0 is no preference for length. It is None where
    the data determine none, as for a judge that always or never errs.
    """
    chosen = [
        (case, _difference(lengths[case[0].case_id]))
        for case in cases
        if case[0].label in LETTERS
        and abs(_difference(lengths[case[0].case_id])) > LEAST_DIFFERENCE
    ]
    named = [
        _Choice(row.outcome == LETTERS[0], row.label == LETTERS[0], difference, row.cluster)
        for case, difference in chosen
        for row in case
        if row.outcome in LETTERS
    ]
    rate, of_label = mean([c.longer for c in named]), mean([c.longer_label for c in named])
    accuracies: dict[bool, list[float]] = {True: [], False: []}
    for case, difference in chosen:
        accuracies[(case[0].label == LETTERS[0]) == (difference > 0)].append(
            fmean(row.correct or 0.0 for row in case)
        )
    coefficient, bounds = _regression(named)
    return {
        "n": len(chosen),
        "longer_rate": rate,
        "longer_rate_label": of_label,
        "bias": None if rate is None or of_label is None else rate - of_label,
        "accuracy_longer": mean(accuracies[True]),
        "accuracy_shorter": mean(accuracies[False]),
        "coefficient": coefficient,
        "ci95": bounds,
    }


def _difference(lengths: tuple[int, ...]) -> int:
    return lengths[0] - lengths[1]


def _regression(named: Sequence[_Choice]) -> tuple[float | None, list[float] | None]:
    """The coefficient of length with its interval."""
    ordered = sorted(named)  # so that the order of the rows changes nothing
    names, groups = np.unique([choice.cluster for choice in ordered], return_inverse=True)
    differences = np.array([choice.difference for choice in ordered], dtype=np.float64)
    if len(names) < LEAST_CLUSTERS or differences.std() == 0.0:
        return None, None
    from statsmodels.genmod.families import Binomial  # a second to import
    from statsmodels.genmod.generalized_linear_model import GLM

    columns = np.column_stack(
        [
            np.ones(len(ordered)),
            [1.0 if choice.label_is_a else -1.0 for choice in ordered],
            np.tanh(differences / differences.std()),
        ]
    )
    model = GLM(np.array([float(choice.chose_a) for choice in ordered]), columns, family=Binomial())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be fitted is seen from the coefficients
        fitted = model.fit(maxiter=50, cov_type="cluster", cov_kwds={"groups": groups})
    low, high = fitted.conf_int()[2]
    if not np.abs(fitted.params).max() < LARGEST_ODDS or not np.isfinite([low, high]).all():
        return None, None
    return float(fitted.params[2]), [float(low), float(high)]
