"""From expert labels to the tensors a loss reads, and from rewards and tensors to the losses.

Legend: G cases with the same number of answers, K answers, D dimensions, P = K (K - 1) / 2 pairs of
answers in the order of `itertools.combinations`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medrm.data.store.indexed_cases import column, label_column
from medrm.errors import ConfigError, DataError
from medrm.objectives.losses import (
    MOST_RANKED,
    PAIR_LOSSES,
    centring,
    pair_loss,
    plackett_luce,
    ranking_terms,
)
from medrm.schema import Case, Label, PairLabel, RankingLabel

UNCERTAIN = (1 / 3, 1 / 3, 1 / 3)
"""The shares written where a label is missing; its weight is 0."""


@dataclass(frozen=True, slots=True)
class Group:
    """The labels of the cases of one micro-batch that have the same number of answers.

    A class of its own, not a mapping: what a trainer does to a batch's tensors (DeepSpeed casts
    them to bf16) must not happen to weights and shares.

    Attributes:
        rows: (G, K) row of each answer in the batch.
        weights: (G, D) share of the label in its optimiser step; 0 = missing or filler.
        preferred: (G, D, P) 1 = the first of two answers is preferred, -1 = the second, else 0.
        shares: (G, D, 3) vote shares of a pair; None for K > 2.
        margins: (G, D) of a pair; None where none is asked.
        coefficients: (G, D, 2^K - 1) of `plackett_luce`; None for pairs.
        stages: (G, D, 2^K - 1) of `plackett_luce`; None for pairs.
    """

    rows: Tensor
    weights: Tensor
    preferred: Tensor
    shares: Tensor | None = None
    margins: Tensor | None = None
    coefficients: Tensor | None = None
    stages: Tensor | None = None

    def to(self, device: torch.device) -> Group:
        """Returns the group on a device."""
        tensors = (self.shares, self.margins, self.coefficients, self.stages)
        optional = (None if tensor is None else tensor.to(device) for tensor in tensors)
        required = (self.rows, self.weights, self.preferred)
        return Group(*(tensor.to(device) for tensor in required), *optional)


@dataclass(frozen=True)
class Targets:
    """How labels become targets.

    Attributes:
        dimensions: the D names.
        dimension_weights: the weight of each.
        ties: the pair loss, a key of `PAIR_LOSSES`.
        tied: whether ties are an outcome of their own on each dimension.
        vote_targets: the vote shares, or the majority's choice alone.
        label_smoothing: share of the votes taken to be for the wrong answer.
        margin: asked of a pair whose votes all agree, less in proportion to the votes' lead.
        weight_by_votes: a label counts as often as it has votes.
        center_rewards_coefficient: weight of `centring`.
    """

    dimensions: tuple[str, ...]
    dimension_weights: tuple[float, ...]
    ties: str
    tied: tuple[bool, ...]
    vote_targets: Literal["shares", "majority"] = "shares"
    label_smoothing: float = 0.0
    margin: float = 0.0
    weight_by_votes: bool = False
    center_rewards_coefficient: float = 0.0

    def weights(self, case: Case) -> list[float]:
        """Returns the (D,) weights of a case's labels, 0 where there is none to learn from."""
        found = [case.labels.get(name) for name in self.dimensions]
        return [
            0.0 if label is None else weight * self._votes(label)
            for label, weight in zip(found, self.dimension_weights, strict=True)
        ]

    def _votes(self, label: Label) -> float:
        undecided = isinstance(label, PairLabel) and label.choice is None
        if undecided and self.vote_targets == "majority":
            return 0.0
        return float(label.votes) if self.weight_by_votes else 1.0

    def groups(self, cases: Sequence[Case], scales: Sequence[float]) -> tuple[Group, ...]:
        """Returns the labels of a micro-batch, one group for each number of answers.

        Args:
            cases: in the order of the batch.
            scales: (B,) factor of each case's weights.
        """
        offsets = [0, *itertools.accumulate(len(case.answers) for case in cases)]
        places = defaultdict(list)
        for place, case in enumerate(cases):
            places[len(case.answers)].append(place)
        return tuple(
            self._group(
                answers,
                [cases[place] for place in members],
                [offsets[place] for place in members],
                [scales[place] for place in members],
            )
            for answers, members in sorted(places.items())
        )

    def _group(
        self, answers: int, cases: Sequence[Case], offsets: Sequence[int], scales: Sequence[float]
    ) -> Group:
        rows = torch.tensor(offsets)[:, None] + torch.arange(answers)
        weights = torch.tensor([self.weights(case) for case in cases])
        weights *= torch.tensor(scales)[:, None]
        labels = [[case.labels.get(name) for name in self.dimensions] for case in cases]
        preferred = torch.tensor([[_preferred(x, answers) for x in row] for row in labels])
        if answers == 2:
            return self._pairs(rows, weights, preferred, labels)
        terms = [
            [self._terms(label, answers, tied) for label, tied in zip(row, self.tied, strict=True)]
            for row in labels
        ]
        coefficients, stages = torch.tensor(terms).unbind(2)
        return Group(rows, weights, preferred, coefficients=coefficients, stages=stages)

    def _pairs(
        self,
        rows: Tensor,
        weights: Tensor,
        preferred: Tensor,
        labels: Sequence[Sequence[Label | None]],
    ) -> Group:
        voted = torch.tensor([[_shares(label) for label in row] for row in labels])
        shares = voted
        if self.vote_targets == "majority":
            first, second = (preferred == 1).float(), (preferred == -1).float()
            shares = torch.cat([first, 1 - first - second, second], dim=-1)
        shares = (1 - self.label_smoothing) * shares + self.label_smoothing * shares.flip(-1)
        margins = self.margin * (voted[..., 0] - voted[..., 2]).abs() if self.margin else None
        if margins is not None:
            margins = margins * (preferred[..., 0] != 0)
        return Group(rows, weights, preferred, shares=shares, margins=margins)

    def _terms(
        self, label: Label | None, answers: int, tied: bool
    ) -> tuple[list[float], list[float]]:
        rankings = label.rankings if isinstance(label, RankingLabel) else ()
        return ranking_terms(rankings, answers, bool(PAIR_LOSSES[self.ties].ranking_ties) and tied)

    def losses(self, group: Group, rewards: Tensor, tie: Tensor | None) -> Tensor:
        """Returns the (G, D) unweighted losses of a group.

        Args:
            group: of the batch.
            rewards: (rows, D) of the whole batch.
            tie: (D,) the head's tie logits, or None.
        """
        chosen = rewards[group.rows]
        if group.shares is not None:
            losses = pair_loss(chosen, group.shares, self.ties, tie, group.margins)
        else:
            assert group.coefficients is not None
            assert group.stages is not None
            losses = plackett_luce(chosen, group.coefficients, group.stages, tie)
        if self.center_rewards_coefficient:
            losses = losses + self.center_rewards_coefficient * centring(chosen)
        return losses

    def weights_of(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """Returns the (cases, D) weights of `weights`, from the labels' columns."""
        weights = np.zeros((len(cases), len(self.dimensions)))
        for index, (name, weight) in enumerate(
            zip(self.dimensions, self.dimension_weights, strict=True)
        ):
            own = label_column(cases, name)
            counted = own["votes"] > 0
            if self.vote_targets == "majority":
                counted &= own["decided"]
            votes = own["votes"] if self.weight_by_votes else 1.0
            weights[:, index] = np.where(counted, weight * votes, 0.0)
        return weights

    def check(self, cases: Sequence[Case]) -> None:
        """Refuses cases that the options cannot be applied to.

        Raises:
            ConfigError: an option made for pairs, and a case with more answers.
            DataError: a label that does not fit its number of answers, or too many answers.
        """
        answers = column(cases, "answer_count")
        for name in self.dimensions:
            own = label_column(cases, name)
            wrong = np.flatnonzero((own["votes"] > 0) & (own["ranked"] == (answers == 2)))
            if len(wrong):
                case = cases[int(wrong[0])]
                raise DataError(
                    f"case {case.case_id!r} has {len(case.answers)} answers and a "
                    f"{type(case.labels[name]).__name__} for {name!r}; two answers take vote "
                    "shares, more take rankings"
                )
        long = np.flatnonzero(answers > MOST_RANKED)
        if len(long):
            first = cases[int(long[0])]
            raise DataError(
                f"{len(long)} cases have more than {MOST_RANKED} answers (the first, "
                f"{first.case_id!r}, has {len(first.answers)}), and the loss sums over all "
                f"sets of answers; give at most {MOST_RANKED}"
            )
        ranked = np.flatnonzero(answers > 2)
        options = {
            f"ties {self.ties}": PAIR_LOSSES[self.ties].ranking_ties is None,
            "vote_targets majority": self.vote_targets == "majority",
            "margin": self.margin > 0,
            "label_smoothing": self.label_smoothing > 0,
        }
        given = [name for name, used in options.items() if used]
        if len(ranked) and given:
            raise ConfigError(
                f"{', '.join(given)}: for pairs of answers alone, but {len(ranked)} cases have "
                f"more (the first is {cases[int(ranked[0])].case_id!r}). Leave the option out or "
                "give pairs only."
            )


def tally(group: Group, rewards: Tensor) -> Tensor:
    """Returns (3, D): labels ranked as the votes do, the sum of their margins, and their number.

    A label counts where most votes prefer one of two answers; equal rewards are wrong. Of more
    than two answers it counts the share and the mean margin over its pairs.

    Args:
        group: of the batch.
        rewards: (rows, D) of the whole batch.
    """
    chosen = rewards.detach()[group.rows]
    first, second = zip(*itertools.combinations(range(chosen.shape[1]), 2), strict=True)
    lead = (chosen[:, first] - chosen[:, second]).transpose(1, 2) * group.preferred
    counted = (group.preferred != 0) & (group.weights > 0)[..., None]
    pairs = counted.sum(-1).clamp_min(1)
    right = ((lead > 0) & counted).sum(-1) / pairs
    margin = (lead * counted).sum(-1) / pairs
    return torch.stack([right.sum(0), margin.sum(0), counted.any(-1).sum(0).to(right.dtype)])


def tie_shares(cases: Sequence[Case], dimensions: Sequence[str]) -> dict[str, float]:
    """Returns the share of ties among the votes of each dimension, 0 where there is none.

    A ranking counts one for each two answers, tied when they stand in one place.
    """
    answers = column(cases, "answer_count")
    shares = {}
    for name in dimensions:
        own = label_column(cases, name)
        pairs = np.where(own["ranked"], answers * (answers - 1) / 2, 1.0)
        total = float((own["votes"] * pairs).sum())
        shares[name] = float(own["tied"].sum()) / total if total else 0.0
    return shares


def _shares(label: Label | None) -> tuple[float, float, float]:
    return label.shares if isinstance(label, PairLabel) else UNCERTAIN


def _preferred(label: Label | None, answers: int) -> list[float]:
    """Returns the (P,) signs of what most votes say of each two answers."""
    if isinstance(label, PairLabel):
        return [float(label.choice == 0) - float(label.choice == 1)]
    places = []
    for ranking in label.rankings if label else ():
        places.append({k: place for place, tied in enumerate(ranking) for k in tied})
    signs = []
    for i, j in itertools.combinations(range(answers), 2):
        first = sum(place[i] < place[j] for place in places)
        second = sum(place[i] > place[j] for place in places)
        half = len(places) / 2
        signs.append(float(first > half) - float(second > half))
    return signs
