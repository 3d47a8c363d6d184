"""Means and their intervals against hand arithmetic and independent computation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from simulated import SHAPES, names_of, scores
from statsmodels.stats.proportion import proportion_confint

from medrm.statistics.intervals import (
    Interval,
    bootstrap_intervals,
    mean_interval,
    small_cell_interval,
)


def dense(values: np.ndarray, clusters: list[str]) -> tuple[float, float, float]:
    """Variance, degrees of freedom and correlation, with whole n x n matrices and plain loops."""
    n, names = len(values), sorted(set(clusters))
    members = [np.array([name == one for one in clusters]) for name in names]
    residual = values - values.mean()
    between = sum(m.sum() * (values[m].mean() - values.mean()) ** 2 for m in members)
    within = sum(((values[m] - values[m].mean()) ** 2).sum() for m in members)
    between, within = between / (len(names) - 1), within / (n - len(names))
    typical = (n - sum(m.sum() ** 2 for m in members) / n) / (len(names) - 1)
    correlation = max(0.0, (between - within) / (between + (typical - 1) * within))
    same = sum(np.outer(m, m) for m in members).astype(float)
    covariance = (1 - correlation) * np.eye(n) + correlation * same
    scale = [1 / math.sqrt(1 - m.sum() / n) for m in members]
    centre = np.eye(n) - 1 / n
    sides = np.stack([a * (centre @ m) for a, m in zip(scale, members, strict=True)], axis=1)
    matrix = sides.T @ covariance @ sides
    variance = sum((a * residual[m].sum()) ** 2 for a, m in zip(scale, members, strict=True))
    return variance / n**2, np.trace(matrix) ** 2 / (matrix**2).sum(), correlation


def test_mean_interval_by_hand() -> None:
    """Three clusters of two: m = 1/2; S - n_c m = 1, -1, 0; V = 3/2 * 2 / 36."""
    result = mean_interval([1, 1, 0, 0, 1, 0], list("xxyyzz"))
    half = 4.302652729911275 * math.sqrt(1.5 * 2 / 36)  # t(0.975, 2)
    assert result.mean == 0.5
    assert result.bounds == pytest.approx([0.5 - half, 0.5 + half])
    assert (result.n, result.clusters, result.largest_cluster) == (6, 3, 2)
    # s^2 = 6 * 0.25 / 5 = 0.3, of six independent cases: V = 0.05
    assert result.design_effect == pytest.approx(1.5 * 2 / 36 / 0.05)


def test_unequal_clusters_by_hand() -> None:
    """Two cases in x, one in y and z: S - n_c m = 1, -1/2, -1/2; V = (1/(1/2) + 1/2/(3/4)) / 16."""
    result = mean_interval([1, 1, 0, 0], ["x", "x", "y", "z"])
    variance = (1 / 0.5 + 2 * 0.25 / 0.75) / 16
    freedom = dense(np.array([1.0, 1, 0, 0]), ["x", "x", "y", "z"])[1]
    assert 1.0 < freedom < 2.0
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert result.bounds == pytest.approx([0.5 - half, 0.5 + half])
    assert result.design_effect == pytest.approx(variance / (1 / 3 / 4))


@pytest.mark.parametrize("name", ["unequal", "few large", "skewed"])
def test_mean_interval_equals_the_dense_computation(name: str) -> None:
    sizes = SHAPES[name] if name != "unequal" else SHAPES[name][:60]
    values = scores(np.random.default_rng(3), sizes, 0.6)
    variance, freedom, correlation = dense(values, names_of(sizes))
    assert 0.05 < correlation < 0.95
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    found = mean_interval(values.tolist(), names_of(sizes))
    assert found.bounds == pytest.approx([values.mean() - half, values.mean() + half])


def test_singleton_clusters_give_the_t_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 1.0]
    result = mean_interval(values, list("abcde"))
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert result.bounds == pytest.approx(list(expected))
    assert result.design_effect == pytest.approx(1.0)


@pytest.mark.parametrize("interval", [mean_interval, small_cell_interval])
def test_one_cluster_has_no_interval_and_no_value_is_an_error(
    interval: Callable[..., Interval],
) -> None:
    result = interval([1, 0], ["x", "x"])
    assert (result.bounds, result.design_effect, result.largest_cluster) == (None, None, 2)
    with pytest.raises(ValueError, match="at least one"):
        interval([], [])
    with pytest.raises(ValueError, match="named clusters"):
        interval([1], [])


def tango(delta: float, fixed: int, broken: int, n: int) -> float:
    """The score statistic of a paired difference; source: Tango (1998), equations 2 to 4."""
    a, c = 2 * n, -broken * delta * (1 - delta)
    b = -fixed - broken + (2 * n - fixed + broken) * delta
    share = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return (fixed - broken - n * delta) / math.sqrt(n * (2 * share + delta * (1 - delta)))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (12, 0), (0, 12)])
def test_equal_differences_have_the_score_interval(fixed: int, broken: int) -> None:
    value = (fixed - broken) / 12
    result = mean_interval([value] * 12, names_of([1] * 12), span=(-1.0, 1.0))
    low, high = result.bounds
    assert result.design_effect is None
    assert low == -1.0 if broken else tango(low, fixed, broken, 12) == pytest.approx(1.96, abs=1e-3)
    assert (
        high == 1.0 if fixed else tango(high, fixed, broken, 12) == pytest.approx(-1.96, abs=1e-3)
    )
    clustered = mean_interval([value] * 24, names_of([2] * 12), span=(-1.0, 1.0))
    assert clustered.bounds == result.bounds  # 12 clusters, whatever their size
    right = mean_interval([1.0] * 12, names_of([1] * 12), span=(0.0, 1.0))
    assert right.bounds == pytest.approx(list(proportion_confint(12, 12, method="wilson")))
    between = mean_interval([0.25] * 12, names_of([1] * 12), span=(-1.0, 1.0))
    assert between.low < 0.25 < between.high
    assert bootstrap_intervals(np.full((12, 1), value), names_of([1] * 12)) == [None]


def test_clusters_of_one_mean_have_the_score_interval() -> None:
    """One of three right in each of three clusters: V is 0 although the scores differ."""
    values, clusters = [1.0, 0.0, 0.0] * 3, names_of([3] * 3)
    result = mean_interval(values, clusters, span=(-1.0, 1.0))
    equal = mean_interval([1 / 3] * 9, clusters, span=(-1.0, 1.0))
    assert result.bounds == pytest.approx(equal.bounds)
    assert result.low < 0 < 1 / 3 < result.high
    assert result.design_effect == 0.0
    assert mean_interval(values, clusters).bounds == [result.mean, result.mean]


def test_equal_scores_have_no_design_effect() -> None:
    result = mean_interval([1, 1, 1], ["x", "x", "y"])
    assert (result.bounds, result.design_effect) == ([1.0, 1.0], None)


def test_wilson_for_independent_cases() -> None:
    """79 independent cases, 51 right: the plain Wilson interval."""
    values = [1.0] * 51 + [0.0] * 28
    found = small_cell_interval(values, [str(i) for i in range(79)])
    assert found.bounds == pytest.approx(list(proportion_confint(51, 79, method="wilson")))


def test_wilson_counts_fewer_cases_where_they_go_together() -> None:
    """24 cases in 8 clusters that are right or wrong as one: deff 23/7, t(23) and t(7)."""
    values = np.repeat([1.0, 1, 1, 0, 1, 0, 1, 1], 3).tolist()
    found = small_cell_interval(values, [str(i // 3) for i in range(24)])
    # V = 8/7 * 8 * 9 * 3/16 / 24^2 and s^2 / n = 24 * 3/16 / 23 / 24, hence 23 * 3 / 21 = 23/7.
    assert found.design_effect == pytest.approx(23 / 7)
    effective = 24 / (23 / 7) * (stats.t.ppf(0.975, 23) / stats.t.ppf(0.975, 7)) ** 2
    low, high = proportion_confint(0.75 * effective, effective, method="wilson")
    assert found.bounds == pytest.approx([low, high])


def test_wilson_never_counts_more_cases_than_there_are() -> None:
    """One right and one wrong in each of 20 clusters: the design effect is 0, and counts as 1."""
    result = small_cell_interval([1, 0] * 20, names_of([2] * 20))
    assert result.design_effect == 0.0
    effective = 40 * (stats.t.ppf(0.975, 39) / stats.t.ppf(0.975, 19)) ** 2
    expected = proportion_confint(effective / 2, effective, method="wilson")
    assert result.bounds == pytest.approx(expected)


def test_wilson_where_all_are_right_counts_clusters() -> None:
    found = small_cell_interval([1.0] * 12, [str(i // 2) for i in range(12)])
    assert found.bounds == pytest.approx(list(proportion_confint(6, 6, method="wilson")))
    assert found.low is not None
    assert found.low < 0.7


def test_bootstrap_agrees_with_the_formula() -> None:
    sizes = SHAPES["threes"]
    generator = np.random.default_rng(2)
    values = np.stack([scores(generator, sizes, 0.6), scores(generator, sizes, 0.8)], axis=1)
    for column, found in zip(values.T, bootstrap_intervals(values, names_of(sizes)), strict=True):
        assert found == pytest.approx(
            mean_interval(column.tolist(), names_of(sizes)).bounds, abs=0.003
        )


def test_bootstrap_percentiles_are_expanded_for_few_clusters() -> None:
    """5 of 10 right: P(at most one right is drawn) = 1.07 %, between the tails 0.86 % and 1.18 %.

    The first is that of sqrt(10/9) t, the second that of t alone.
    """
    names = [str(number) for number in range(10)]
    values = np.array([[1.0], [0.0]] * 5)
    assert bootstrap_intervals(values, names, resamples=200_000) == [pytest.approx((0.1, 0.9))]


def test_bootstrap_is_paired_seeded_and_leaves_out_what_has_no_label() -> None:
    generator = np.random.default_rng(4)
    clusters = [str(i // 2) for i in range(60)]
    values = generator.random((60, 4))
    values[:, 1] = values[:, 0]
    values[20:, 2] = np.nan
    values[2:, 3] = np.nan  # one cluster
    found = bootstrap_intervals(values, clusters, resamples=2000)
    assert found[0] == found[1]
    assert found[2] is not None
    assert found[2][0] < np.nanmean(values[:, 2]) < found[2][1]
    assert found[3] is None
    assert found == bootstrap_intervals(values, clusters, resamples=2000)
    assert found[0] != bootstrap_intervals(values, clusters, resamples=2000, seed=1)[0]
    assert bootstrap_intervals(values[:2], clusters[:2]) == [None] * 4


def test_row_order_changes_no_interval() -> None:
    """Sums of arbitrary numbers depend on the order in the last bit; these do not."""
    generator = np.random.default_rng(1)
    values = generator.random((200, 3))
    values[5:9, 1] = np.nan
    clusters = [str(name) for name in generator.integers(0, 60, size=200)]
    shuffle = generator.permutation(200)
    moved = [clusters[i] for i in shuffle]
    for interval in (mean_interval, small_cell_interval):
        assert interval(values[:, 0].tolist(), clusters) == interval(
            values[shuffle, 0].tolist(), moved
        )
    assert bootstrap_intervals(values, clusters, 500) == bootstrap_intervals(
        values[shuffle], moved, 500
    )
