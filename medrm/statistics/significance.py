"""What differences of models the cases can show: tests, power, adjusted p values, ranges of ranks.

sign_flip_test      T = |sum_c S_c| / sqrt(sum_c S_c^2) over cluster sums S_c of the paired
                    differences, against the same with random signs; several endpoints (max-T)
mcnemar_midp        the same question from the counts of fixed and broken cases alone
binomial_midp       k out of n against one half
minimum_detectable  the smallest gain that a paired test of so many cases finds
holm                p values adjusted for looking at several endpoints: bounds the chance of even
                    one false finding (claims); `benjamini_hochberg`: the expected share of false
                    findings among all findings (exploratory tables)
rank_ranges         which ranks of a leaderboard the cases can tell apart

Power: the gain is the mean paired difference of scores; the discordance is the share of cases whose
score changes (fixed and broken), or, where scores are means over presentations, the mean squared
change. The formulas take n / design effect for n. They are approximations for large n: the mean
difference is normal, with variance q / n where there is no gain and (q - d^2) / n where there is a
gain d, for the discordance q.
Source: Miettinen (1968), Biometrics 24(2), and Connor (1987), Biometrics 43(1), for McNemar's test.

Ranks: a model's rank is 1 + the number of better ones. For each model j the M - 1 differences to
the others get simultaneous 95 % intervals from the paired cluster bootstrap; only a model whose
difference lies clear of zero is counted as better or worse; the range of ranks is what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medrm.statistics.intervals import RESAMPLES, Floats, cluster_sums, resampled_means

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


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Returns the p values adjusted to control the false discovery rate, in the given order.

    q_(i) = min over j >= i of (m / j) p_(j) for the i-th smallest of m. Holds for independent and
    for positively dependent endpoints.
    Source: Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57(1).
    """
    return [float(q) for q in stats.false_discovery_control(p, method="bh")] if len(p) else []


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p values adjusted to control the familywise error, in the given order.

    a_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) for the i-th smallest of m. Holds under any
    dependence, and uses none of it. Source: Holm (1979), Scandinavian Journal of Statistics 6(2).

    >>> holm([0.01, 0.2, 0.02])
    [0.03, 0.2, 0.04]
    """
    # By hand, because statsmodels' multipletests collects all garbage, 0.1 s, at each call.
    unadjusted = np.asarray(p, dtype=np.float64)
    order = np.argsort(unadjusted, kind="stable")
    # The smallest counts m times, the next m - 1 times, ...; none may fall below one before it.
    stepped = np.maximum.accumulate(np.arange(len(p), 0, -1) * unadjusted[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return list(map(float, adjusted))


def minimum_detectable(
    n: int, discordance: float, design_effect: float = 1.0, power: float = 0.8, level: float = 0.05
) -> float:
    """Returns the gain that a two-sided test of this level finds with this probability.

    The d with d sqrt(n) = z(1 - level/2) sqrt(q) + z(power) sqrt(q - d^2), q the discordance:
    d = sqrt(q) (z_l sqrt(n) + z_p sqrt(n - z_l^2 + z_p^2)) / (n + z_p^2). For scores of 0 and 1 a
    result above q says that no gain can be detected: it cannot exceed the discordance. For the
    strictest of m tests after Holm, give level / m.

    Raises:
        ValueError: a share is not in (0, 1), or there is no case.
    """
    if n < 1 or design_effect <= 0 or not 0 <= discordance <= 1:
        raise ValueError(
            f"n = {n}, discordance = {discordance}, design effect = {design_effect}: give a "
            "positive n, a share and a positive design effect."
        )
    if not 0 < level < power < 1:
        raise ValueError(f"level {level} and power {power}: give 0 < level < power < 1.")
    size = n / design_effect
    z_level, z_power = stats.norm.isf(level / 2), stats.norm.ppf(power)
    root = max(0.0, size - z_level**2 + z_power**2) ** 0.5
    return float(discordance**0.5 * (z_level * size**0.5 + z_power * root) / (size + z_power**2))


_FEWEST = 6
_TIE_MARGIN = 1e-12


def rank_ranges(
    scores: Floats, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[tuple[int, int]]:
    """Returns for each model the ranks (1 is best) that 95 % confidence leaves open.

    In each resample of the paired cluster bootstrap (the same clusters for all models), the
    differences of model j to the others are compared with the observed ones. With se_k the standard
    deviation of d_k = mean_k - mean_j over the resamples, and q the 95 % quantile of
    max over k of |d*_k - d_k| / se_k, widened as in `bootstrap_intervals`, model k is better where
    d_k > q se_k and worse where d_k < -q se_k; the range is from 1 + number of better to M - number
    of worse ones. All differences of a model hold together with 95 % confidence, also where models
    are nearly equal; there the plain percentiles of resampled ranks miss the true rank far too
    often. Below six clusters, where no sign-flip test reaches 5 %, every rank is left open.
    Source: Mogstad, Romano, Shaikh and Wilhelm (2024), Review of Economic Studies 91(1), section 3.

    Args:
        scores: shape (M, n), the score of each model on each case; NaN where there is none.
        clusters: the cluster of each of the n cases.
        resamples: how often the clusters are drawn.
        seed: of the draws.

    Raises:
        ValueError: a model has no score at all.
    """
    if np.isnan(scores).all(axis=1).any():
        raise ValueError("A model without any score has no rank.")
    models, groups = len(scores), len(set(clusters))
    if groups < _FEWEST:
        return [(1, models)] * models
    means, drawn = resampled_means(scores.T, clusters, resamples, seed)
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    wider = (groups / (groups - 1)) ** 0.5 * stats.t.ppf(0.975, groups - 1) / stats.norm.ppf(0.975)
    ranges = []
    for model in range(models):
        gaps = means - means[model]
        noise = drawn - drawn[:, [model]] - gaps  # (R, M)
        spread = np.maximum(noise.std(axis=0), _TIE_MARGIN)
        # The largest standardised error over all k: its quantile holds for all differences at once.
        reach = np.quantile(np.abs(noise / spread).max(axis=1), 0.95) * spread * wider
        better = int((gaps > np.maximum(reach, _TIE_MARGIN)).sum())
        worse = int((gaps < -np.maximum(reach, _TIE_MARGIN)).sum())
        ranges.append((1 + better, models - worse))
    return ranges
