"""Rates as sums over cases, so that every rate has an interval and can be compared in pairs.

Most measures are a ratio of two sums over cases, such as the verdicts that name the first answer
among all that were read. What a case adds to either sum is kept, which gives the ratio its
cluster-robust variance and the difference of two models its paired one; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from medrm.statistics.intervals import Floats


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
    columns = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    return Contributions(columns[:, 0], columns[:, 1])


def mean_of_rates(rates: Sequence[Contributions]) -> Floats | None:
    """Returns n values whose mean is the unweighted mean of several rates over the same cases.

    Rates in which nothing counts are left out; None where nothing counts in any.
    """
    values = [rate.linearised() for rate in rates if rate.rate is not None]
    if not values:
        return None
    mean: Floats = np.mean(values, axis=0)
    return mean
