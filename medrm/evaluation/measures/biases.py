"""What else than quality moves verdicts: presented order, length, one impression of all dimensions.

Most measures are a ratio of two sums over cases, such as the verdicts that name the first answer
among all that were read. What a case adds to either sum is kept, which gives the ratio its
cluster-robust variance and the difference of two models its paired one.

Order: everything needs both orders and is None for scalar models. `A` is the first answer as
stored, which is shown first in the forward order and second in the reversed one.

Structure: whether a judge tells the dimensions apart, beside how far the experts do; over pairs
that the experts label A or B on every judged dimension, and over the presentations in which every
dimension was read, so that silence is not taken for discernment.

Length: whether a judge prefers the longer answer beyond what the experts do. Imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medrm.schema import LETTERS, TIE, UNREAD, Expected, Verdict
from medrm.statistics.agreement import phi_matrix
from medrm.statistics.intervals import Floats, mean
from medrm.statistics.significance import binomial_midp

Presented = Sequence[Verdict]
"""The rows of one case on one dimension, one for each presented order."""

SHOWN_FIRST: dict[str, str] = {"forward": LETTERS[0], "reversed": LETTERS[1]}

MEASURES = ("consistency", "first_rate", "both_correct", "net_correct", "position_gap", "flips")
"""Of the presented order."""

OVERALL = "overall"

LEAST_DIFFERENCE = 30
"""Characters by which the lengths must differ by more (the convention of AlpacaEval)."""

LARGEST_ODDS = 10.0
"""A coefficient beyond this says that the data determine none."""

LEAST_CLUSTERS = 10
"""Below this the regression's interval would be far too narrow."""

_SIGNS: dict[Expected | None, float] = {LETTERS[0]: 1.0, LETTERS[1]: -1.0, UNREAD: np.nan}


class Contributions(NamedTuple):
    """What each of n cases adds to the numerator and to the denominator of a rate, both (n,)."""

    numerator: Floats
    denominator: Floats

    @property
    def rate(self) -> float | None:
        """The sum of the numerators by that of the denominators; None where nothing counts."""
        total = float(self.denominator.sum())
        return float(self.numerator.sum()) / total if total else None

    def linearised(self) -> Floats:
        """Returns n values whose mean is the rate R and whose variance is its own to first order.

        R + (x_i - R y_i) / mean(y) for numerators x and denominators y, the linearisation of a
        ratio. Source: Cochran (1977), Sampling Techniques, section 6.5.

        Raises:
            ValueError: nothing counts, so there is no rate.
        """
        rate = self.rate
        if rate is None:
            raise ValueError("No case counts, so there is no rate.")
        values: Floats = self.numerator - rate * self.denominator
        return rate + values / float(self.denominator.mean())


def contributions(pairs: Iterable[tuple[float, float]]) -> Contributions:
    """Returns what cases add, given as (numerator, denominator) of each."""
    return Contributions(*np.array(list(pairs), dtype=np.float64).reshape(-1, 2).T)


def mean_of_rates(rates: Iterable[Contributions]) -> Floats | None:
    """Returns n values whose mean is the unweighted mean of several rates over the same cases.

    Rates in which nothing counts are left out; None where nothing counts in any.
    """
    values = [rate.linearised() for rate in rates if rate.rate is not None]
    return np.asarray(np.mean(values, axis=0)) if values else None


def excess(value: float | None, reference: float | None) -> float | None:
    """Returns by how much one number is above another; None where there is either none."""
    return None if value is None or reference is None else value - reference


def position_measures(cases: Sequence[Presented]) -> dict[str, Any]:
    """Returns the measures named in `MEASURES`, all None where only one order was presented.

    `both_correct`: the share of labelled cases right in both orders; `net_correct`: right more
    often than wrong, where a tie and what is unread are neither (the rule of JudgeBench, arXiv
    2410.12784). Among pairs labelled A or B, `position_gap`: accuracy where the preferred answer
    is shown first minus accuracy where it is shown second.
    """
    if not in_both_orders(cases):
        return dict.fromkeys(MEASURES)
    labelled = [case for case in cases if case[0].correct is not None]
    games = [
        sum(1 if row.correct else -1 for row in case if row.outcome not in (TIE, UNREAD))
        for case in labelled
    ]
    preferred_first: dict[bool, list[float]] = {True: [], False: []}
    for row in (row for case in labelled for row in case if row.label in LETTERS):
        preferred_first[row.label == SHOWN_FIRST[row.order]].append(row.correct or 0.0)
    return {
        "consistency": consistent(cases).rate,
        "first_rate": named_first(cases).rate,
        "both_correct": mean(all(row.correct for row in case) for case in labelled),
        "net_correct": mean(balance > 0 for balance in games),
        "position_gap": excess(mean(preferred_first[True]), mean(preferred_first[False])),
        "flips": flips(cases),
    }


def in_both_orders(cases: Sequence[Presented]) -> bool:
    """Returns whether any case was shown in both orders."""
    return any(row.order != "forward" for case in cases for row in case)


def consistent(cases: Sequence[Presented]) -> Contributions:
    """Returns the share of all cases with the same verdict in both orders; unread is not."""
    return contributions(
        (_read_twice(case) and case[0].outcome == case[1].outcome, 1) for case in cases
    )


def named_first(cases: Sequence[Presented]) -> Contributions:
    """Returns, of the A/B verdicts on pairs read in both orders, the share for the one shown first.

    The quality of the answers cancels out there, so a departure from 1/2 is a position effect.
    """
    first = [_names_first(case) if _read_twice(case) else [] for case in cases]
    return contributions((sum(named), len(named)) for named in first)


def flips(cases: Sequence[Presented]) -> dict[str, Any] | None:
    """Returns how often one slot won in both orders, over pairs with a verdict in both.

    `skew` = (second - first) / (second + first), from -1 (primacy) to 1 (recency), None without a
    flip; `p`: two-sided mid-p binomial test of both counts, which assumes independent cases. This
    is the direction of what Shi et al. (arXiv 2406.07791) call preference fairness, without their
    normalisation. None where no verdict names an answer of a pair.
    """
    named_twice = [named for named in map(_names_first, cases) if len(named) == 2]
    if not named_twice:
        return None
    first, second = named_twice.count([True, True]), named_twice.count([False, False])
    return {
        "first_twice": first,
        "second_twice": second,
        "skew": (second - first) / (second + first) if first + second else None,
        "p": binomial_midp(first, first + second),
    }


def _read_twice(case: Presented) -> bool:
    return len(case) == 2 and all(row.outcome != UNREAD for row in case)


def _names_first(case: Presented) -> list[bool]:
    """Whether the answer shown first is named, of each verdict that names an answer of a pair."""
    return [row.outcome == SHOWN_FIRST[row.order] for row in case if row.outcome in LETTERS]


class Signs(NamedTuple):
    """Verdicts and labels of P presentations of n cases on D dimensions.

    Attributes:
        cases: the case of each presentation, (P,), from 0 to n - 1 in the order of the ids.
        verdicts: (P, D); 1 names A, -1 names B, 0 neither, NaN was not read.
        labels: (P, D); 1 is A, -1 is B, NaN neither.
    """

    cases: NDArray[np.intp]
    verdicts: Floats
    labels: Floats

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which presentations were read on all dimensions, of cases with labels on all; (P,)."""
        return np.asarray(np.isfinite(self.verdicts + self.labels).all(axis=1))


def signs_of(rows: Iterable[Verdict], dimensions: Sequence[str]) -> Signs:
    """Returns the verdicts and labels of rows of these dimensions under one protocol."""
    cells = {(row.case_id, row.order, row.dimension): row for row in rows}
    presentations = sorted({cell[:2] for cell in cells})
    index = {presentation: number for number, presentation in enumerate(presentations)}
    verdicts, labels = np.full((2, len(presentations), len(dimensions)), np.nan)
    for (case_id, order, dimension), row in cells.items():
        cell = index[case_id, order], dimensions.index(dimension)
        verdicts[cell] = _SIGNS.get(row.outcome, 0.0)
        labels[cell] = _SIGNS.get(row.label, np.nan)
    _, cases = np.unique([case_id for case_id, _ in presentations], return_inverse=True)
    return Signs(cases, verdicts, labels)


def structure_measures(rows: Iterable[Verdict], dimensions: Sequence[str]) -> dict[str, Any] | None:
    """Returns `structure` of `report.json`; None below two judged dimensions, or without pairs.

    `all_same`: share of presentations that name one answer on all dimensions; `halo` is what that
    is above the experts' share. `overall_vs_parts`: share in which overall is what most of the
    other dimensions say, where one answer has most. `phi`: correlation of two dimensions' verdicts,
    each two compared where the experts have labelled both.

    Args:
        rows: of all dimensions, robust.
        dimensions: that were judged.
    """
    signs = signs_of(rows, dimensions)
    if len(dimensions) < 2 or np.isnan(signs.labels).all():
        return None
    judged, experts = all_same(signs)
    named = np.where((signs.verdicts == 0) | np.isnan(signs.labels), np.nan, signs.verdicts)
    _, first_presentations = np.unique(signs.cases, return_index=True)
    return {
        "dimensions": list(dimensions),
        "cases": int((judged.denominator > 0).sum()),
        "all_same": judged.rate,
        "all_same_label": experts.rate,
        "halo": excess(judged.rate, experts.rate),
        "overall_vs_parts": _overall_vs_parts(signs.verdicts[signs.complete], dimensions),
        "overall_vs_parts_label": _overall_vs_parts(signs.labels[signs.complete], dimensions),
        "phi": _phi(named),
        "phi_label": _phi(signs.labels[first_presentations]),
    }


def all_same(signs: Signs) -> tuple[Contributions, Contributions]:
    """Returns how often the judge, and the experts, name one answer on all dimensions."""
    complete = signs.complete
    judged, experts = (
        complete & (abs(n.mean(axis=1)) == 1) for n in (signs.verdicts, signs.labels)
    )
    counts = [np.bincount(signs.cases, of).astype(np.float64) for of in (judged, experts, complete)]
    return Contributions(counts[0], counts[2]), Contributions(counts[1], counts[2])


def _overall_vs_parts(named: Floats, dimensions: Sequence[str]) -> float | None:
    """How often overall is what most of the others say, of complete presentations (P, D)."""
    specific = [index for index, name in enumerate(dimensions) if name != OVERALL]
    if OVERALL not in dimensions or len(specific) < 2:
        return None
    majority = np.sign(named[:, specific].sum(axis=1))
    agrees = majority == named[:, dimensions.index(OVERALL)]
    return mean(agrees[majority != 0].tolist())


def _phi(named: Floats) -> list[list[float | None]]:
    matrix = phi_matrix(named).tolist()
    return [[None if np.isnan(cell) else cell for cell in line] for line in matrix]


def length_measures(
    cases: Iterable[Presented], lengths: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Returns the entry of `length` in `report.json` for one dimension.

    Over pairs labelled A or B whose answers differ by more than `LEAST_DIFFERENCE` characters: how
    often the longer answer is named and how often the experts prefer it, on the presentations that
    name an answer; `bias` is the difference. The accuracies are over all presentations of those
    pairs whose better answer is the longer, the shorter one. `coefficient` is that of
    tanh(length difference / its standard deviation) in a logistic regression of naming A on it and
    the label, with a cluster-robust 95 % interval: 0 is no preference for length. It is None where
    the data determine none, as for a judge that always or never errs.

    Args:
        cases: of one dimension.
        lengths: characters of the answers, by case id.
    """
    accuracies: dict[bool, list[float]] = {True: [], False: []}
    choices: list[tuple[bool, bool, int, str]] = []
    for case in cases:
        first, second, *_ = lengths[case[0].case_id]
        label_is_a, difference = case[0].label == LETTERS[0], first - second
        if case[0].label in LETTERS and abs(difference) > LEAST_DIFFERENCE:
            correct = fmean(row.correct or 0.0 for row in case)
            accuracies[label_is_a == (difference > 0)].append(correct)
            choices += [
                (row.outcome == LETTERS[0], label_is_a, difference, row.cluster)
                for row in case
                if row.outcome in LETTERS
            ]
    rate = mean(chose_a == (difference > 0) for chose_a, _, difference, _ in choices)
    of_label = mean(label_is_a == (difference > 0) for _, label_is_a, difference, _ in choices)
    coefficient, bounds = _regression(choices)
    return {
        "n": len(accuracies[True]) + len(accuracies[False]),
        "longer_rate": rate,
        "longer_rate_label": of_label,
        "bias": excess(rate, of_label),
        "accuracy_longer": mean(accuracies[True]),
        "accuracy_shorter": mean(accuracies[False]),
        "coefficient": coefficient,
        "ci95": bounds,
    }


def _regression(
    choices: Sequence[tuple[bool, bool, int, str]],
) -> tuple[float | None, list[float] | None]:
    """The coefficient of length with its interval.

    Args:
        choices: of each presentation that names an answer: whether A is named, whether A is the
            label, the difference in length and the cluster.
    """
    ordered = sorted(choices)  # so that the order of the rows changes nothing
    names, groups = np.unique([cluster for *_, cluster in ordered], return_inverse=True)
    differences = np.array([difference for _, _, difference, _ in ordered], dtype=np.float64)
    if len(names) < LEAST_CLUSTERS or differences.std() == 0.0:
        return None, None
    from statsmodels.genmod.families import Binomial  # a second to import
    from statsmodels.genmod.generalized_linear_model import GLM

    chose_a, label_is_a = np.array([choice[:2] for choice in ordered], dtype=np.float64).T
    lengths = np.tanh(differences / differences.std())
    columns = np.column_stack([np.ones(len(ordered)), 2 * label_is_a - 1, lengths])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be fitted is seen from the coefficients
        fitted = GLM(chose_a, columns, family=Binomial()).fit(
            maxiter=50, cov_type="cluster", cov_kwds={"groups": groups}
        )
    low, high = fitted.conf_int()[2]
    if not np.abs(fitted.params).max() < LARGEST_ODDS or not np.isfinite([low, high]).all():
        return None, None
    return float(fitted.params[2]), [float(low), float(high)]
