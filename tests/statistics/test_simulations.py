"""Rejection rates, power and coverage by simulation: quick here, at length under `slow`.

A simulated share of a true rate r scatters with sqrt(r (1 - r) / runs); `most` and `least` give the
share that chance passes once in a thousand. The bound of the long runs, 6.4 %, is 5 % plus three
such errors of 2,000 runs.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulated import SHAPES, changes, least, most, names_of, power_of, scores
from statsmodels.stats.multitest import multipletests

from medrm.statistics.intervals import bootstrap_intervals, mean_interval, small_cell_interval
from medrm.statistics.significance import (
    benjamini_hochberg,
    holm,
    mcnemar_midp,
    sign_flip_test,
)

LEVEL = 0.05
HIGHEST = 0.064
"""What the project allows a test of the 5 % level to reject when nothing has changed."""

QUICK, LONG = 300, 2000
FLIPS = 199
"""With p <= 0.05 the level of a permutation test is exact for any such number of flips."""


def halves(generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Some changes in one presented order only: half of a point."""
    return values * generator.choice([0.5, 1.0], size=values.shape)


def rejections(shape: str, discordance: float, runs: int, *, half: bool = False) -> float:
    """The share of A/A comparisons that the sign-flip test rejects."""
    generator = np.random.default_rng([runs, round(100 * discordance)])
    sizes, clusters, found = SHAPES[shape], names_of(SHAPES[shape]), 0
    for run in range(runs):
        values = changes(generator, sizes, discordance)
        values = halves(generator, values) if half else values
        found += sign_flip_test(values, clusters, flips=FLIPS, seed=run).p[0] <= LEVEL
    return found / runs


@pytest.mark.parametrize(("shape", "half"), [("threes", False), ("unequal", True)])
def test_equal_models_are_rejected_as_often_as_stated(shape: str, half: bool) -> None:
    rate = rejections(shape, 0.3, QUICK, half=half)
    assert least(0.04, QUICK) <= rate <= most(LEVEL, QUICK)


@pytest.mark.parametrize("shape", ["few large", "skewed"])
def test_few_large_clusters_are_not_rejected_more_often(shape: str) -> None:
    assert rejections(shape, 0.3, QUICK) <= most(LEVEL, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_models_at_length(shape: str, half: bool) -> None:
    """At every discordance; at 30 % the test also has to use its level, where clusters allow it."""
    rates = {share: rejections(shape, share, LONG, half=half) for share in (0.1, 0.2, 0.3, 0.4)}
    assert max(rates.values()) <= HIGHEST, rates
    assert shape == "skewed" or rates[0.3] >= 0.03, rates


def test_mcnemar_rejects_equal_models_too_often_where_cases_go_together() -> None:
    """Why the test flips whole clusters: with 342 clusters of three, four times the level."""
    generator, sizes, found = np.random.default_rng(5), SHAPES["threes"], 0
    for _ in range(QUICK):
        values = changes(generator, sizes, 0.3)
        found += mcnemar_midp(int((values > 0).sum()), int((values < 0).sum())) <= LEVEL
    assert found / QUICK >= 0.12


def familywise(runs: int, gains: bool) -> tuple[float, float]:
    """Shares of comparisons with any false rejection among six dimensions: max-T and Holm.

    With `gains` three of the six dimensions truly improve; only the others can be false.
    """
    generator = np.random.default_rng(11)
    sizes, clusters = SHAPES["unequal"], names_of(SHAPES["unequal"])
    stepped, plain = 0, 0
    for run in range(runs):
        values = changes(generator, sizes, 0.3, dimensions=6, alike=0.7)
        if gains:
            values[:, 3:] += changes(generator, sizes, 0.1, gain=0.09, dimensions=3)
        result = sign_flip_test(values, clusters, flips=FLIPS, seed=run)
        null = slice(0, 3 if gains else 6)
        stepped += min(result.adjusted[null]) <= LEVEL
        plain += min(holm(result.p)[null]) <= LEVEL
    return stepped / runs, plain / runs


@pytest.mark.parametrize("gains", [False, True])
def test_six_dimensions_keep_the_familywise_level(gains: bool) -> None:
    stepped, plain = familywise(QUICK, gains)
    assert stepped <= most(LEVEL, QUICK)
    assert plain <= stepped  # max-T uses the correlation, Holm does not


@pytest.mark.slow
@pytest.mark.parametrize("gains", [False, True])
def test_six_dimensions_at_length(gains: bool) -> None:
    stepped, _ = familywise(LONG, gains)
    assert 0.03 <= stepped <= HIGHEST


def found_gains(
    shape: str, gain: float, discordance: float, together: float, runs: int, flips: int = FLIPS
) -> tuple[float, float]:
    """The share of true gains that are found, and the stated power.

    Two cases of a cluster of three change alike with correlation together^2.
    """
    generator, sizes, found = np.random.default_rng(13), SHAPES[shape], 0
    clusters = names_of(sizes)
    effect = 1 + (sizes[0] - 1) * together**2
    for run in range(runs):
        values = changes(generator, sizes, discordance, gain, together)
        found += sign_flip_test(values, clusters, flips=flips, seed=run).p[0] <= LEVEL
    return found / runs, power_of(len(clusters), gain, discordance, effect)


GAINS = [
    ("single", 0.039, 0.2, 0.0),
    ("threes", 0.072, 0.3, 0.8),
    ("threes", 0.055, 0.3, 0.6),
]


@pytest.mark.parametrize(("shape", "gain", "discordance", "together"), GAINS[:2])
def test_power_is_as_stated(shape: str, gain: float, discordance: float, together: float) -> None:
    share, stated = found_gains(shape, gain, discordance, together, QUICK)
    assert 0.7 < stated < 0.9
    assert least(stated - 0.03, QUICK) <= share <= most(stated + 0.03, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "gain", "discordance", "together"), GAINS)
def test_power_at_length(shape: str, gain: float, discordance: float, together: float) -> None:
    share, stated = found_gains(shape, gain, discordance, together, LONG, flips=999)
    assert share == pytest.approx(stated, abs=0.03)


def covered(shape: str, accuracy: float, runs: int) -> dict[str, float]:
    """How often each interval holds the true accuracy."""
    generator = np.random.default_rng([17, runs])
    sizes, clusters = SHAPES[shape], names_of(SHAPES[shape])
    found = {"mean": 0, "small cell": 0, "bootstrap": 0}
    for run in range(runs):
        values = scores(generator, sizes, accuracy)
        intervals = {
            "mean": mean_interval(values.tolist(), clusters).bounds,
            "small cell": small_cell_interval(values.tolist(), clusters).bounds,
            "bootstrap": bootstrap_intervals(values[:, None], clusters, 500, seed=run)[0],
        }
        for name, bounds in intervals.items():
            assert bounds is not None
            found[name] += bounds[0] <= accuracy <= bounds[1]
    return {name: count / runs for name, count in found.items()}


@pytest.mark.parametrize("shape", ["threes", "few large"])
def test_intervals_hold_the_truth(shape: str) -> None:
    for name, share in covered(shape, 0.65, QUICK).items():
        assert share >= least(0.93, QUICK), name
        assert share <= most(0.97, QUICK), name


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_at_length(shape: str) -> None:
    """Where one of fifteen clusters holds a third of the cases, no interval is near 95 %."""
    for name, share in covered(shape, 0.65, 1000).items():
        assert (0.88 if shape == "skewed" else 0.93) <= share <= 0.975, (name, share)


def test_organ_cells_hold_the_truth() -> None:
    """79 cases in 27 clusters, 85 % right: the interval for small cells holds, the plain not."""
    generator, sizes = np.random.default_rng(19), [3] * 25 + [2] * 2
    clusters, found, plain = names_of(sizes), 0, 0
    for _ in range(QUICK):
        values = scores(generator, sizes, 0.85).tolist()
        low, high = small_cell_interval(values, clusters).bounds or (1, 0)
        found += low <= 0.85 <= high
        low, high = mean_interval(values, clusters).bounds or (1, 0)
        plain += low <= 0.85 <= high
    assert found / QUICK >= least(0.93, QUICK)
    assert found > plain


def false_discoveries(runs: int) -> tuple[float, float]:
    """The mean share of false ones among 78 cells, 18 with a gain: adjusted and plain."""
    generator = np.random.default_rng(23)
    clusters = [str(i) for i in range(79)]
    adjusted, plain = 0.0, 0.0
    for run in range(runs):
        values = np.concatenate(
            [
                changes(generator, [1] * 79, 0.3, dimensions=60),
                changes(generator, [1] * 79, 0.4, gain=0.3, dimensions=18),
            ],
            axis=1,
        )
        p = sign_flip_test(values, clusters, flips=999, seed=run).p
        for q, name in ((benjamini_hochberg(p), "adjusted"), (p, "plain")):
            chosen = np.array(q) <= LEVEL
            share = chosen[:60].sum() / max(1, chosen.sum())
            adjusted += share if name == "adjusted" else 0.0
            plain += share if name == "plain" else 0.0
    return adjusted / runs, plain / runs


def test_false_discoveries_are_limited() -> None:
    """0.05 * 60/78 on average; its scatter over 100 sets of cells is below half a point."""
    adjusted, plain = false_discoveries(100)
    assert adjusted <= LEVEL * 60 / 78 + 3 * 0.005
    assert plain > 0.08


@pytest.mark.slow
def test_false_discoveries_at_length() -> None:
    adjusted, _ = false_discoveries(1000)
    assert 0.01 <= adjusted <= LEVEL


def test_the_adjustments_are_those_of_the_library() -> None:
    p = np.random.default_rng(0).random(6).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
