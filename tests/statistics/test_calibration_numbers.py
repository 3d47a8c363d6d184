"""Calibration against hand arithmetic and on simulated judges."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import astuple

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from medrm.statistics.calibration import Calibration, calibration, fit_temperature


def judge(n: int, sharpness: float, seed: int) -> Calibration:
    """A judge whose log odds are `sharpness` times the true ones."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 1.2, n)
    label = generator.random(n) < 1 / (1 + np.exp(-odds))
    return calibration((1 / (1 + np.exp(-sharpness * odds))).tolist(), label.tolist())


def test_by_hand() -> None:
    """Confidence 0.9 right, 0.8 wrong, 0.6 right: one bin, accuracy 2/3, mean confidence 23/30."""
    found = calibration([0.9, 0.2, 0.6], [True, True, True])
    assert found.n == 3
    assert found.ece == pytest.approx(0.1)
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.16) / 3)
    assert found.nll == pytest.approx(-math.log(0.9 * 0.2 * 0.6) / 3)
    assert found.auroc == 0.5
    low, high = proportion_confint(2, 3, method="wilson")
    assert list(map(astuple, found.bins)) == [pytest.approx((23 / 30, 2 / 3, 3, low, high))]
    assert [risk for _, risk in found.risk_coverage] == pytest.approx([0, 1 / 2, 1 / 3])
    assert [covered for covered, _ in found.risk_coverage] == pytest.approx([1 / 3, 2 / 3, 1])
    # 80 % of three cases are the first two and 0.4 of the third: 1.4 of 2.4 right.
    assert found.accuracy_at_80 == pytest.approx(1.4 / 2.4)


def test_an_even_verdict_is_half_right() -> None:
    found = calibration([0.5, 0.5], [True, False])
    assert (found.ece, found.auroc, found.accuracy_at_80) == (0.0, 0.5, 0.5)
    assert found.bins[0].accuracy == 0.5


def test_all_right_has_no_auroc_and_certainty_is_clipped() -> None:
    found = calibration([1.0, 0.0], [True, False])
    assert found.auroc is None
    assert (found.ece, found.ece_debiased) == (0.0, 0.0)
    assert calibration([1.0], [False]).nll == pytest.approx(-math.log(1e-6))


def test_equal_confidences_share_a_bin_and_their_order_changes_nothing() -> None:
    """Shares of three votes give two confidences; a shuffle gives the same numbers to the bit."""
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 4, size=300) / 3
    label = generator.random(300) < votes * 0.6 + 0.2
    found = calibration(votes.tolist(), label.tolist())
    assert [one.confidence for one in found.bins] == pytest.approx([2 / 3, 1.0])
    shuffle = generator.permutation(300)
    assert calibration(votes[shuffle].tolist(), label[shuffle].tolist()) == found
    smooth = generator.random(300)
    expected = calibration(smooth.tolist(), label.tolist())
    assert calibration(smooth[shuffle].tolist(), label[shuffle].tolist()) == expected


def test_bins_have_equal_mass_and_the_curve_at_most_fifty_points() -> None:
    found = judge(1000, 1.0, seed=3)
    assert [one.n for one in found.bins] == [100] * 10
    assert sum(one.n for one in judge(57, 1.0, seed=3).bins) == 57
    assert len(judge(57, 1.0, seed=3).bins) == 5
    assert len(found.risk_coverage) == 50
    coverage, risk = zip(*found.risk_coverage, strict=True)
    assert (coverage[0], coverage[-1]) == (0.02, 1.0)
    assert risk[0] < risk[-1]
    assert 1 - found.accuracy_at_80 == pytest.approx(risk[39])


def test_auroc_equals_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(5)
    given = np.round(generator.random(60), 1)
    label = generator.random(60) < given
    decided = given != 0.5
    given, label = given[decided], label[decided]
    confidence, right = np.maximum(given, 1 - given), (given > 0.5) == label
    pairs = [
        1.0 if good > bad else 0.5 * (good == bad)
        for good in confidence[right]
        for bad in confidence[~right]
    ]
    assert calibration(given.tolist(), label.tolist()).auroc == pytest.approx(np.mean(pairs))


def test_debiased_error_of_a_calibrated_judge_is_near_zero() -> None:
    """200 judges of 1,000 cases: the plain error says 3 points, the debiased one says 1."""
    found = [judge(1000, 1.0, seed) for seed in range(200)]
    assert np.mean([one.ece for one in found]) > 0.03
    assert np.mean([one.ece_debiased for one in found]) < 0.015
    assert np.median([one.ece_debiased for one in found]) < 0.01


def test_debiased_error_of_a_boastful_judge_stays() -> None:
    """Log odds 1.8 times too large are off by 8.9 points on average, 9.3 in the mean square."""
    found = [judge(1000, 1.8, seed) for seed in range(50)]
    assert np.mean([one.ece_debiased for one in found]) == pytest.approx(0.093, abs=0.01)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature: float) -> None:
    generator = np.random.default_rng(1)
    odds = generator.normal(0, 2, 20_000)
    label = generator.random(20_000) < 1 / (1 + np.exp(-odds))
    given = (odds * temperature).tolist()
    assert fit_temperature(given, label.tolist()) == pytest.approx(temperature, rel=0.05)
    shuffle = generator.permutation(20_000)
    moved = (odds * temperature)[shuffle].tolist(), label[shuffle].tolist()
    assert fit_temperature(*moved) == fit_temperature(given, label.tolist())


def test_temperature_has_limits() -> None:
    assert fit_temperature([2.0, -1.0], [True, False]) == pytest.approx(0.01, rel=0.01)
    assert fit_temperature([2.0, -1.0], [False, True]) == pytest.approx(100, rel=0.01)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="0 probabilities"):
        calibration([], [])
    with pytest.raises(ValueError, match="1 probabilities and 2 labels"):
        calibration([0.5], [True, False])
    with pytest.raises(ValueError, match="outside 0 to 1"):
        calibration([math.nan], [True])
    with pytest.raises(ValueError, match="0 log odds"):
        fit_temperature([], [])


def test_fields_are_those_of_the_report() -> None:
    assert [one.name for one in dataclasses.fields(Calibration)] == [
        "n",
        "ece",
        "ece_debiased",
        "brier",
        "nll",
        "auroc",
        "accuracy_at_80",
        "bins",
        "risk_coverage",
    ]
