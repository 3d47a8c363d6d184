"""Experts' votes: how they become labels, and how far they agree before they do."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from operator import itemgetter
from typing import Literal

import numpy as np

from medrm.data.pseudonyms import shown_reader
from medrm.data.sources import CaseDraft, Strength, Vote
from medrm.errors import ConfigError, report, shortened
from medrm.schema import (
    CHOICES,
    Choice,
    Label,
    PairLabel,
    RankingLabel,
    ranks_of,
)

Aggregation = Literal["shares", "dawid_skene", "mace"]


@dataclass(frozen=True)
class LabelRules:
    """How the votes on a case become its label.

    `ties`: `keep` counts a tie vote as a tie, `split` as half a vote for each answer, `drop` not
    at all. `weights`: annotator to weight; None counts all alike.
    `aggregation`: `shares` of the votes as counted, or the posterior of a model that learns from
    all cases of a dimension how reliable each annotator is, `dawid_skene` (Dawid and Skene 1979) or
    `mace` (Hovy et al., NAACL 2013), with what votes say, strength included, as its classes.
    `strength`: of votes that state one. `share`: a slight vote is three quarters of a vote for its
    answer and one quarter for the other, a strong one a whole vote, as one that states none. So a
    vote of five steps counts (1, 3/4, 1/2, 1/4, 0) for the first answer, in equal steps, a tie
    being half a vote for each. `weight`: a slight vote counts half, a strong one one and a half
    times: the magnitudes 1, 2 and 3 by which Wang et al. (arXiv 2410.01257) scale their losses.
    `ignore`: only which answer is better counts.
    `min_seconds`: votes whose decision took less are dropped; those that state no time stay.
    """

    ties: Literal["keep", "split", "drop"] = "keep"
    weights: Mapping[str, float] | None = None
    aggregation: Aggregation = "shares"
    strength: Literal["share", "weight", "ignore"] = "share"
    min_seconds: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        weights = self.weights or {}
        refused = [name for name, weight in weights.items() if not 0 < weight < math.inf]
        if refused:
            problems.append(f"weights of {', '.join(refused)} must be positive and finite")
        if self.learns and self.weights is not None:
            problems.append(f"weights and {self.aggregation} exclude each other; leave one out")
        if not 0 <= self.min_seconds < math.inf:
            problems.append(f"min_vote_seconds is {self.min_seconds}; give 0 or more")
        if problems:
            raise ConfigError("Label rules: " + "; ".join(problems) + ".")

    @property
    def learns(self) -> bool:
        """Whether a label depends on the votes on all other cases."""
        return self.aggregation != "shares"


def labels_of(drafts: Sequence[CaseDraft], rules: LabelRules) -> list[dict[str, Label]]:
    """Returns each draft's labels; a dimension on which no vote counts is left out.

    Args:
        drafts: any; all of a set where `aggregation` learns from all votes at once.
        rules: that fit the votes; `VoteTally.check`.
    """
    posteriors = _posteriors(drafts, rules.aggregation) if rules.learns else {}
    return [
        {
            dimension: label
            for dimension, votes in draft.votes.items()
            if (label := _label(votes, rules, posteriors.get((index, dimension)))) is not None
        }
        for index, draft in enumerate(drafts)
    ]


Grade = tuple[Choice | Literal["neither"], Strength | None]
"""What a vote on a pair says; by itself a class of the models that learn from all votes."""

_OF_SLIGHT = 3 / 4
"""Share of a slight vote that is for its answer, by the rule `share`."""

_WEIGHTS: Mapping[Strength | None, float] = {"slightly": 1 / 2, None: 1.0, "strongly": 3 / 2}
"""Of votes by their strength, by the rule `weight`."""


def _label(
    votes: Sequence[Vote], rules: LabelRules, posterior: Mapping[Grade, float] | None
) -> Label | None:
    rankings = tuple(vote.value for vote in votes if isinstance(vote.value, tuple))
    if rankings:
        return RankingLabel(rankings)
    uncounted = {"neither", "tie"} if rules.ties == "drop" else {"neither"}
    count = sum(vote.value not in uncounted for vote in votes)
    if count:
        label = _pair_label(posterior or _grades(votes, rules), rules)
    else:  # whatever a model of the annotators may say
        accepts_none = any(vote.value == "neither" for vote in votes)
        label = PairLabel((0.0, 0.0, 0.0), neither=1.0) if accepts_none else None
    return label and replace(label, votes=count, readers=_readers(votes, rules))


def _readers(votes: Sequence[Vote], rules: LabelRules) -> tuple[int, int, int, int] | None:
    """Returns each reader against the others, as `PairLabel.readers`."""
    if len(votes) < 2:
        return None
    pairs = Counter(zip(others_choices(votes, rules), (vote.value for vote in votes), strict=True))
    preferring = [sum(n for (other, _), n in pairs.items() if other == choice) for choice in (0, 1)]
    return preferring[0], pairs[0, 0], preferring[1], pairs[1, 1]


def others_choices(votes: Sequence[Vote], rules: LabelRules) -> list[Choice | None]:
    """Returns, for each vote on a pair, the majority of the other votes; None where there is none.

    Nor is there one for any vote where most of all votes accept neither answer: such a pair counts
    for no model, and for no reader. Votes are counted by shares, whatever the aggregation: a model
    that learns from all votes would have to be fitted anew without each reader.
    """
    grades = _grades(votes, rules)
    everybody = _pair_label(grades, rules)
    if everybody is None or everybody.unacceptable:
        return [None] * len(votes)
    cast = [(_grade(vote), _weight(vote, rules)) for vote in votes]
    choice_without: dict[tuple[Grade, float], Choice | None] = {}
    for grade, weight in set(cast):
        # Weights need not be exact in binary: what should be nothing is nothing.
        label = _pair_label({**grades, grade: round(grades[grade] - weight, 9)}, rules)
        choice_without[grade, weight] = None if label is None else label.choice
    return [choice_without[vote] for vote in cast]


def _grades(votes: Iterable[Vote], rules: LabelRules) -> dict[Grade, float]:
    """Returns what is said of a pair, each with the weight of its votes."""
    grades: dict[Grade, float] = defaultdict(float)
    for vote in votes:
        grades[_grade(vote)] += _weight(vote, rules)
    return grades


def _grade(vote: Vote) -> Grade:
    assert not isinstance(vote.value, tuple)
    return vote.value, vote.strength


def _weight(vote: Vote, rules: LabelRules) -> float:
    """Returns an annotator's weight; one without is refused once all votes are known."""
    return (rules.weights or {}).get(vote.annotator, 1.0)


def _pair_label(grades: Mapping[Grade, float], rules: LabelRules) -> PairLabel | None:
    """Returns the label of a pair from what is said of it, each with its mass."""
    mass: dict[Choice, float] = defaultdict(float)
    total = neither = 0.0  # of votes, a slight or strong one being one
    for (value, strength), votes in grades.items():
        if value == "tie" and rules.ties == "drop":
            continue
        total += votes
        if value == "neither":
            neither += votes
        elif value == "tie" and rules.ties == "split":
            mass[0] += votes / 2
            mass[1] += votes / 2
        elif rules.strength == "share" and strength == "slightly" and isinstance(value, int):
            mass[value] += _OF_SLIGHT * votes
            mass[1 - value] += (1 - _OF_SLIGHT) * votes
        else:
            mass[value] += votes * (_WEIGHTS[strength] if rules.strength == "weight" else 1.0)
    if total == 0:
        return None
    first, tie, second = (_as_decimal(mass[choice]) for choice in CHOICES)
    accepting = first + tie + second or 1.0
    shares = (first / accepting, tie / accepting, second / accepting)
    return PairLabel(shares, neither=_as_decimal(neither) / _as_decimal(total))


def _as_decimal(number: float) -> float:
    """Returns a sum of weights by its decimal digits: three times 0.1 is no more than 0.3."""
    return float(f"{number:.12g}")


_CROWD_KIT = ["task", "worker", "label"]


def _posteriors(
    drafts: Sequence[CaseDraft], aggregation: Aggregation
) -> dict[tuple[int, str], dict[Grade, float]]:
    """Returns the posterior over what votes say for each (draft index, dimension)."""
    import pandas as pd
    from crowdkit.aggregation import MACE, DawidSkene

    votes_on: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    grades: dict[str, Grade] = {}
    for index, draft in enumerate(drafts):
        for dimension, votes in draft.votes.items():
            for vote in votes:
                value, strength = grade = _grade(vote)
                name = str(value) if strength is None else f"{value} {strength}"
                grades[name] = grade
                votes_on[dimension].append((index, vote.annotator, name))
    posteriors: dict[tuple[int, str], dict[Grade, float]] = {}
    for dimension, rows in votes_on.items():
        # Sorted, so that the order of the cases and votes changes nothing.
        frame = pd.DataFrame(sorted(rows, key=itemgetter(1, 2)), columns=_CROWD_KIT)
        frame["worker"], _ = pd.factorize(frame["worker"])
        # MACE of crowd-kit confuses annotators, and values, whose names are not sorted as they
        # first occur; their numbers are.
        frame["label"], names = pd.factorize(frame["label"])
        # crowd-kit starts each restart of MACE at the same values.
        model = DawidSkene(n_iter=100) if aggregation == "dawid_skene" else MACE(n_restarts=1)
        fitted = model.fit_predict_proba(frame)
        for index, row in fitted.iterrows():
            posteriors[index, dimension] = {
                grades[names[number]]: float(probability) for number, probability in row.items()
            }
    return posteriors


_MOST_EXAMPLES = 100
"""Dropped votes that are named; all are counted."""

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


class VoteTally:
    """Counts votes draft by draft: who voted and how often they agree, not the votes themselves."""

    def __init__(self) -> None:
        self._annotators: dict[str, set[str]] = defaultdict(set)
        self._has_rankings = False
        self._has_times = False
        self.dropped: Counter[str] = Counter()
        self.examples: list[str] = []
        self._units: dict[str, Counter[Unit]] = defaultdict(Counter)
        self._compared: dict[str, set[str]] = defaultdict(set)

    def drop_fast(self, draft: CaseDraft, min_seconds: float) -> None:
        """Drops the votes of a draft that took less, and counts and names them."""
        for dimension, votes in draft.votes.items():
            self._has_times |= any(vote.seconds is not None for vote in votes)
            fast = [v for v in votes if v.seconds is not None and v.seconds < min_seconds]
            draft.votes[dimension] = [
                v for v in votes if v.seconds is None or v.seconds >= min_seconds
            ]
            self.dropped.update(vote.annotator for vote in fast)
            if len(self.examples) < _MOST_EXAMPLES:
                self.examples += [
                    f"case {draft.case_id!r}, {dimension}: {shown_reader(v.annotator)!r} took "
                    f"{v.seconds:g} s"
                    for v in fast
                ]

    def add(self, drafts: Iterable[CaseDraft]) -> None:
        """Adds the drafts' votes to the tally."""
        for draft in drafts:
            for dimension, votes in draft.votes.items():
                annotators = {vote.annotator for vote in votes}
                self._annotators[dimension] |= annotators
                self._has_rankings |= any(isinstance(vote.value, tuple) for vote in votes)
                if len(votes) > 1:
                    self._compared[dimension] |= annotators
                    self._units[dimension].update(
                        frozenset(unit.items()) for unit in units_of(votes)
                    )

    def check(self, rules: LabelRules) -> None:
        """Refuses rules that do not fit the votes.

        Raises:
            ConfigError: rankings and rules for pairs, an annotator without a weight, or too few
                annotators to learn from.
        """
        for_pairs = LabelRules(rules.ties, rules.weights, rules.aggregation)
        if self._has_rankings and for_pairs != LabelRules():
            raise ConfigError(
                "Label rules: ties, weights, dawid_skene and mace are for pairs, but some cases "
                "have rankings of more than two answers. Use the defaults, or label pairs apart."
            )
        annotators = set[str]().union(*self._annotators.values())
        if rules.weights is not None and (missing := sorted(annotators - rules.weights.keys())):
            named = ", ".join(map(shown_reader, missing))
            raise ConfigError(f"Label rules: no weight is given for {named}. Give one for each.")
        few = {name: len(of) for name, of in self._annotators.items() if 0 < len(of) < 3}
        if rules.learns and few:
            counts = ", ".join(f"{shortened(name)} has {count}" for name, count in few.items())
            raise ConfigError(
                f"Label rules: {rules.aggregation} needs three annotators or more on a dimension; "
                f"{counts}. Use shares."
            )
        if rules.min_seconds and not self._has_times:
            raise ConfigError(
                f"Label rules: min_vote_seconds is {rules.min_seconds:g}, but no vote says how "
                "long it took (`seconds`). Leave it out."
            )

    def agreements(self) -> dict[str, Agreement]:
        """Returns the agreement on each dimension that two annotators judged in some case."""
        return {
            dimension: _agreement(units, len(self._compared[dimension]))
            for dimension, units in self._units.items()
        }


def units_of(votes: list[Vote]) -> list[Counter[Hashable]]:
    """Returns how often each value was given, for each unit of one case."""
    rankings = [vote.value for vote in votes if isinstance(vote.value, tuple)]
    if not rankings:
        return [Counter(vote.value for vote in votes)]
    # Tied answers have one rank. Each pair of answers is a unit, judged -1, 0 or 1 by each ranking.
    ranks = list(map(ranks_of, rankings))
    return [
        Counter((rank[i] > rank[j]) - (rank[i] < rank[j]) for rank in ranks)
        for i, j in combinations(sorted(ranks[0]), 2)
    ]


def _agreement(units: Counter[Unit], annotators: int) -> Agreement:
    from medrm.statistics.agreement import several_raters  # scipy takes half a second to import

    distinct = [dict(unit) for unit in units]
    # One row for each distinct unit, one column for each value: how often it was given.
    values = sorted({value for count in distinct for value in count}, key=str)
    counts = np.array([[float(count.get(value, 0)) for value in values] for count in distinct])
    times, cluster = np.array(list(units.values()), float), np.zeros(len(counts), np.int64)
    measures = several_raters(counts, cluster, ("raw", "alpha"), times=times)
    alpha, raw = measures["alpha"].value, measures["raw"].value
    assert raw is not None
    return Agreement(alpha, raw, units.total(), annotators)


@dataclass(frozen=True)
class FastVotes:
    """Votes that were dropped because they took less than the label rules ask for.

    `by_annotator` counts all, `examples` are the first ones in words.
    """

    by_annotator: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[str] = ()

    def said(self, min_seconds: float) -> str:
        """Returns how many there are, of whom, and the first ones."""
        counts = sorted(self.by_annotator.items(), key=lambda count: -count[1])
        named = ", ".join(f"{shortened(shown_reader(name))} {n}" for name, n in counts[:5])
        more = f" and of {len(counts) - 5} more" if len(counts) > 5 else ""
        total = sum(self.by_annotator.values())
        several, are = ("s", "are") if total > 1 else ("", "is")
        title = f"{total} vote{several} took less than {min_seconds:g} s and {are} dropped"
        return report(f"{title} ({named}{more}):", self.examples, limit=5)
