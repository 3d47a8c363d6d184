"""Tests of a paired difference: before and after on the same cases.

sign_flip_test   T = |sum_c S_c| / sqrt(sum_c S_c^2) over cluster sums S_c of the differences,
                 against the same with random signs; several endpoints at once (max-T)
mcnemar_midp     the same question from the counts of fixed and broken cases alone
binomial_midp    k out of n against one half
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medrm.statistics.clusters import Floats, cluster_sums

FLIPS = 10_000
"""Sign flips of a permutation test; the smallest reachable p is 1 / (FLIPS + 1)."""

_FLIPS_AT_ONCE = 500
_ROUNDING = 1e-9
_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class SignFlipTest:
    """Two-sided p values of D endpoints: raw, and adjusted for looking at all of them."""

    p: tuple[float, ...]
    adjusted: tuple[float, ...]


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
    sums, _ = cluster_sums(np.nan_to_num(differences), clusters)  # (G, D)
    scale = np.sqrt((sums**2).sum(axis=0))
    scale[scale == 0.0] = 1.0  # no difference anywhere: T = 0, p = 1
    standardised = sums / scale
    # A flip of all signs, or of none, must count as reaching T whatever the order of summation.
    observed = np.abs(standardised.sum(axis=0)) - _ROUNDING
    order = np.argsort(-observed, kind="stable")
    raw = np.ones(len(observed))
    stepped = np.ones(len(observed))
    generator = np.random.default_rng(seed)
    for start in range(0, flips, _FLIPS_AT_ONCE):
        count = min(_FLIPS_AT_ONCE, flips - start)
        drawn = generator.integers(0, 2, size=(count, len(sums)), dtype=np.int8)
        flipped = np.abs((drawn * 2.0 - 1.0) @ standardised)  # (count, D)
        raw += (flipped >= observed).sum(axis=0)
        # The k-th largest endpoint competes with the maximum over itself and all smaller ones.
        highest = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
        stepped += (highest >= observed[order]).sum(axis=0)
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(stepped / (flips + 1))
    return SignFlipTest(tuple((raw / (flips + 1)).tolist()), tuple(adjusted.tolist()))


def mcnemar_midp(fixed: int, broken: int) -> float:
    """Returns the two-sided mid-p value of McNemar's test; it assumes independent cases.

    With N = fixed + broken and k the smaller of both, X ~ Binomial(N, 1/2):
    p = 2 P(X < k) + P(X = k), which is 1 for equal counts and where nothing changed.
    Source: Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91: it keeps
    the level almost always and is less conservative than the exact test.
    """
    return binomial_midp(fixed, fixed + broken)


def binomial_midp(k: int, n: int) -> float:
    """Returns the two-sided mid-p value of k out of n against one half.

    Twice the one-sided mid-p P(X < m) + P(X = m) / 2 of m = min(k, n - k), X ~ Binomial(n, 1/2);
    never 0: at least the smallest float, where the sum is too small for one.
    Source: Lancaster (1961), JASA 56; the doubled form as in `mcnemar_midp`.

    Raises:
        ValueError: k does not lie between 0 and n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} out of {n} is no count.")
    smaller = min(k, n - k)
    below, equal = stats.binom.cdf(smaller - 1, n, 0.5), stats.binom.pmf(smaller, n, 0.5)
    return min(1.0, max(_SMALLEST, float(2 * below + equal)))
