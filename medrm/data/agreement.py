"""How far the experts agree with each other, before any vote becomes a label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medrm.data.votes import Draft, Vote
from medrm.schema import Ranking


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement on one dimension, over the `units` that at least two annotators judged.

    A unit is a pair of answers; a case of more than two answers gives one for each pair of them.
    `raw` is the share of agreeing pairs of votes, averaged over units; `alpha` is Krippendorff's
    alpha for nominal values, None where it is undefined because all votes are the same.
    """

    alpha: float | None
    raw: float
    units: int
    annotators: int


def agreements(drafts: Iterable[Draft]) -> dict[str, Agreement]:
    """Returns the agreement on each dimension that at least two annotators judged in some case.

    Source of alpha: K. Krippendorff, Content Analysis, 2004, chapter 11; computed by
    `krippendorff`.
    """
    units: dict[str, list[Counter[Hashable]]] = defaultdict(list)
    annotators: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        for dimension, votes in draft.votes.items():
            if len(votes) > 1:
                annotators[dimension].update(vote.annotator for vote in votes)
                units[dimension] += _units(votes)
    return {
        dimension: _agreement(counts, len(annotators[dimension]))
        for dimension, counts in units.items()
    }


def _units(votes: list[Vote]) -> list[Counter[Hashable]]:
    """Returns how often each value was given, for each unit of one case."""
    rankings = [vote.value for vote in votes if isinstance(vote.value, tuple)]
    if not rankings:
        return [Counter(vote.value for vote in votes)]
    places = [_places(ranking) for ranking in rankings]
    return [
        Counter((place[i] > place[j]) - (place[i] < place[j]) for place in places)
        for i, j in combinations(sorted(places[0]), 2)
    ]


def _places(ranking: Ranking) -> dict[int, int]:
    """Returns each answer's place; tied answers share one."""
    return {answer: place for place, tied in enumerate(ranking) for answer in tied}


def _agreement(counts: list[Counter[Hashable]], annotators: int) -> Agreement:
    import krippendorff

    values = sorted({value for count in counts for value in count}, key=str)
    table = np.array([[count[value] for value in values] for count in counts])
    votes = table.sum(axis=1)
    agreeing = (table * (table - 1)).sum(axis=1) / (votes * (votes - 1))
    alpha = None
    if len(values) > 1:
        alpha = float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal"))
    return Agreement(alpha, float(agreeing.mean()), len(counts), annotators)
