"""Agreement of raters and of dimensions against hand arithmetic."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from medrm.statistics.agreement import (
    cohen_kappa,
    gwet_ac1,
    linear_weights,
    phi_matrix,
    several_raters,
    two_raters,
)

ALL = ("raw", "alpha", "fleiss", "gwet")


def test_kappa_by_hand() -> None:
    """p_o = 3/4, judge A in 2/4 and label A in 3/4: p_e = 6/16 + 2/16 = 1/2, kappa = 1/2."""
    assert cohen_kappa(list("AABB"), list("AAAB")) == pytest.approx(0.5)
    assert cohen_kappa(list("AB"), list("AB")) == 1.0
    assert cohen_kappa(list("AA"), list("AA")) is None
    assert cohen_kappa([], []) is None
    # An unread verdict is a category of its own: p_o = 1/2, p_e = 1/4.
    assert cohen_kappa(["A", "unread"], ["A", "B"]) == pytest.approx(1 / 3)


def test_ac1_by_hand() -> None:
    """p_o = 3/4, A in (2/4 + 3/4) / 2 = 5/8: p_e = 2 * 5/8 * 3/8 = 15/32, AC1 = 9/17."""
    assert gwet_ac1(list("AABB"), list("AAAB")) == pytest.approx(9 / 17)
    assert gwet_ac1(list("AA"), list("AA")) == 1.0
    assert gwet_ac1([], []) is None
    # Three categories with shares 1/2, 1/4, 1/4: p_e = (1/4 + 3/16 + 3/16) / 2 = 5/16.
    assert gwet_ac1(["A", "unread"], ["A", "B"]) == pytest.approx((1 / 2 - 5 / 16) / (11 / 16))


def test_ac1_does_not_collapse_under_unbalanced_labels() -> None:
    first, second = list("A" * 96 + "AABB"), list("A" * 96 + "BBAA")
    assert cohen_kappa(first, second) == pytest.approx(-0.02, abs=0.01)
    assert gwet_ac1(first, second) == pytest.approx(0.96, abs=0.01)


def test_phi_equals_the_correlation_over_shared_cases() -> None:
    generator = np.random.default_rng(0)
    first = generator.choice([-1.0, 1.0], size=50)
    columns = np.stack([first, np.where(generator.random(50) < 0.7, first, -first)], axis=1)
    columns = np.column_stack([columns, generator.choice([-1.0, 1.0], size=50), np.ones(50)])
    columns[:5, 0] = np.nan
    columns[3:9, 1] = np.nan
    found = phi_matrix(columns)
    for i in range(3):
        for j in range(3):
            both = ~np.isnan(columns[:, i]) & ~np.isnan(columns[:, j])
            expected = np.corrcoef(columns[both, i], columns[both, j])[0, 1]
            assert found[i, j] == pytest.approx(expected)
    assert np.isnan(found[3]).all()  # always the first answer: no correlation is defined
    assert np.isnan(found[:, 3]).all()


def test_several_raters_as_other_packages_have_them() -> None:
    generator = np.random.default_rng(1)
    counts = generator.multinomial(4, [0.5, 0.3, 0.2], size=60).astype(float)
    found = several_raters(counts, np.arange(60) // 2, ALL)
    assert found["fleiss"].value == pytest.approx(fleiss_kappa(counts))
    alpha = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
    assert found["alpha"].value == pytest.approx(alpha)
    places = linear_weights([-1, 0, 1])
    assert places.tolist() == [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]
    near = several_raters(counts, np.arange(60), ALL, weights=places)
    assert near["gwet"].value > found["gwet"].value


def test_two_raters_as_their_coefficients_by_name() -> None:
    generator = np.random.default_rng(2)
    first = generator.integers(0, 3, 50)
    second = np.where(generator.random(50) < 0.6, first, generator.integers(0, 3, 50))
    clusters = np.arange(50) // 5
    letters = [list(map(str, of)) for of in (first, second)]
    assert two_raters(first, second, clusters).value == pytest.approx(cohen_kappa(*letters))
    counts = np.eye(3)[first] + np.eye(3)[second]
    assert several_raters(counts, clusters, ALL)["gwet"].value == pytest.approx(gwet_ac1(*letters))


def test_intervals_of_coefficients_leave_out_one_cluster_after_another() -> None:
    """Of a mean over clusters of one unit the jackknife is the interval of a mean by t."""
    counts = np.array([[3, 0], [2, 1], [0, 3], [1, 2], [3, 0]], dtype=float)
    shares = np.array([1, 1 / 3, 1, 1 / 3, 1])
    half = 2.7764451 * shares.std(ddof=1) / 5**0.5
    raw = several_raters(counts, np.arange(5), ALL)["raw"]
    assert raw.ci95 == pytest.approx([raw.value - half, raw.value + half])
    wider = several_raters(np.repeat(counts, 4, axis=0), np.repeat(np.arange(5), 4), ALL)["raw"]
    assert wider.ci95 == pytest.approx(raw.ci95)  # copies within a cluster say nothing more
    assert several_raters(counts, np.zeros(5, dtype=int), ALL)["raw"].ci95 is None
    agreed = several_raters(np.array([[3.0, 0.0]] * 4), np.arange(4), ALL)
    assert (agreed["raw"].value, agreed["raw"].ci95) == (1.0, None)
    assert (agreed["alpha"].value, agreed["fleiss"].value, agreed["gwet"].value) == (None, None, 1)
