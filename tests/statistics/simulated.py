"""Simulated evaluations: cases in clusters of many shapes whose scores and changes go together."""

from __future__ import annotations

import numpy as np
from scipy import stats

SHAPES: dict[str, list[int]] = {
    "threes": [3] * 342,
    "unequal": [1 + i % 7 for i in range(140)] + [12] * 8,
    "few large": [20] * 12,
    "skewed": [2, 2, 3, 3, 4, 4, 5, 5, 8, 8, 12, 15, 20, 30, 60],
    "single": [1] * 1026,
}
"""Sizes of the clusters: as in the benchmark's layout, then harder ones."""


def names_of(sizes: list[int]) -> list[str]:
    """The cluster of each case."""
    return [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]


def shared(
    generator: np.random.Generator, sizes: list[int], draws: np.ndarray, own: np.ndarray, share
) -> np.ndarray:
    """Each case takes its cluster's draw with probability `share`, else its own."""
    whole = np.repeat(draws, sizes, axis=0)
    return np.where(generator.random(whole.shape) < share, whole, own)


def changes(
    generator: np.random.Generator,
    sizes: list[int],
    discordance: float,
    gain: float = 0.0,
    together: float = 0.8,
    dimensions: int = 1,
    alike: float = 0.0,
) -> np.ndarray:
    """After - before (n, D): +1 or -1 with probability `discordance`, on average `gain`.

    Args:
        generator: of the draws.
        sizes: of the clusters.
        discordance: share of cases that change.
        gain: 0 for two equally good models.
        together: how often a case changes as its cluster does; the correlation is its square.
        dimensions: D.
        alike: how often a dimension changes as the first does.
    """
    odds = [(discordance - gain) / 2, 1 - discordance, (discordance + gain) / 2]

    def draw(count: int) -> np.ndarray:
        return generator.choice([-1.0, 0.0, 1.0], size=(count, dimensions), p=odds)

    found = shared(generator, sizes, draw(len(sizes)), draw(sum(sizes)), together)
    copied = generator.random(found.shape) < alike
    return np.where(copied, found[:, :1], found)


def scores(
    generator: np.random.Generator, sizes: list[int], accuracy: float, together: float = 0.6
) -> np.ndarray:
    """Scores (n) of 1 and 0 with this mean, alike within clusters."""
    return shared(
        generator,
        sizes,
        (generator.random(len(sizes)) < accuracy).astype(float),
        (generator.random(sum(sizes)) < accuracy).astype(float),
        together,
    )


def most(rate: float, runs: int) -> float:
    """The share that a true rate exceeds by chance once in a thousand simulations of `runs`."""
    return float(stats.binom.isf(1e-3, runs, rate)) / runs


def least(rate: float, runs: int) -> float:
    """The share that a true rate falls short of by chance once in a thousand simulations."""
    return float(stats.binom.ppf(1e-3, runs, rate)) / runs


def power_of(
    n: int, gain: float, discordance: float, design_effect: float = 1.0, level: float = 0.05
) -> float:
    """How often a paired test finds a gain.

    Phi((|d| sqrt(n) - z sqrt(q)) / s) + Phi((-|d| sqrt(n) - z sqrt(q)) / s) for n / design effect,
    s = sqrt(q - d^2), z = z(1 - level/2), q the discordance, d the gain.
    """
    spread = (discordance - gain**2) ** 0.5
    shift = abs(gain) * (n / design_effect) ** 0.5
    bound = stats.norm.isf(level / 2) * discordance**0.5
    return float(
        stats.norm.cdf((shift - bound) / spread) + stats.norm.cdf((-shift - bound) / spread)
    )
