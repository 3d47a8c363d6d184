"""How many verdicts lie within rounding: margins that another batch composition may turn around.

A margin is the difference of two answers' rewards, or by how much the probability of an answer,
given that one of the two is named, lies above one half. The first cases of an evaluation are asked
about once more, each by itself; the largest change of a margin is the noise of its dimension. A
margin below it says nothing of which answer is the better one.

What is scored deterministically has no such noise: its margins depend on the case alone. Another
device, number of threads or version of torch still rounds otherwise. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from medrm.schema import Response

MEASURED_CASES = 8
"""How many cases are asked about once more."""

Noise = Mapping[str, float]
"""Dimension to the largest change of a margin."""


def margins_of(response: Response) -> Iterator[tuple[str, float]]:
    """Yields (dimension, margin) of every two answers that a response compares."""
    for name, rewards in (response.rewards or {}).items():
        yield from ((name, first - second) for first, second in combinations(rewards, 2))
    for name, (first, second, _) in (response.probabilities or {}).items():
        if first + second > 0:
            yield name, first / (first + second) - 0.5


def measure_noise(together: Iterable[Response], alone: Iterable[Response]) -> dict[str, float]:
    """Returns the noise of each dimension.

    Args:
        together: responses as they were computed.
        alone: the same ones, each case computed by itself.
    """
    noise: dict[str, float] = {}
    for batched, single in zip(together, alone, strict=True):
        for (name, margin), (_, other) in zip(
            margins_of(batched), margins_of(single), strict=False
        ):
            noise[name] = max(noise.get(name, 0.0), abs(margin - other))
    return noise


def largest_noise(measured: Iterable[Noise]) -> Noise:
    """Returns the largest noise of each dimension, such as over cases or folds."""
    largest: dict[str, float] = {}
    for noise in measured:
        largest |= {name: max(size, largest.get(name, 0.0)) for name, size in noise.items()}
    return largest


def noise_measures(
    noise: Noise | None, responses: Iterable[Response]
) -> dict[str, dict[str, Any]] | None:
    """Returns `within_noise`: dimension to `noise`, `margins` and how many are `within` it.

    Args:
        noise: as measured; None: nothing was.
        responses: all of an evaluation.
    """
    if noise is None:
        return None
    measures = {name: {"noise": size, "margins": 0, "within": 0} for name, size in noise.items()}
    for response in responses:
        for name, margin in margins_of(response):
            if name in measures:
                measures[name]["margins"] += 1
                measures[name]["within"] += abs(margin) < noise[name]
    return measures
