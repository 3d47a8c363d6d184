"""Quality of two answers -> the votes of three simulated experts, majority and ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medrm.schema import DIMENSIONS

EXPERTS = {"expert-1": 0.08, "expert-2": 0.12, "expert-3": 0.16}
"""How often each expert errs, per pair and dimension."""

_BLUR = 0.1
"""The share of errors in which a clear difference is taken for a tie."""

_OVERALL_WEIGHTS = dict(zip(DIMENSIONS[:-1], (2.0, 1.0, 0.8, 0.5, 0.7), strict=True))

Votes = dict[str, str]


def truth(first: Mapping[str, float], second: Mapping[str, float]) -> Votes:
    """Returns the noiseless preference per dimension from both answers' quality per dimension."""
    gaps = {name: first[name] - second[name] for name in _OVERALL_WEIGHTS}
    gaps["overall"] = sum(weight * gaps[name] for name, weight in _OVERALL_WEIGHTS.items())
    # 1e-9: the weighted sum of opposite gaps is zero only up to rounding.
    return {
        name: "A" if gaps[name] > 1e-9 else "B" if gaps[name] < -1e-9 else "tie"
        for name in DIMENSIONS
    }


def draw_votes(preferences: Votes, rng: np.random.Generator) -> dict[str, Votes]:
    """Returns annotator -> dimension -> vote; an error flips, blurs or invents a preference."""
    chances = rng.random((len(EXPERTS), len(DIMENSIONS), 2))
    votes: dict[str, Votes] = {}
    for row, (expert, error) in zip(chances, EXPERTS.items(), strict=True):
        votes[expert] = {}
        for (mistaken, direction), name in zip(row, DIMENSIONS, strict=True):
            seen = preferences[name]
            if mistaken < error:
                if seen == "tie":
                    seen = "A" if direction < 0.5 else "B"
                else:
                    seen = "tie" if direction < _BLUR else "BA"["AB".index(seen)]
            votes[expert][name] = seen
    return votes


def majority(votes: Mapping[str, Votes]) -> Votes:
    """Returns the dimensions in which more than half of the experts prefer one answer."""
    labels: Votes = {}
    for name in DIMENSIONS:
        on_dimension = [vote[name] for vote in votes.values()]
        for answer in "AB":
            if 2 * on_dimension.count(answer) > len(votes):
                labels[name] = answer
    return labels


def ceiling(truths: Sequence[Votes], labels: Sequence[Votes]) -> dict[str, float]:
    """Returns the accuracy against the majority labels of a model that knows the truth.

    Over the pairs with a majority for one answer; where the answers are truly equal, half of such
    labels can be met. Dimensions without any such pair are left out.
    """
    reachable: dict[str, float] = {}
    for name in DIMENSIONS:
        met = [
            0.5 if true[name] == "tie" else float(true[name] == label[name])
            for true, label in zip(truths, labels, strict=True)
            if name in label
        ]
        if met:
            reachable[name] = round(sum(met) / len(met), 4)
    return reachable
