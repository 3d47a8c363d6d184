"""Experts' votes and how they become labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medrm.errors import ConfigError
from medrm.schema import Choice, ImageRef, Label, PairLabel, Ranking, RankingLabel

TIE_RULES = ("keep", "split", "drop")
AGGREGATIONS = ("shares", "dawid_skene")
_CHOICES: tuple[Choice, ...] = (0, "tie", 1)


@dataclass(frozen=True, slots=True)
class Vote:
    """One annotator's vote on one dimension: a choice for a pair, a ranking for more answers."""

    annotator: str
    value: Choice | Ranking


@dataclass(slots=True)
class Draft:
    """A case as its source states it: votes, not yet labels; cluster keys, not yet a cluster."""

    case_id: str
    images: tuple[ImageRef, ...]
    question: str
    answers: tuple[str, ...]
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    independent: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelRules:
    """How the votes on a case become its label.

    `ties`: `keep` counts a tie vote as a tie, `split` as half a vote for each answer, `drop` not
    at all. `weights`: annotator to weight; None counts all alike.
    `aggregation`: `shares` of the votes as counted, or the posterior of the Dawid-Skene model
    (1979), which learns from all cases of a dimension how reliable each annotator is.
    """

    ties: Literal["keep", "split", "drop"] = "keep"
    weights: Mapping[str, float] | None = None
    aggregation: Literal["shares", "dawid_skene"] = "shares"

    def __post_init__(self) -> None:
        problems = []
        if self.ties not in TIE_RULES:
            problems.append(f"ties is {self.ties!r}; accepted: {', '.join(TIE_RULES)}")
        if self.aggregation not in AGGREGATIONS:
            problems.append(
                f"aggregation is {self.aggregation!r}; accepted: {', '.join(AGGREGATIONS)}"
            )
        weights = self.weights or {}
        wrong = [name for name, weight in weights.items() if not 0 < weight < math.inf]
        if wrong:
            problems.append(f"weights of {', '.join(wrong)} must be positive and finite")
        if self.aggregation == "dawid_skene" and self.weights is not None:
            problems.append("weights and dawid_skene exclude each other; leave one out")
        if problems:
            raise ConfigError("Label rules: " + "; ".join(problems) + ".")


@dataclass
class Voters:
    """Who voted, and whether some votes are rankings: what label rules must fit."""

    annotators: set[str] = field(default_factory=set)
    rankings: bool = False

    def add(self, drafts: Iterable[Draft]) -> None:
        """Counts the votes of drafts in."""
        for draft in drafts:
            for cast in draft.votes.values():
                self.annotators.update(vote.annotator for vote in cast)
                self.rankings |= any(isinstance(vote.value, tuple) for vote in cast)

    def check(self, rules: LabelRules) -> None:
        """Refuses rules that do not fit the votes.

        Raises:
            ConfigError: rankings and rules for pairs, an annotator without a weight, or too few
                annotators to learn from.
        """
        if self.rankings and rules != LabelRules():
            raise ConfigError(
                "Label rules: ties, weights and dawid_skene are for pairs, but some cases have "
                "rankings of "
                "more than two answers. Use the defaults, or label the pairs apart."
            )
        if rules.weights is not None and (missing := sorted(self.annotators - set(rules.weights))):
            raise ConfigError(
                f"Label rules: no weight is given for {', '.join(missing)}. Give one for each."
            )
        if rules.aggregation == "dawid_skene" and len(self.annotators) < 3:
            raise ConfigError(
                f"Label rules: dawid_skene needs three annotators or more, the votes have "
                f"{len(self.annotators)}. "
                "Use shares."
            )


def labels_of(drafts: Sequence[Draft], rules: LabelRules) -> list[dict[str, Label]]:
    """Returns each draft's labels; a dimension on which no vote counts is left out.

    Args:
        drafts: any; all of a set where `aggregation` learns from all votes at once.
        rules: that fit the votes; `Voters.check`.
    """
    posteriors = _dawid_skene(drafts) if rules.aggregation == "dawid_skene" else {}
    return [
        {
            dimension: label
            for dimension, votes in draft.votes.items()
            if (label := _label(votes, rules, posteriors.get((index, dimension)))) is not None
        }
        for index, draft in enumerate(drafts)
    ]


def _label(
    votes: Sequence[Vote], rules: LabelRules, posterior: Mapping[Choice, float] | None
) -> Label | None:
    rankings = tuple(vote.value for vote in votes if isinstance(vote.value, tuple))
    if rankings:
        return RankingLabel(rankings)
    mass: dict[Choice, float] = defaultdict(float)
    if posterior is not None:
        mass.update(posterior)
    else:
        for choice, weight in _weighted(votes, rules):
            mass[choice] += weight
    count = len(votes)
    if rules.ties == "split":
        half = mass.pop("tie", 0.0) / 2
        mass[0] += half
        mass[1] += half
    elif rules.ties == "drop":
        mass.pop("tie", None)
        count = sum(vote.value != "tie" for vote in votes)
    total = sum(mass.values())
    if count == 0 or total == 0:
        return None
    first, tie, second = (mass[choice] / total for choice in _CHOICES)
    return PairLabel((first, tie, second), count)


def _weighted(votes: Iterable[Vote], rules: LabelRules) -> Iterable[tuple[Choice, float]]:
    for vote in votes:
        assert not isinstance(vote.value, tuple)
        # An annotator without a weight is refused once all votes are known.
        yield vote.value, 1.0 if rules.weights is None else rules.weights.get(vote.annotator, 1.0)


def _dawid_skene(drafts: Sequence[Draft]) -> dict[tuple[int, str], dict[Choice, float]]:
    """Returns the posterior over the choices for each (draft index, dimension)."""
    import pandas as pd  # type: ignore[import-untyped]  # it ships no types
    from crowdkit.aggregation import DawidSkene

    table: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for index, draft in enumerate(drafts):
        for dimension, votes in draft.votes.items():
            table[dimension] += [(index, vote.annotator, str(vote.value)) for vote in votes]
    names: dict[str, Choice] = {str(choice): choice for choice in _CHOICES}
    posteriors: dict[tuple[int, str], dict[Choice, float]] = {}
    for dimension, rows in table.items():
        frame = pd.DataFrame(rows, columns=["task", "worker", "label"])
        fitted = DawidSkene(n_iter=100).fit_predict_proba(frame)
        for index, row in fitted.iterrows():
            posteriors[index, dimension] = {
                names[name]: float(row[name]) for name in fitted.columns
            }
    return posteriors
