"""Statistics against hand arithmetic, exact tests and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medrm.statistics import cohen_kappa, mean_interval, sign_flip_test


def column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_mean_interval_by_hand() -> None:
    """Two cases in x, one in y and z: m = 1/2; S - n_c m = 1, -1/2, -1/2; V = 3/2 * 1.5 / 16."""
    result = mean_interval([1, 1, 0, 0], ["x", "x", "y", "z"])
    half = 4.302652729911275 * math.sqrt(1.5 * 1.5 / 16)  # t(0.975, 2)
    assert result.mean == 0.5
    assert result.bounds == pytest.approx([0.5 - half, 0.5 + half])
    assert (result.n, result.clusters) == (4, 3)


def test_singleton_clusters_give_the_t_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 1.0]
    result = mean_interval(values, list("abcde"))
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert result.bounds == pytest.approx(list(expected))


def test_one_cluster_has_no_interval_and_no_value_is_an_error() -> None:
    assert mean_interval([1, 0], ["x", "x"]).bounds is None
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([], [])
    with pytest.raises(ValueError, match="named clusters"):
        mean_interval([1], [])


def test_row_order_changes_nothing() -> None:
    generator = np.random.default_rng(1)
    values = generator.integers(-2, 3, size=(200, 3)) / 2
    clusters = [str(name) for name in generator.integers(0, 60, size=200)]
    shuffle = generator.permutation(200)
    moved = [clusters[i] for i in shuffle]
    assert mean_interval(values[:, 0].tolist(), clusters) == mean_interval(
        values[shuffle, 0].tolist(), moved
    )
    assert sign_flip_test(values, clusters) == sign_flip_test(values[shuffle], moved)


def test_sign_flip_equals_the_exact_test_for_singletons() -> None:
    """7 fixed, 1 broken: the exact McNemar p is 2 * (8 + 1) / 2^8 = 0.0703."""
    differences = column([1] * 7 + [-1] + [0] * 20)
    result = sign_flip_test(differences, [str(i) for i in range(28)])
    exact = stats.binomtest(1, 8).pvalue
    assert exact == pytest.approx(0.0703125)
    assert result.p[0] == pytest.approx(exact, abs=0.01)
    assert result.adjusted == result.p


def test_sign_flip_moves_whole_clusters() -> None:
    """Eight equal gains in two clusters are only two independent observations: p = 1/2."""
    values = column([1] * 8)
    assert sign_flip_test(values, ["x"] * 4 + ["y"] * 4).p[0] == pytest.approx(0.5, abs=0.03)
    assert sign_flip_test(values, list("abcdefgh")).p[0] == pytest.approx(2 / 256, abs=0.004)


def test_no_difference_and_missing_labels() -> None:
    values = np.array([[0, 1, np.nan], [0, 1, np.nan], [0, 1, 1], [0, np.nan, 1]])
    result = sign_flip_test(values, list("abcd"))
    assert result.p[0] == 1.0
    assert result.p[1] == pytest.approx(0.25, abs=0.02)  # three clusters: 2 / 2^3
    assert result.p[2] == pytest.approx(0.5, abs=0.02)


def test_adjusted_p_by_exact_enumeration() -> None:
    """Step-down max-T against all 2^6 sign patterns, worked out here without vectorising."""
    sums = np.array([[3, 1], [2, -1], [2, 2], [1, 1], [-1, 0], [2, -2]], dtype=float)
    scaled = sums / np.sqrt((sums**2).sum(axis=0))
    seen = np.abs(scaled.sum(axis=0))
    patterns = [[1 if code >> bit & 1 else -1 for bit in range(6)] for code in range(64)]
    flipped = [np.abs(np.array(signs) @ scaled) for signs in patterns]
    assert seen[0] > seen[1]
    first = np.mean([row.max() >= seen[0] - 1e-9 for row in flipped])
    second = max(first, np.mean([row[1] >= seen[1] - 1e-9 for row in flipped]))
    result = sign_flip_test(sums, list("abcdef"), flips=40_000)
    assert result.adjusted == pytest.approx((first, second), abs=0.01)


def test_same_seed_same_p_and_the_floor() -> None:
    values = column([1] * 100)
    clusters = [str(i) for i in range(100)]
    assert sign_flip_test(values, clusters) == sign_flip_test(values, clusters)
    assert sign_flip_test(values, clusters).p[0] == 1 / 10_001


def test_equal_models_are_rejected_as_often_as_stated() -> None:
    """A/A: two equally good models on 80 clusters of 3 cases whose differences go together."""
    generator = np.random.default_rng(7)
    rejected, covered, runs = 0, 0, 400
    clusters = [str(i // 3) for i in range(240)]
    for _ in range(runs):
        shared = np.repeat(generator.choice([-1, 0, 1], size=80, p=[0.15, 0.7, 0.15]), 3)
        values = np.where(generator.random(240) < 0.8, shared, 0).astype(float)
        rejected += sign_flip_test(values[:, None], clusters, flips=999).p[0] < 0.05
        low, high = mean_interval(values.tolist(), clusters).bounds or (0, 0)
        covered += low <= 0 <= high
    assert 0.03 <= rejected / runs <= 0.075
    assert 0.92 <= covered / runs <= 0.975


def test_kappa_by_hand() -> None:
    """p_o = 3/4, judge A in 2/4 and label A in 3/4: p_e = 6/16 + 2/16 = 1/2, kappa = 1/2."""
    assert cohen_kappa(list("AABB"), list("AAAB")) == pytest.approx(0.5)
    assert cohen_kappa(list("AB"), list("AB")) == 1.0
    assert cohen_kappa(list("AA"), list("AA")) is None
    assert cohen_kappa([], []) is None
    # An unread verdict is a category of its own: p_o = 1/2, p_e = 1/4.
    assert cohen_kappa(["A", "unread"], ["A", "B"]) == pytest.approx(1 / 3)
