"""From expert labels to the tensors a loss reads, and from rewards and tensors to the losses.

    cases of a micro-batch -> `Targets.groups` -> one `LabelGroup` for each number of answers K
    rewards (rows, D)      -> group.rows       -> rewards of the group's answers (G, K, D)
                           -> `Targets.losses` -> (G, D), unweighted
    sum over groups of weights x losses = this micro-batch's part of its step's loss

A batch has one row of rewards for each answer, case-major, whatever the number of answers of each
case; a group gathers the rows of its cases. Labels that are missing have weight 0 and some shares
that are valid, so that no tensor is ragged.

Legend: G cases with the same number of answers, K answers, D dimensions, P = K (K - 1) / 2 pairs of
answers in the order of `itertools.combinations`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medrm.data.store.indexed_cases import column, label_column
from medrm.errors import ConfigError, DataError, applying
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
class LabelGroup:
    """The labels of the cases of one micro-batch that have the same number of answers.

    A class of its own, not a mapping: what a trainer does to a batch's tensors (DeepSpeed casts
    them to bf16) must not happen to weights and shares.

    Attributes:
        rows: (G, K) row of each answer in the batch.
        weights: (G, D) share of the label in its optimiser step; 0 = missing or filler.
        preferred: (G, D, P) 1 = the first of two answers is preferred, -1 = the second, else 0.
        vote_shares: (G, D, 3) of a pair; None for K > 2.
        margins: (G, D) of a pair; None where none is asked.
        coefficients: (G, D, 2^K - 1) of `plackett_luce`; None for pairs.
        stages: (G, D, 2^K - 1) of `plackett_luce`; None for pairs.
    """

    rows: Tensor
    weights: Tensor
    preferred: Tensor
    vote_shares: Tensor | None = None
    margins: Tensor | None = None
    coefficients: Tensor | None = None
    stages: Tensor | None = None

    def to(self, device: torch.device) -> LabelGroup:
        """Returns the group on a device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        moved: list[Any] = [tensor if tensor is None else tensor.to(device) for tensor in tensors]
        return LabelGroup(*moved)


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

    def groups(self, cases: Sequence[Case], scales: Sequence[float]) -> tuple[LabelGroup, ...]:
        """Returns the labels of a micro-batch, one group for each number of answers.

        Args:
            cases: in the order of the batch.
            scales: (B,) factor of each case's weights.
        """
        counts = [len(case.answers) for case in cases]
        first_rows = torch.tensor([0, *itertools.accumulate(counts)])
        weights = torch.from_numpy(self.weights_of(cases)).float() * torch.tensor(scales)[:, None]
        groups = []
        for answers in sorted(set(counts)):
            members = [index for index, count in enumerate(counts) if count == answers]
            rows = first_rows[members][:, None] + torch.arange(answers)
            groups.append(self._group([cases[i] for i in members], rows, weights[members]))
        return tuple(groups)

    def _group(self, cases: Sequence[Case], rows: Tensor, weights: Tensor) -> LabelGroup:
        answers = rows.shape[1]
        labels = [[case.labels.get(name) for name in self.dimensions] for case in cases]
        preferred = torch.tensor([[_preferred(label, answers) for label in row] for row in labels])
        if answers == 2:
            return self._pairs(rows, weights, preferred, labels)
        terms = [
            [self._terms(label, answers, tied) for label, tied in zip(row, self.tied, strict=True)]
            for row in labels
        ]
        coefficients, stages = torch.tensor(terms).unbind(2)
        return LabelGroup(rows, weights, preferred, coefficients=coefficients, stages=stages)

    def _pairs(
        self,
        rows: Tensor,
        weights: Tensor,
        preferred: Tensor,
        labels: Sequence[Sequence[Label | None]],
    ) -> LabelGroup:
        votes = torch.tensor([[_vote_shares(label) for label in row] for row in labels])
        vote_shares = votes
        if self.vote_targets == "majority":
            first, second = (preferred == 1).float(), (preferred == -1).float()
            vote_shares = torch.cat([first, 1 - first - second, second], dim=-1)
        swapped = vote_shares.flip(-1)
        vote_shares = (1 - self.label_smoothing) * vote_shares + self.label_smoothing * swapped
        margins = None
        if self.margin:
            lead = (votes[..., 0] - votes[..., 2]).abs()
            margins = self.margin * lead * (preferred[..., 0] != 0)
        return LabelGroup(rows, weights, preferred, vote_shares=vote_shares, margins=margins)

    def _terms(
        self, label: Label | None, answers: int, tied: bool
    ) -> tuple[list[float], list[float]]:
        rankings = label.rankings if isinstance(label, RankingLabel) else ()
        return ranking_terms(rankings, answers, bool(PAIR_LOSSES[self.ties].ranking_ties) and tied)

    def losses(self, group: LabelGroup, rewards: Tensor, tie: Tensor | None) -> Tensor:
        """Returns the (G, D) unweighted losses of a group.

        Args:
            group: of the batch.
            rewards: (rows, D) of the whole batch.
            tie: (D,) the head's tie logits, or None.
        """
        answer_rewards = rewards[group.rows]  # (G, K, D)
        if group.vote_shares is not None:
            losses = pair_loss(answer_rewards, group.vote_shares, self.ties, tie, group.margins)
        else:
            assert group.coefficients is not None
            assert group.stages is not None
            losses = plackett_luce(answer_rewards, group.coefficients, group.stages, tie)
        if self.center_rewards_coefficient:
            losses = losses + self.center_rewards_coefficient * centring(answer_rewards)
        return losses

    def weights_of(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """Returns the (cases, D) weights of the labels, 0 where there is none to learn from."""
        weights = np.zeros((len(cases), len(self.dimensions)))
        for index, (name, weight) in enumerate(
            zip(self.dimensions, self.dimension_weights, strict=True)
        ):
            labels = label_column(cases, name)
            counted = labels["votes"] > 0
            if self.vote_targets == "majority":
                counted &= labels["decided"]
            votes = labels["votes"] if self.weight_by_votes else 1.0
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
            labels = label_column(cases, name)
            misfits = np.flatnonzero((labels["votes"] > 0) & (labels["ranked"] == (answers == 2)))
            if len(misfits):
                case = cases[int(misfits[0])]
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
        pair_options = {
            f"ties {self.ties}": PAIR_LOSSES[self.ties].ranking_ties is None,
            "vote_targets majority": self.vote_targets == "majority",
            "margin": self.margin > 0,
            "label_smoothing": self.label_smoothing > 0,
        }
        used_options = applying(pair_options)
        if len(ranked) and used_options:
            first_id = cases[int(ranked[0])].case_id
            raise ConfigError(
                f"{', '.join(used_options)}: for pairs of answers alone, but {len(ranked)} cases "
                f"have more (the first is {first_id!r}). Leave the option out or give pairs only."
            )


def tally(group: LabelGroup, rewards: Tensor) -> Tensor:
    """Returns (3, D): labels ranked as the votes do, the sum of their margins, and their number.

    A label counts where most votes prefer one of two answers; equal rewards are wrong. Of more
    than two answers it counts the share and the mean margin over its pairs.

    Args:
        group: of the batch.
        rewards: (rows, D) of the whole batch.
    """
    answer_rewards = rewards.detach()[group.rows]  # (G, K, D)
    pairs = itertools.combinations(range(answer_rewards.shape[1]), 2)
    first, second = zip(*pairs, strict=True)
    # (G, D, P), positive where the rewards order a pair as the votes do.
    lead = answer_rewards[:, first] - answer_rewards[:, second]
    lead = lead.transpose(1, 2) * group.preferred
    counted = (group.preferred != 0) & (group.weights > 0)[..., None]
    counted_pairs = counted.sum(-1).clamp_min(1)
    correct = ((lead > 0) & counted).sum(-1) / counted_pairs
    margin = (lead * counted).sum(-1) / counted_pairs
    return torch.stack([correct.sum(0), margin.sum(0), counted.any(-1).sum(0).to(correct.dtype)])


def tie_shares(cases: Sequence[Case], dimensions: Sequence[str]) -> dict[str, float]:
    """Returns the share of ties among the votes of each dimension, 0 where there is none.

    A ranking counts one for each two answers, tied when they stand in one place.
    """
    answers = column(cases, "answer_count")
    shares = {}
    for name in dimensions:
        labels = label_column(cases, name)
        pairs = np.where(labels["ranked"], answers * (answers - 1) / 2, 1.0)
        total = float((labels["votes"] * pairs).sum())
        shares[name] = float(labels["tied"].sum()) / total if total else 0.0
    return shares


def _vote_shares(label: Label | None) -> tuple[float, float, float]:
    return label.shares if isinstance(label, PairLabel) else UNCERTAIN


def _preferred(label: Label | None, answers: int) -> list[float]:
    """Returns the (P,) signs of what most votes say of each two answers."""
    pairs = list(itertools.combinations(range(answers), 2))
    if label is None:
        return [0.0] * len(pairs)
    labels = [label] if isinstance(label, PairLabel) else list(map(label.of_pair, pairs))
    return [float(pair.choice == 0) - float(pair.choice == 1) for pair in labels]
