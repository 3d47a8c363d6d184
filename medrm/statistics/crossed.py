"""Means over random seeds and random cases: what a recipe gains, not one of its trainings.

S trainings that differ in their seed judge the same n cases in G clusters, so that seeds and
clusters are crossed. An interval over the cases alone (`intervals.mean_interval`) says how these
very models would do on other cases; one over the seeds alone, how other seeds would do on these
very cases. Here both are random.

It is the design of reader studies in radiology, several readers of the same cases, with seeds in
the place of readers.

For seed s with mean m_s, let V_S be the variance of the m_s divided by S (S - 1 degrees of
freedom), V_G the cluster-robust variance of the cases' means over the seeds (f degrees of freedom,
see `intervals.mean_interval`), and V_s that of seed s. Cases that are hard for one seed are hard
for another: C = (S V_G - mean of V_s) / (S - 1) estimates the covariance of two seeds' means that
comes from sharing the cases. The variance of the mean of all is V_S + C. This is the variance of
Obuchowski and Rockette (1995, Communications in Statistics - Simulation 24(2)) for one reader-study
measure, and equals V_S + V_G - V_SG of the two-way analysis of variance and of Cameron, Gelbach and
Miller (2011, Journal of Business & Economic Statistics 29(2)).

The interval is m +- sqrt(t(S-1)^2 V_S + t(f)^2 max(C, 0)), as Banerjee (1960, Sankhya 22) takes for
a sum of two terms whose variances are estimated apart: each term with its own t quantile. In
simulations (`tests/statistics/test_crossed.py`) it holds the true mean about as often as is stated,
or more often; a common t with Satterthwaite's or Hillis' (2007, Statistics in Medicine 26(3))
degrees of freedom is shorter, but holds it too rarely with two or three seeds. A bootstrap of so
few seeds is far too narrow. It is never narrower than the interval over the cases alone, since
seeds cannot make the mean surer; that one has a width where V_G is 0 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import optimize, stats

from medrm.statistics.intervals import Floats, estimate_mean, mean_interval

_LEAST_P = 1e-12
"""Below it no p value is told apart."""


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """A mean over S seeds and n cases in G clusters, with its interval over both.

    Attributes:
        mean: over all seeds and cases.
        bounds: ends of the 95 % interval; None below two clusters.
        p: two-sided, of a mean of zero: the level at which the interval just reaches zero; None
            where there is no interval.
        case_bounds: ends of the 95 % interval over the cases alone, for these very seeds.
        by_seed: the mean over the cases, S numbers.
        seed_variance: the part of the mean's variance that more seeds make smaller, V_S.
        case_variance: the part that only more cases make smaller, C.
        n: number of cases.
        clusters: number of clusters, G.
    """

    mean: float
    bounds: tuple[float, float] | None
    p: float | None
    case_bounds: list[float] | None
    by_seed: tuple[float, ...]
    seed_variance: float
    case_variance: float
    n: int
    clusters: int


def crossed_mean(
    values: Floats, clusters: Sequence[str], span: tuple[float, float] = (-1.0, 1.0)
) -> CrossedMean:
    """Returns the mean of `values` (S, n) with its interval over seeds and clusters of cases.

    The formulas stand above. Where all clusters have the same mean over the seeds, V_G is 0 and
    says nothing: the interval then reaches at least as far as that over the cases alone, see
    `mean_interval`, and p is the larger one of both.

    >>> found = crossed_mean(np.array([[1.0, 0, 1, 0], [1, 1, 1, 0]]), ["a", "b", "c", "d"])
    >>> found.mean, found.by_seed
    (0.625, (0.5, 0.75))

    Args:
        values: shape (S, n): differences in score, of each seed on the same cases; S >= 2.
        clusters: the cluster of each of the n cases.
        span: smallest and largest value that there could be; zero lies between them.

    Raises:
        ValueError: there are fewer than two seeds, or no case.
    """
    seeds = len(values)
    if seeds < 2:
        raise ValueError(f"A spread over seeds needs two of them; there is {seeds}.")
    by_seed = tuple(estimate_mean(of_seed, clusters)[0].mean for of_seed in values)
    # Sorted: the order of the seeds changes no bit.
    of_cases = np.sort(values, axis=0).mean(axis=0)
    interval, shared_cases, freedom = estimate_mean(of_cases, clusters)  # V_G, f
    of_seeds = float(np.var(np.sort(by_seed), ddof=1)) / seeds  # V_S
    alone = fmean(sorted(estimate_mean(of_seed, clusters)[1] for of_seed in values))
    covariance = max(0.0, (seeds * shared_cases - alone) / (seeds - 1))  # C
    mean, bounds, p = interval.mean, None, None

    def half_width(level: float) -> float:
        of_seed, of_case = (float(stats.t.isf(level / 2, df)) for df in (seeds - 1, freedom))
        both = of_seed**2 * of_seeds + of_case**2 * covariance
        return float(max(both, of_case**2 * shared_cases) ** 0.5)

    over_cases = mean_interval(of_cases.tolist(), clusters, span).bounds
    if over_cases is not None:
        half = half_width(0.05)
        bounds, p = (mean - half, mean + half), _level_at(abs(mean), half_width)
        if shared_cases == 0.0:
            bounds = (min(bounds[0], over_cases[0]), max(bounds[1], over_cases[1]))
            p = max(p, _p_of_equal(mean, interval.clusters, span))
    variances = (of_seeds, covariance)
    sizes = (interval.n, interval.clusters)
    return CrossedMean(mean, bounds, p, over_cases, by_seed, *variances, *sizes)


def _level_at(distance: float, half_width: Callable[[float], float]) -> float:
    """Returns the level at which the interval's half width is this distance: p by inversion."""
    if half_width(_LEAST_P) < distance:
        return _LEAST_P
    if distance == 0.0:
        return 1.0
    return float(
        optimize.brentq(lambda level: half_width(level) - distance, _LEAST_P, 1.0, xtol=1e-15)
    )


def _p_of_equal(mean: float, clusters: int, span: tuple[float, float]) -> float:
    """Returns the level at which the interval of clusters of one mean reaches zero.

    With q = z^2 / (G + z^2) the lower end m - q (m - a) of `mean_interval` is zero at
    z^2 = G m / -a, the upper end of a negative m at z^2 = G m / -b.
    """
    reach = -span[0] if mean > 0 else -span[1]
    return float(2 * stats.norm.sf((clusters * mean / reach) ** 0.5))
