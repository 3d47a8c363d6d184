"""Rank ranges of a leaderboard."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import SHAPES, names_of, scores

from medrm.statistics.significance import rank_ranges


def test_equal_models_share_a_range_and_sure_differences_do_not() -> None:
    generator = np.random.default_rng(0)
    half = generator.integers(0, 2, 60).astype(float)
    found = rank_ranges(
        np.stack([np.zeros(60), np.ones(60), half, np.ones(60)]), [str(i) for i in range(60)]
    )
    assert found == [(4, 4), (1, 2), (3, 3), (1, 2)]
    assert rank_ranges(half[None], [str(i) for i in range(60)]) == [(1, 1)]


def test_ranges_are_paired() -> None:
    """A model that is right wherever another is, and on 5 points more, is better beyond doubt.

    Unpaired, 60 and 65 % of 400 cases could not be told apart.
    """
    weaker = (np.arange(400) < 240).astype(float)
    better = (np.arange(400) < 260).astype(float)
    clusters = [str(i) for i in range(400)]
    assert rank_ranges(np.stack([weaker, better]), clusters) == [(2, 2), (1, 1)]
    generator = np.random.default_rng(0)
    apart = np.stack([weaker, generator.permutation(better)])
    assert rank_ranges(apart, clusters) == [(1, 2), (1, 2)]


def test_clusters_widen_a_range() -> None:
    generator = np.random.default_rng(1)
    first = np.repeat(generator.random(25) < 0.75, 16).astype(float)
    second = np.repeat(generator.random(25) < 0.6, 16).astype(float)
    assert first.mean() > second.mean()
    values = np.stack([first, second])
    assert rank_ranges(values, [str(i) for i in range(400)]) == [(1, 1), (2, 2)]
    assert rank_ranges(values, [str(i // 16) for i in range(400)]) == [(1, 2), (1, 2)]


def test_below_six_clusters_no_rank_is_excluded() -> None:
    """One gain in each of G clusters has the sign-flip p 2 / 2^G: 0.06 at five, 0.03 at six."""
    values = np.stack([np.ones(30), np.zeros(30)])
    assert rank_ranges(values, [str(i % 5) for i in range(30)]) == [(1, 2), (1, 2)]
    assert rank_ranges(values, [str(i % 6) for i in range(30)]) == [(1, 1), (2, 2)]


def test_few_clusters_widen_beyond_the_bootstrap() -> None:
    """3 of 10 clusters: beyond what was resampled, but the sign-flip p is 2 / 2^3."""
    values = np.stack([np.ones(10), (np.arange(10) < 7).astype(float)])
    assert rank_ranges(values, [str(i) for i in range(10)]) == [(1, 2), (1, 2)]


def test_order_seed_and_missing_scores() -> None:
    generator = np.random.default_rng(2)
    values = generator.random((5, 120)) + np.linspace(0, 0.1, 5)[:, None]
    values[:, 7] = np.nan
    clusters = [str(i // 3) for i in range(120)]
    found = rank_ranges(values, clusters, 1000)
    shuffle = generator.permutation(120)
    assert rank_ranges(values[:, shuffle], [clusters[i] for i in shuffle], 1000) == found
    assert found == rank_ranges(values, clusters, 1000)
    values[0] = np.nan
    with pytest.raises(ValueError, match="no rank"):
        rank_ranges(values, clusters, 1000)


def coverage(runs: int) -> tuple[float, float]:
    """Shares of true ranks inside the ranges, and of ranges that leave something out."""
    generator = np.random.default_rng(3)
    truth = [0.60, 0.605, 0.61, 0.615, 0.68, 0.75]  # true ranks 6 to 1, four of them nearly equal
    sizes, clusters = SHAPES["threes"], names_of(SHAPES["threes"])
    inside, informative = 0, 0
    for run in range(runs):
        values = np.stack([scores(generator, sizes, accuracy) for accuracy in truth])
        for rank, (low, high) in zip(
            range(6, 0, -1), rank_ranges(values, clusters, 400, seed=run), strict=True
        ):
            inside += low <= rank <= high
            informative += high - low < 5
    return inside / (6 * runs), informative / (6 * runs)


def test_ranges_hold_the_true_rank() -> None:
    """60 leaderboards of 6: at least 95 % inside, less three errors of 60 independent runs."""
    inside, informative = coverage(60)
    assert inside >= 0.95 - 3 * (0.95 * 0.05 / 60) ** 0.5 / 2
    assert informative > 0.9


@pytest.mark.slow
def test_ranges_hold_the_true_rank_in_a_thousand_leaderboards() -> None:
    assert coverage(1000)[0] >= 0.94
