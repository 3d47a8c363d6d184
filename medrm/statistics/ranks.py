"""Which ranks of a leaderboard its cases can tell apart.

A model's rank is 1 + the number of better ones. For each model j the M - 1 differences to the
others get simultaneous 95 % intervals from the paired cluster bootstrap; only a model whose
difference lies clear of zero is counted as better or worse, and the range of ranks is what remains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from medrm.statistics.clusters import RESAMPLES, Floats, resampled_means

_FEWEST = 6
_ROUNDING = 1e-12


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
        spread = np.maximum(noise.std(axis=0), _ROUNDING)
        # The largest standardised error over all k: its quantile holds for all differences at once.
        reach = np.quantile(np.abs(noise / spread).max(axis=1), 0.95) * spread * wider
        better = int((gaps > np.maximum(reach, _ROUNDING)).sum())
        worse = int((gaps < -np.maximum(reach, _ROUNDING)).sum())
        ranges.append((1 + better, models - worse))
    return ranges
