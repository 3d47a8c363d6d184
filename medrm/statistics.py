"""Statistics of paired, clustered verdicts; imports no torch.

Cases that share a patient, a study or an image are not independent, so every interval and test
here works on clusters: n cases lie in G clusters, x_i is the score of case i (1 right, 0 wrong, in
between when several presentations are averaged). No result depends on the order of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

FLIPS = 10_000
"""Sign flips of a permutation test; the smallest reachable p is 1 / (FLIPS + 1)."""

_FLIPS_AT_ONCE = 500
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n cases in G clusters with its confidence interval (None below two clusters)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int

    @property
    def bounds(self) -> list[float] | None:
        """`[low, high]` as reports store it, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


@dataclass(frozen=True, slots=True)
class SignFlipTest:
    """Two-sided p values of D endpoints: raw, and adjusted for looking at all of them."""

    p: tuple[float, ...]
    adjusted: tuple[float, ...]


def mean_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """Returns the mean of `values` (n) with its cluster-robust interval.

    With cluster sums S_c over n_c cases and mean m:
    V = G/(G-1) * sum_c (S_c - n_c m)^2 / n^2, interval m +- t(G-1) * sqrt(V).
    Source: Liang and Zeger (1986), as applied to evaluations by Miller (arXiv 2411.00640), with
    the small-sample factor G/(G-1). The 95 % interval is not cut at 0 and 1.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    n, groups = len(values), len(sums)
    mean = float(sums.sum() / n)
    if groups < 2:
        return Interval(mean, None, None, n, groups)
    variance = groups / (groups - 1) * float(((sums - sizes * mean) ** 2).sum()) / n**2
    half = float(stats.t.ppf(0.975, groups - 1)) * variance**0.5
    return Interval(mean, mean - half, mean + half, n, groups)


def sign_flip_test(
    differences: Floats, clusters: Sequence[str], flips: int = FLIPS, seed: int = 0
) -> SignFlipTest:
    """Tests, for each of D endpoints, whether the mean paired difference is zero.

    Under the null hypothesis before and after are exchangeable within a cluster, so the signs of
    whole clusters are flipped at random. With S_cd the sum of the differences of cluster c in
    endpoint d, T_d = |sum_c S_cd| / sqrt(sum_c S_cd^2) and p = (1 + #{T* >= T}) / (1 + flips). With
    one case in each cluster and differences of -1, 0, 1 this is McNemar's exact test.
    The adjusted p values are the step-down max-T ones of Westfall and Young (1993, algorithm 4.1)
    from the same flips, so that they use the correlation between the endpoints.

    Args:
        differences: after - before, shape (n, D); NaN where a case has no label in an endpoint.
        clusters: the cluster of each of the n cases.
        flips: how many random flips.
        seed: of the flips.
    """
    sums, _ = _cluster_sums(np.nan_to_num(differences), clusters)  # (G, D)
    scale = np.sqrt((sums**2).sum(axis=0))
    scale[scale == 0.0] = 1.0  # no difference anywhere: T = 0, p = 1
    standardised = sums / scale
    observed = np.abs(standardised.sum(axis=0)) - _ROUNDING
    order = np.argsort(-observed, kind="stable")
    raw = np.ones(len(observed))
    stepped = np.ones(len(observed))
    generator = np.random.default_rng(seed)
    for start in range(0, flips, _FLIPS_AT_ONCE):
        count = min(_FLIPS_AT_ONCE, flips - start)
        signs = generator.integers(0, 2, size=(count, len(sums))).astype(np.float64) * 2 - 1
        flipped = np.abs(signs @ standardised)  # (count, D)
        raw += (flipped >= observed).sum(axis=0)
        # The k-th largest endpoint competes with the maximum over itself and all smaller ones.
        highest = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
        stepped += (highest >= observed[order]).sum(axis=0)
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(stepped / (flips + 1))
    return SignFlipTest(tuple((raw / (flips + 1)).tolist()), tuple(adjusted.tolist()))


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two raters over the same items, None where chance agrees fully.

    kappa = (p_o - p_e) / (1 - p_e), p_e = sum over categories of the product of both shares.
    Source: Cohen (1960), Educational and Psychological Measurement 20(1).
    """
    n = len(first)
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(name) * second.count(name) for name in {*first, *second}) / n**2
    return None if chance == 1.0 else (observed - chance) / (1 - chance)


def _cluster_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns sums of `values` (n) or (n, D) by cluster, in name order, and cluster sizes."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values cannot lie in {len(clusters)} named clusters.")
    names, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, sizes.astype(np.float64)
