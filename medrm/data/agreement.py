"""How far the experts agree with each other, before any vote becomes a label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from medrm.data.labels import Draft, Vote
from medrm.schema import Ranking

Unit = frozenset[tuple[Hashable, int]]
"""How often each value was given."""


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


class AgreementTally:
    """Counts votes draft by draft; of equal units only the number is kept."""

    def __init__(self) -> None:
        self._units: dict[str, Counter[Unit]] = defaultdict(Counter)
        self._annotators: dict[str, set[str]] = defaultdict(set)

    def add(self, drafts: Iterable[Draft]) -> None:
        """Counts the votes of drafts in."""
        for draft in drafts:
            for dimension, votes in draft.votes.items():
                if len(votes) > 1:
                    self._annotators[dimension].update(vote.annotator for vote in votes)
                    self._units[dimension].update(frozenset(unit.items()) for unit in _units(votes))

    def agreements(self) -> dict[str, Agreement]:
        """Returns the agreement on each dimension that at least two annotators judged in some case.

        Source of alpha: K. Krippendorff, Content Analysis, 2004, chapter 11; computed by
        `krippendorff`.
        """
        return {
            dimension: _agreement(units, len(self._annotators[dimension]))
            for dimension, units in self._units.items()
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


def _agreement(units: Counter[Unit], annotators: int) -> Agreement:
    import krippendorff

    counts = [dict(unit) for unit in units]
    values = sorted({value for count in counts for value in count}, key=str)
    distinct = np.array([[count.get(value, 0) for value in values] for count in counts])
    table = np.repeat(distinct, list(units.values()), axis=0)
    votes = table.sum(axis=1)
    agreeing = (table * (table - 1)).sum(axis=1) / (votes * (votes - 1))
    alpha = None
    if len(values) > 1:
        alpha = float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal"))
    return Agreement(alpha, float(agreeing.mean()), len(table), annotators)
