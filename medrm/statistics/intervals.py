"""Means of clustered scores with their intervals.

n cases lie in G clusters; x_i is the score of case i (1 right, 0 wrong, in between when several
presentations are averaged). Every statistic here is a function of the cluster sums
S_c = sum of x_i over the cases of cluster c and of the sizes n_c. Three intervals of the mean m:

    mean_interval        m +- t(f) sqrt(V): robust variance V, degrees of freedom f (many cases)
    small_cell_interval  Wilson's interval for as many independent cases as V is worth (few cases)
    bootstrap_intervals  percentiles of the means of resampled clusters (several columns at once)

The cluster bootstrap draws G clusters with replacement, so that a resample is a vector of G weights
w_c: its mean is sum_c w_c S_c / sum_c w_c n_c (Davison and Hinkley 1997, section 3.8), one matrix
product for all. The formulas and sources of the intervals stand at each function.

Sums are taken by cluster, then by value, so that the order in which the cases are given changes no
bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 10_000
"""Resamples of a bootstrap."""

_AT_ONCE = 500

_ROUNDING = 1e-12
"""A cluster's residual below it, relative to the largest score, is none."""


def cluster_sums(
    values: Floats, clusters: Sequence[str] | NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Returns sums of `values` (n) or (n, D) by cluster, in name order, and the clusters' sizes.

    Raises:
        ValueError: there are more values than names of clusters, or fewer.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values cannot lie in {len(clusters)} named clusters.")
    names, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    columns = values.reshape(len(values), -1).T
    order = np.lexsort((*columns, index))
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index[order], values[order])
    return sums, sizes.astype(np.float64)


def labelled_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns sums and numbers of the non-NaN values by cluster, both of shape (G, D).

    Args:
        values: shape (n, D); NaN where a case has no label.
        clusters: the cluster of each of the n cases.
    """
    sums, _ = cluster_sums(np.nan_to_num(values), clusters)
    counts, _ = cluster_sums((~np.isnan(values)).astype(np.float64), clusters)
    return sums, counts


def resampled_means(
    values: Floats, clusters: Sequence[str], resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Returns the column means of `values` (n, D) and of its resamples (R, D).

    Whole clusters are drawn with replacement, the same ones for all columns, so that differences
    between columns are paired. A mean is NaN where nothing with a label was drawn.
    """
    sums, counts = labelled_sums(values, clusters)
    groups = len(sums)
    generator, pieces = np.random.default_rng(seed), []
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, resamples, _AT_ONCE):
            shape = (min(_AT_ONCE, resamples - start), groups)
            drawn = generator.integers(0, groups, size=shape, dtype=np.int32)
            # One count for all resamples of the piece: resample r counts in its own G bins.
            drawn += np.arange(shape[0], dtype=np.int32)[:, None] * groups
            weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape).astype(float)
            pieces.append((weights @ sums) / (weights @ counts))
        return sums.sum(axis=0) / counts.sum(axis=0), np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n cases in G clusters with its 95 % interval (None below two clusters).

    Attributes:
        mean: of the n scores.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of cases.
        clusters: number of clusters, G.
        largest_cluster: number of cases in the largest cluster.
        design_effect: how many times larger the variance of the mean is than that of n independent
            cases; None below two clusters or where all scores are equal.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    largest_cluster: int
    design_effect: float | None

    @property
    def bounds(self) -> list[float] | None:
        """`[low, high]` as reports store it, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that exist; None without any."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def mean_interval(
    values: Sequence[float], clusters: Sequence[str], span: tuple[float, float] | None = None
) -> Interval:
    """Returns the mean of `values` (n) with its cluster-robust interval.

    With cluster sums S_c over n_c cases and mean m:
    V = sum_c (S_c - n_c m)^2 / (1 - n_c / n) / n^2, interval m +- t(f) sqrt(V). For clusters of one
    size this is the variance of Liang and Zeger (1986), as applied to evaluations by Miller (arXiv
    2411.00640), with factor G/(G-1) and f = G - 1. For others the correction by 1 - n_c / n is that
    of Bell and McCaffrey (2002, Survey Methodology 28(2)), and f the degrees of freedom of Imbens
    and Kolesar (2016, Review of Economics and Statistics 98(4)) for the estimated correlation
    within clusters: a few large clusters count as few. The 95 % interval is not cut at 0 and 1.
    The design effect is V / (s^2 / n), s^2 the variance of the scores (Kish 1965).

    Where all clusters have the same mean m, V is 0 and says nothing. Then up to q = z^2 / (G + z^2)
    of the clusters may have another mean, Wilson's upper bound after none of G, anywhere in the
    span [a, b]: the interval is [m - q (m - a), m + q (b - m)]. For equal differences of -1, 0 or 1
    in [-1, 1] that is the score interval of Tango (1998, Statistics in Medicine 17(8)).

    >>> interval = mean_interval([1, 1, 0, 1], ["p1", "p2", "p3", "p4"])
    >>> interval.mean, interval.clusters, round(interval.low, 2), round(interval.high, 2)
    (0.75, 4, -0.05, 1.55)

    Args:
        values: n scores, or differences of them.
        clusters: of each.
        span: smallest and largest value that there could be; None: clusters of one mean have an
            interval of no width.

    Raises:
        ValueError: there is no value.
    """
    interval, variance, freedom = estimate_mean(values, clusters)
    mean = interval.mean
    if interval.clusters < 2:
        return interval
    if span is not None and variance == 0.0:
        z_squared = float(stats.norm.ppf(0.975)) ** 2
        unseen = z_squared / (interval.clusters + z_squared)  # q of the docstring
        low, high = mean - unseen * (mean - span[0]), mean + unseen * (span[1] - mean)
    else:
        half = float(stats.t.ppf(0.975, freedom)) * variance**0.5
        low, high = mean - half, mean + half
    return replace(interval, low=low, high=high)


def small_cell_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """Returns the mean of few scores between 0 and 1 with Wilson's interval.

    Wilson's interval for m n* right out of n* = n / deff * (t(n-1) / t(f))^2 effective cases, deff
    floored at 1 and f as in `mean_interval`; for clusters of one case it is Wilson's own. Where all
    scores are equal the design effect cannot be estimated, and n* is the number of clusters.
    Intervals from the central limit theorem are too short below a few hundred cases, and empty
    where all are right. Source: Wilson (1927); Bowyer et al. (arXiv 2503.01747) for the small
    sample, Korn and Graubard (1998, Survey Methodology 24(2)) for the effective size.

    Raises:
        ValueError: there is no value.
    """
    from statsmodels.stats.proportion import proportion_confint  # 0.7 s to import

    interval, _, freedom = estimate_mean(values, clusters)
    if interval.clusters < 2:
        return interval
    effective = float(interval.clusters)
    if interval.design_effect is not None:
        wider = stats.t.ppf(0.975, freedom) / stats.t.ppf(0.975, interval.n - 1)
        effective = interval.n / max(1.0, interval.design_effect) / max(1.0, float(wider)) ** 2
    low, high = proportion_confint(interval.mean * effective, effective, method="wilson")
    return replace(interval, low=float(low), high=float(high))


def bootstrap_intervals(
    values: Floats, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[tuple[float, float] | None]:
    """Returns 95 % intervals of the column means of `values` by the cluster bootstrap.

    Whole clusters are drawn with replacement, the same ones for all columns; a difference of two
    models, given as one column, is thereby the paired bootstrap. The percentiles are those of
    Hesterberg (2015, The American Statistician 69(4), "expanded percentile" interval): a/2 becomes
    Phi(-sqrt(G/(G-1)) * t(G-1, 1-a/2)), which makes up for the narrowness that percentiles have
    with few clusters. Source of the cluster bootstrap: Davison and Hinkley (1997), section 3.8.

    Args:
        values: shape (n, D); NaN where a case has no label in a column.
        clusters: the cluster of each of the n cases.
        resamples: how often the clusters are drawn.
        seed: of the draws.

    Returns:
        For each column low and high; None where fewer than two clusters have a label, or all values
        are the same, so that no draw differs.
    """
    _, counts = labelled_sums(values, clusters)
    groups = (counts > 0).sum(axis=0)
    if groups.max(initial=0) < 2:
        return [None] * values.shape[1]
    _, means = resampled_means(values, clusters, resamples, seed)
    intervals: list[tuple[float, float] | None] = []
    for column, drawn, number in zip(values.T, means.T, groups.tolist(), strict=True):
        if number < 2 or len({*column[~np.isnan(column)].tolist()}) < 2:
            intervals.append(None)
            continue
        tail = stats.norm.sf((number / (number - 1)) ** 0.5 * stats.t.ppf(0.975, number - 1))
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        intervals.append((float(low), float(high)))
    return intervals


def estimate_mean(
    values: Sequence[float], clusters: Sequence[str]
) -> tuple[Interval, float, float]:
    """Returns the mean, its interval still open, its variance and that variance's freedom.

    The interval holds no bounds yet; below two clusters variance and degrees of freedom are 0.

    Raises:
        ValueError: there is no value.
    """
    if len(values) == 0:
        raise ValueError("A mean needs at least one value.")
    scores = np.sort(np.asarray(values, dtype=np.float64))
    sums, sizes = cluster_sums(np.asarray(values, dtype=np.float64), clusters)  # S_c, n_c
    n, mean = len(scores), float(scores.sum() / len(scores))
    interval = Interval(mean, None, None, n, len(sums), int(sizes.max()), None)
    if len(sums) < 2:
        return interval, 0.0, 0.0
    residuals = sums - sizes * mean
    residuals[np.abs(residuals) <= _ROUNDING * sizes * np.abs(scores).max()] = 0.0
    variance = float((residuals**2 / (1 - sizes / n)).sum()) / n**2  # V of `mean_interval`
    total = float(((scores - mean) ** 2).sum())
    if scores[0] < scores[-1]:
        interval = replace(interval, design_effect=variance * n * (n - 1) / total)
    between = float((residuals**2 / sizes).sum())
    return interval, variance, _freedom(sizes, _correlation(total, between, sizes))


def _correlation(total: float, between: float, sizes: Floats) -> float:
    """Returns the correlation within clusters by analysis of variance, 0 to 1.

    (MSB - MSW) / (MSB + (n_0 - 1) MSW) with the mean squares between and within clusters and n_0
    the typical cluster size, (n - sum n_c^2 / n) / (G - 1).

    Args:
        total: sum of squares of the scores about their mean.
        between: that part of it which lies between the clusters' means.
        sizes: n_c, shape (G,).

    Source: Donner (1986), International Statistical Review 54(1).
    """
    n, groups = float(sizes.sum()), len(sizes)
    if n == groups or total == 0.0:
        return 0.0
    mean_between, mean_within = between / (groups - 1), max(0.0, total - between) / (n - groups)
    typical = (n - float((sizes**2).sum()) / n) / (groups - 1)
    spread = mean_between + (typical - 1) * mean_within
    return min(1.0, max(0.0, (mean_between - mean_within) / spread))


def _freedom(sizes: Floats, correlation: float) -> float:
    """Returns (trace M)^2 / ||M||^2 for the covariance M of the scaled cluster residuals.

    A cluster sum has variance v_c = (1 - r) n_c + r n_c^2 for correlation r within clusters, and
    with a_c = (1 - n_c / n)^(-1/2):
    M_cd = a_c a_d (v_c [c = d] - (n_c v_d + v_c n_d) / n + n_c n_d sum(v) / n^2). It is a diagonal
    plus U K U', so that no G x G matrix is needed.
    """
    n = float(sizes.sum())
    scale = (1 - sizes / n) ** -0.5
    variances = (1 - correlation) * sizes + correlation * sizes**2
    diagonal = scale**2 * variances
    sides = np.stack([scale * sizes, scale * variances], axis=1)  # U (G, 2)
    core = np.array([[variances.sum() / n**2, -1 / n], [-1 / n, 0.0]])  # K
    # Of diag + U K U': the trace, and the squared norm with its mixed term.
    product = core @ (sides.T @ sides)
    trace = diagonal.sum() + np.trace(product)
    norm = (diagonal**2).sum() + np.trace(product @ product)
    norm += 2 * np.trace(core @ (sides.T @ (diagonal[:, None] * sides)))
    return max(1.0, float(trace**2 / norm))
