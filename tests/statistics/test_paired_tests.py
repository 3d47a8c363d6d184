"""Tests of a paired difference against hand arithmetic, enumeration and exact tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from medrm.statistics.significance import (
    benjamini_hochberg,
    binomial_midp,
    holm,
    mcnemar_midp,
    sign_flip_test,
)


def column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


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


def test_row_order_changes_no_p() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(200, 3))  # sums of these depend on the order in the last bit
    clusters = [str(name) for name in generator.integers(0, 60, size=200)]
    shuffle = generator.permutation(200)
    moved = [clusters[i] for i in shuffle]
    assert sign_flip_test(values, clusters) == sign_flip_test(values[shuffle], moved)


@pytest.mark.parametrize(("fixed", "broken"), [(7, 1), (30, 18), (141, 83), (12, 12)])
def test_singleton_clusters_give_the_exact_mcnemar_p(fixed: int, broken: int) -> None:
    """40,000 flips: the p value lies within four standard errors of the exact one."""
    differences = column([1] * fixed + [-1] * broken + [0] * 50)
    clusters = [str(i) for i in range(len(differences))]
    exact = mcnemar([[0, fixed], [broken, 0]], exact=True).pvalue
    error = (exact * (1 - exact) / 40_000) ** 0.5
    found = sign_flip_test(differences, clusters, flips=40_000).p[0]
    assert found == pytest.approx(exact, abs=4 * error + 1e-4)


def test_mid_p_by_hand() -> None:
    """7 fixed, 1 broken: 2 * 1/256 + 8/256 = 10/256, the exact p 18/256 less P(X = 1)."""
    assert mcnemar_midp(7, 1) == pytest.approx(10 / 256)
    assert mcnemar_midp(1, 7) == pytest.approx(10 / 256)
    assert mcnemar_midp(4, 4) == 1.0
    assert mcnemar_midp(0, 0) == 1.0
    assert mcnemar_midp(3, 0) == pytest.approx(1 / 8)
    exact = mcnemar([[0, 20], [9, 0]], exact=True).pvalue
    assert mcnemar_midp(20, 9) == pytest.approx(exact - stats.binom.pmf(9, 29, 0.5))
    assert binomial_midp(9, 29) == mcnemar_midp(20, 9)
    assert 0 < mcnemar_midp(2000, 0) < 1e-300
    with pytest.raises(ValueError, match="3 out of 2"):
        binomial_midp(3, 2)


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: Holm 4, 3, 2, 1 times; BH 4/1, 4/2, 4/3, 4/4 times."""
    p = [0.5, 0.01, 0.03, 0.02]
    assert holm(p) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert benjamini_hochberg(p) == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert (holm([]), benjamini_hochberg([])) == ([], [])
    assert holm([0.04, 0.9]) == pytest.approx([0.08, 0.9])
    assert benjamini_hochberg([0.9, 0.8, 0.7]) == pytest.approx([0.9, 0.9, 0.9])
    drawn = np.random.default_rng(0).random(78) ** 2
    expected = multipletests(drawn, method="fdr_bh")[1]
    assert benjamini_hochberg(drawn.tolist()) == pytest.approx(expected.tolist())
