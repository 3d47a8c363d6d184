"""Agreement of raters beyond chance, and of dimensions with each other.

All coefficients have the form (p_o - p_e) / (1 - p_e), with p_o the share of items on which the
raters agree and p_e the share on which they would by chance; they differ in what chance is:

    Cohen's kappa   p_e = sum_k a_k b_k                 a_k, b_k: either rater's share of category k
    Fleiss' kappa   p_e = sum_k q_k^2                   q_k: all raters' share of category k
    Gwet's AC1      p_e = sum_k q_k (1 - q_k) / (Q - 1)  Q categories; q_k = (a_k + b_k) / 2 of two

Several raters: unit u has n_uk votes for category k, n_u >= 2 in all, and over the U units
p_o = mean_u sum_k n_uk (n_uk - 1) / (n_u (n_u - 1)) and q_k = mean_u n_uk / n_u, so that units may
have different numbers of votes (Gwet, Handbook of Inter-Rater Reliability, 4th edition, 2014). AC2
is AC1 with weights w_kl of how near two categories of a scale are, here 1 - |x_k - x_l| / range:
p_o = mean_u sum_kl n_uk w_kl (n_ul - [k = l]) / (n_u (n_u - 1)),
p_e = sum_kl w_kl sum_k q_k (1 - q_k) / (Q (Q - 1)).

phi is the Pearson correlation of two columns of +1 and -1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medrm.statistics.intervals import Floats, cluster_sums

Statistic = Callable[[Floats], Floats]
"""Sums (..., m) to coefficients (...)."""


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two raters over the same items, None where chance agrees fully.

    Source: Cohen (1960), Educational and Psychological Measurement 20(1).

    Half of these four items agree by chance, three do in fact:

    >>> cohen_kappa(["A", "A", "B", "B"], ["A", "A", "B", "A"])
    0.5
    """
    both = sum(first.count(name) * second.count(name) for name in {*first, *second})
    return _beyond_chance(first, second, both / max(len(first), 1) ** 2)


def gwet_ac1(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Gwet's AC1 of two raters over the same items, None where there is none.

    At least two categories are assumed, more where more occur (such as an unparsed verdict). Unlike
    kappa it does not collapse when nearly all items have one label.
    Source: Gwet (2008), British Journal of Mathematical and Statistical Psychology 61(1).
    """
    names = sorted({*first, *second})
    shares = [(first.count(name) + second.count(name)) / (2 * len(first)) for name in names]
    chance = sum(share * (1 - share) for share in shares) / (max(2, len(names)) - 1)
    return _beyond_chance(first, second, chance)


def phi_matrix(columns: Floats) -> Floats:
    """Returns the phi coefficients (Pearson correlations) between columns of verdicts.

    phi = (N sum xy - sum x sum y) / sqrt((N^2 - (sum x)^2) (N^2 - (sum y)^2)) for x, y = +-1 over
    the N cases that have both. Source: Yule (1912), Journal of the Royal Statistical Society 75(6).

    Args:
        columns: shape (n, D) of +1 (first answer), -1 (second answer) and NaN (neither).

    Returns:
        Shape (D, D); NaN where a column is constant over the cases that both columns have.
    """
    present = (~np.isnan(columns)).astype(np.float64)
    filled = np.nan_to_num(columns)
    # All (D, D): N, sum x over the cases that both columns have, and with x^2 = 1 the variances.
    counts = present.T @ present
    sums = filled.T @ present
    variances = (counts**2 - sums**2) * (counts**2 - sums.T**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        phi: Floats = (counts * (filled.T @ filled) - sums * sums.T) / np.sqrt(variances)
    phi[variances == 0.0] = np.nan
    return phi


def _beyond_chance(first: Sequence[str], second: Sequence[str], chance: float) -> float | None:
    """Returns the agreement beyond chance, None without items or where chance agrees fully."""
    if len(first) == 0 or chance == 1.0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    return (observed - chance) / (1 - chance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A coefficient with its 95 % interval; None where it is undefined, or without spread."""

    value: float | None
    ci95: list[float] | None


def jackknife(statistic: Statistic, sums: Floats) -> Estimate:
    """Returns a function of sums over clusters, with its interval.

    Delete-one-cluster jackknife: with T_c the statistic of all sums but those of cluster c,
    V = (G - 1) / G sum_c (T_c - mean T)^2, interval T +- t(G - 1) sqrt(V). Source: Efron and Stein
    (1981), Annals of Statistics 9(3). There is none below two clusters, where the statistic is
    undefined without one of them, or where nothing varies.

    Args:
        statistic: of sums (..., m), NaN where it is undefined.
        sums: of each cluster, (G, m).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        total = sums.sum(axis=0)
        value, without = float(statistic(total)), statistic(total - sums)
    if not np.isfinite(value):
        return Estimate(None, None)
    groups = len(sums)
    variance = float((groups - 1) * without.var()) if groups > 1 else 0.0
    if not np.isfinite(variance) or variance <= _ROUNDING:
        return Estimate(value, None)
    half = float(stats.t.ppf(0.975, groups - 1)) * variance**0.5
    return Estimate(value, [value - half, value + half])


_ROUNDING = 1e-24
"""A variance below it is none."""


def linear_weights(scale: Sequence[float]) -> Floats:
    """Returns w_kl = 1 - |x_k - x_l| / range of the categories' places x on a scale, (Q, Q)."""
    scale_values = np.asarray(scale, dtype=np.float64)
    weights: Floats = 1 - np.abs(scale_values[:, None] - scale_values) / max(
        float(np.ptp(scale_values)), 1.0
    )
    return weights


def several_raters(
    counts: Floats,
    clusters: NDArray[np.int64],
    names: Collection[str],
    *,
    weights: Floats | None = None,
    times: Floats | None = None,
) -> dict[str, Estimate]:
    """Returns coefficients of units that at least two raters judged, by their names.

    `raw` is p_o; `gwet` AC1, or AC2 with weights. Of nominal values alone: `fleiss`, and `alpha` of
    Krippendorff, 1 - (n - 1) (n - sum_uk n_uk (n_uk - 1) / (n_u - 1)) / (n^2 - sum_k n_k^2), n_k
    votes for category k, n in all (Content Analysis, 2004, chapter 11).

    Args:
        counts: n_uk, (U, Q).
        clusters: the number of each unit's cluster, (U,).
        names: of the coefficients.
        weights: w_kl, (Q, Q); None: categories agree or do not.
        times: how many units have these counts, (U,); None: each is one.
    """
    categories = counts.shape[1]
    near = np.eye(categories) if weights is None else weights
    votes = counts.sum(axis=1, keepdims=True)
    agreeing = (counts * (counts @ near - np.diagonal(near))).sum(axis=1, keepdims=True)
    coincident = (counts * (counts - 1)).sum(axis=1, keepdims=True) / (votes - 1)
    columns = [np.ones_like(votes), agreeing / (votes * (votes - 1)), coincident]
    features = np.hstack([*columns, counts / votes, counts])
    sums, _ = cluster_sums(features if times is None else features * times[:, None], clusters)
    shares, numbers = slice(3, 3 + categories), slice(3 + categories, None)

    def raw(of: Floats) -> Floats:
        return np.asarray(of[..., 1] / of[..., 0])

    def by_chance(chance: Callable[[Floats], Floats]) -> Statistic:
        def corrected(of: Floats) -> Floats:
            expected = chance(of[..., shares] / of[..., :1])
            return np.asarray((raw(of) - expected) / (1 - expected))

        return corrected

    def alpha(of: Floats) -> Floats:
        total = of[..., numbers].sum(axis=-1)
        expected = total**2 - (of[..., numbers] ** 2).sum(axis=-1)
        return np.asarray(1 - (total - 1) * (total - of[..., 2]) / expected)

    gwet = near.sum() / (categories * max(categories - 1, 1))
    statistics: dict[str, Statistic] = {
        "raw": raw,
        "alpha": alpha,
        "fleiss": by_chance(lambda share: (share**2).sum(axis=-1)),
        "gwet": by_chance(lambda share: gwet * (share * (1 - share)).sum(axis=-1)),
    }
    return {name: jackknife(statistics[name], sums) for name in names}


def two_raters(
    first: NDArray[np.int64], second: NDArray[np.int64], clusters: NDArray[np.int64]
) -> Estimate:
    """Returns Cohen's kappa of two raters over the same units.

    Args:
        first: one rater's category of each unit, a number from 0, (U,).
        second: the other's.
        clusters: the number of each unit's cluster, (U,).
    """
    categories = np.eye(int(max(first.max(), second.max())) + 1)
    units = np.ones((len(first), 1))
    features = [units, (first == second)[:, None], categories[first], categories[second]]
    sums, _ = cluster_sums(np.hstack(features), clusters)

    def kappa(of: Floats) -> Floats:
        agreeing, of_first, of_second = np.split(
            of[..., 1:] / of[..., :1], [1, 1 + len(categories)], -1
        )
        expected = (of_first * of_second).sum(axis=-1)
        return np.asarray((agreeing[..., 0] - expected) / (1 - expected))

    return jackknife(kappa, sums)
