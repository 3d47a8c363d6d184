"""How far the readers of a set agree: all together, every two, and each with the others.

What is held in memory are a few bytes of each vote on a case that two readers judged, and about a
hundred of each such case and dimension while its coefficients are computed.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medrm.data.case_set import CaseSet
from medrm.data.labels import LabelRules, others_choices
from medrm.data.pseudonyms import shown_reader
from medrm.data.sources import Vote
from medrm.data.store.indexed_cases import cluster_column
from medrm.data.store.vote_records import votes_on
from medrm.evaluation.measures.human_ceiling import SPAN, against_others
from medrm.schema import ranks_of
from medrm.statistics.agreement import Estimate, linear_weights, several_raters, two_raters
from medrm.statistics.intervals import Floats, mean_interval

MOST_READERS = 40
"""Readers of a dimension who are compared two by two and named: those with the most votes."""

_GRADES = {
    **{("strongly", 0): 0, (None, 0): 1, ("slightly", 0): 2, (None, "tie"): 3},
    **{("slightly", 1): 4, (None, 1): 5, ("strongly", 1): 6, (None, "neither"): 7},
}
"""Strength and value of a vote to its code; of rankings each pair of answers has a vote."""

_CHOICE = np.array([0, 0, 0, 1, 2, 2, 2, 3])
"""Code to what is said: the first answer, a tie, the second one, neither."""

_PLACE = np.array([3, 2, 1, 0, -1, -2, -3])
"""Code to its place on the scale, `neither` apart, which has none."""

Codes = NDArray[np.int64]


class Collected:
    """Votes on one dimension: those on cases that at least two readers judged are kept.

    Attributes:
        votes: reader to the number of votes, on all cases.
    """

    def __init__(self) -> None:
        self.votes: Counter[int] = Counter()
        self._units, self._readers, self._codes = array("i"), array("i"), array("b")
        self._clusters = array("i")  # of each unit, which is two answers of a case
        self._held = array("i")

    def add(
        self, votes: Sequence[Vote], readers: Sequence[int], cluster: int, rules: LabelRules
    ) -> None:
        """Adds the votes on one case.

        Args:
            votes: on this dimension.
            readers: who casts each.
            cluster: of the case.
            rules: by which the others' majority is found.
        """
        self.votes.update(readers)
        if len(votes) < 2:
            return
        rankings = [vote.value for vote in votes if isinstance(vote.value, tuple)]
        if rankings:
            ranks = list(map(ranks_of, rankings))
            for first, second in combinations(range(len(ranks[0])), 2):
                order = [
                    (rank[first] > rank[second]) - (rank[first] < rank[second]) for rank in ranks
                ]
                self._add_unit(readers, [3 + 2 * sign for sign in order], cluster)
            agreed = [agrees if best else None for best, agrees in against_others(rankings)]
        else:
            self._add_unit(readers, [_GRADES[vote.strength, vote.value] for vote in votes], cluster)
            agreed = [
                vote.value == other if other in (0, 1) else None
                for vote, other in zip(votes, others_choices(votes, rules), strict=True)
            ]
        for reader, agrees in zip(readers, agreed, strict=True):
            if agrees is not None:
                self._held.extend((reader, int(agrees), cluster))

    def _add_unit(self, readers: Sequence[int], codes: Sequence[int], cluster: int) -> None:
        self._units.extend([len(self._clusters)] * len(codes))
        self._clusters.append(cluster)
        self._readers.extend(readers)
        self._codes.extend(codes)

    @property
    def clusters(self) -> Codes:
        """The cluster of each unit, (U,)."""
        return np.array(self._clusters, dtype=np.int64)

    @property
    def columns(self) -> tuple[Codes, Codes, Codes]:
        """Unit, reader and code of each vote, all of shape (votes,)."""
        columns = (self._units, self._readers, self._codes)
        units, readers, codes = (np.array(column, dtype=np.int64) for column in columns)
        return units, readers, codes

    @property
    def held(self) -> tuple[Codes, Codes, Codes]:
        """Of each vote with a majority of the others for an answer: reader, agreement, cluster."""
        readers, agrees, clusters = np.array(self._held, dtype=np.int64).reshape(-1, 3).T
        return readers, agrees, clusters


class Coefficients:
    """The coefficients of votes on one dimension, whose categories are all that occur on it."""

    def __init__(self, codes: Codes) -> None:
        self._used = np.unique(_CHOICE[codes])
        strengths = np.unique(np.abs(_PLACE[codes[codes < len(_PLACE)]]))
        # As many equal steps on either side of the middle as there are strengths.
        self._strengths = strengths[strengths > 0]
        steps = np.arange(1, len(self._strengths) + 1)
        self._scale = np.concatenate([-steps, [0] if 0 in strengths else [], steps])
        self._scale.sort()

    def choices(self, codes: Codes) -> Codes:
        """Returns what votes say, as numbers from 0."""
        return np.searchsorted(self._used, _CHOICE[codes])

    def counts(self, units: Codes, codes: Codes, total: int) -> Floats:
        """Returns how often each unit was given each category, two of them at least."""
        return _counts(units, self.choices(codes), (total, max(2, len(self._used))))

    def of_all(self, units: Codes, codes: Codes, clusters: Codes) -> dict[str, Any]:
        """Returns the coefficients of all votes on some units.

        Args:
            units: of each vote, numbers from 0.
            codes: of each vote.
            clusters: of each unit.
        """
        measures = self._measures(units, codes, clusters, ("raw", "alpha", "fleiss", "gwet"))
        return {name: asdict(estimate) for name, estimate in measures.items()}

    def of_two(self, first: Codes, second: Codes, clusters: Codes) -> dict[str, Any]:
        """Returns the coefficients of the votes of two readers on the same units."""
        units, codes = np.tile(np.arange(len(clusters)), 2), np.concatenate([first, second])
        measures = self._measures(units, codes, clusters, ("raw", "gwet"))
        measures["kappa"] = two_raters(self.choices(first), self.choices(second), clusters)
        return {name: asdict(measures[name]) for name in ("raw", "kappa", "ac1", "ac2")}

    def _measures(
        self, units: Codes, codes: Codes, clusters: Codes, names: Collection[str]
    ) -> dict[str, Estimate]:
        """Returns coefficients of `several_raters`, `gwet` as `ac1`, and `ac2`."""
        measures = several_raters(self.counts(units, codes, len(clusters)), clusters, names)
        measures["ac1"] = measures.pop("gwet")
        return {**measures, "ac2": self._graded(units, codes, clusters)}

    def _graded(self, units: Codes, codes: Codes, clusters: Codes) -> Estimate:
        """Returns AC2 of the votes on the scale."""
        on_scale = codes < len(_PLACE)
        strengths = _PLACE[codes[on_scale]]
        steps = np.sign(strengths) * (np.searchsorted(self._strengths, np.abs(strengths)) + 1)
        shape = (len(clusters), len(self._scale))
        counts = _counts(units[on_scale], np.searchsorted(self._scale, steps), shape)
        compared = counts.sum(axis=1) > 1
        if not compared.any():
            return Estimate(None, None)
        weights = linear_weights(self._scale.tolist())
        measures = several_raters(counts[compared], clusters[compared], ("gwet",), weights=weights)
        return measures["gwet"]


def _counts(units: Codes, columns: Codes, shape: tuple[int, int]) -> Floats:
    counts = np.zeros(shape)
    np.add.at(counts, (units, columns), 1)
    return counts


def reader_agreement(read: CaseSet, rules: LabelRules) -> dict[str, Any]:
    """Returns how far the readers of a set agree, as JSON values: `dimensions` by name.

    Args:
        read: with the votes in its index.
        rules: by which it was read.
    """
    _, clusters = np.unique(cluster_column(read.cases), return_inverse=True)
    numbers: dict[str, int] = {}
    collected = defaultdict(Collected, {name: Collected() for name in read.dimensions})
    for index, votes_by_dimension in votes_on(read.cases):
        for name, votes in votes_by_dimension.items():
            readers = [numbers.setdefault(vote.annotator, len(numbers)) for vote in votes]
            collected[name].add(votes, readers, int(clusters[index]), rules)
    names = list(map(shown_reader, numbers))
    weights = rules.weights and {shown_reader(name): w for name, w in rules.weights.items()}
    return {
        "name": read.name,
        "digest": read.digest,
        "cases": len(read.cases),
        "readers": len(names),
        "rules": {**asdict(rules), "weights": weights},
        "dimensions": {name: _measures(of, names) for name, of in collected.items()},
    }


def _measures(of: Collected, names: Sequence[str]) -> dict[str, Any]:
    """Returns the agreement on one dimension; no coefficient where no case has two readers."""
    (units, readers, codes), clusters = of.columns, of.clusters
    held_readers, agrees, held_clusters = of.held
    measures: dict[str, Any] = {
        "votes": of.votes.total(),
        "readers": len(of.votes),
        "units": len(clusters),
        "clusters": len(np.unique(clusters)),
    }
    if not len(clusters):
        return measures
    coefficients = Coefficients(codes)
    counts = coefficients.counts(units, codes, len(clusters))
    # With what share of the other votes on its unit each vote agrees.
    same = counts[units, coefficients.choices(codes)] - 1
    agreement = same / (counts.sum(axis=1)[units] - 1)
    frequent = [reader for reader, _ in of.votes.most_common(MOST_READERS)]
    rows_of = {reader: np.flatnonzero(readers == reader) for reader in frequent}
    pairs = []
    for pair in combinations(frequent, 2):
        ours, theirs = (rows_of[reader] for reader in pair)
        shared, at, there = np.intersect1d(units[ours], units[theirs], return_indices=True)
        if len(shared):
            shared_codes = (codes[ours[at]], codes[theirs[there]])
            of_two = coefficients.of_two(*shared_codes, clusters[shared])
            pairs.append({"readers": [names[n] for n in pair], "units": len(shared), **of_two})
    by_reader = [
        {
            "reader": names[reader],
            "votes": of.votes[reader],
            "raw": _mean(agreement[rows_of[reader]], clusters[units[rows_of[reader]]]),
            "accuracy": _mean(
                *(column[held_readers == reader] for column in (agrees, held_clusters))
            ),
        }
        for reader in frequent
    ]
    return {
        **measures,
        **coefficients.of_all(units, codes, clusters),
        "human_ceiling": _mean(agrees, held_clusters),
        "pairs": pairs,
        "by_reader": by_reader,
    }


def _mean(values: NDArray[Any], clusters: Codes) -> dict[str, Any] | None:
    """Returns a mean with its interval and number; None of nothing."""
    if not len(values):
        return None
    numbered: Any = clusters  # as good as names, and small
    interval = mean_interval(values.tolist(), numbered, SPAN)
    return {"value": interval.mean, "ci95": interval.bounds, "n": interval.n}
