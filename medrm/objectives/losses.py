"""Preference losses as pure tensor functions: rewards and label tensors in, one loss per label out.

Legend: G cases with the same number of answers, K answers, D dimensions, S items that can be
chosen, A sets of alternatives. r is a reward, d = r_first - r_second, s = (s_first, s_tie,
s_second) the vote shares, t a dimension's learned tie parameter. Every loss is the negative
log-likelihood of the votes and depends on differences of rewards alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, softplus

from medrm.errors import DataError
from medrm.schema import Ranking

MOST_RANKED = 8
"""Largest K of a ranked case: the sets that may be chosen or chosen from number 2^K - 1."""

_NO_TIE = -1e4
"""Stands for a log weight of minus infinity, so that 0 x log weight stays 0."""


def bradley_terry(difference: Tensor, shares: Tensor, margin: Tensor | None = None) -> Tensor:
    """Returns -y log f(d - m) - (1 - y) log f(-d - m), y = s_first + s_tie / 2, f the logistic.

    Bradley and Terry 1952 (doi:10.2307/2334029); the margin m as in Llama 2, equation 2 (arXiv
    2307.09288). A tie counts as half a vote for either answer: a pair that is all tie keeps its
    weight and pulls both rewards together.

    Args:
        difference: (G, D) d.
        shares: (G, D, 3) s.
        margin: (G, D) m >= 0, how far the preferred answer is asked to lead.

    Returns:
        (G, D) losses.
    """
    first = shares[..., 0] + shares[..., 1] / 2
    second = shares[..., 2] + shares[..., 1] / 2
    wanted = 0.0 if margin is None else margin
    return -first * logsigmoid(difference - wanted) - second * logsigmoid(-difference - wanted)


def davidson(difference: Tensor, shares: Tensor, tie: Tensor) -> Tensor:
    """Returns -sum s log p with p = softmax(d/2, t, -d/2) for first, tie, second.

    Davidson 1970 (doi:10.1080/01621459.1970.10481082), equation 2.4, with worth exp(r) and nu =
    exp(t): p_tie is proportional to nu sqrt(worth_1 worth_2). Given that there is no tie it is
    Bradley-Terry.

    Args:
        difference: (G, D) d.
        shares: (G, D, 3) s.
        tie: (D,) t.

    Returns:
        (G, D) losses.
    """
    logits = torch.stack([difference / 2, tie.expand_as(difference), -difference / 2], dim=-1)
    return -(shares * log_softmax(logits, dim=-1)).sum(-1)


def rao_kupper(difference: Tensor, shares: Tensor, tie: Tensor) -> Tensor:
    """Returns -sum s log p with p_first = f(d - h), p_second = f(-d - h), p_tie the rest.

    Rao and Kupper 1967 (doi:10.1080/01621459.1967.10482901), with theta = exp(h), h = softplus(t)
    > 0: a difference below the threshold h is seen as a tie, p_tie = (theta^2 - 1) p_first
    p_second.

    Args:
        difference: (G, D) d.
        shares: (G, D, 3) s.
        tie: (D,) t.

    Returns:
        (G, D) losses.
    """
    threshold = softplus(tie)
    first, second = logsigmoid(difference - threshold), logsigmoid(-difference - threshold)
    # log(theta^2 - 1) without overflow; the floor keeps the gradient finite at t -> -infinity.
    gap = (2 * threshold).clamp_min(1e-12)
    tied = gap + torch.log(-torch.expm1(-gap)) + first + second
    return -(shares * torch.stack([first, tied, second], dim=-1)).sum(-1)


def initial_tie(share: float) -> float:
    """Returns the t at which two equal rewards tie with probability `share`, in (0, 1).

    The same for both models: nu = 2 share / (1 - share) in Davidson's, theta - 1 in Rao and
    Kupper's.
    """
    return math.log(2 * share / (1 - share))


@dataclass(frozen=True)
class PairLoss:
    """How the votes on two answers are learned: one value of the option `ties`.

    Attributes:
        loss: (d (G, D), s (G, D, 3), t (D,)) to (G, D) losses; of a loss without a tie parameter
            the third argument is the margin (G, D) or None instead.
        initial_tie: the share of ties among the votes, in (0, 1), to the t at which training
            starts; None: the loss has no tie parameter.
        ranking_ties: what a tie in a ranking of more than two answers is to `plackett_luce`. True:
            an outcome of its own; False: all orders of its answers; None: rankings are refused.
    """

    loss: Callable[..., Tensor]
    initial_tie: Callable[[float], float] | None = None
    ranking_ties: bool | None = None


PAIR_LOSSES = {
    "none": PairLoss(bradley_terry, ranking_ties=False),
    "davidson": PairLoss(davidson, initial_tie, ranking_ties=True),
    "rao_kupper": PairLoss(rao_kupper, initial_tie),
}
"""Value of the option `ties` to the loss that it selects."""


def pair_loss(
    rewards: Tensor, shares: Tensor, ties: str, tie: Tensor | None, margin: Tensor | None = None
) -> Tensor:
    """Returns the loss of each label of a pair.

    A loss with a tie parameter stands back on dimensions without ties for plain Bradley-Terry.

    Args:
        rewards: (G, 2, D).
        shares: (G, D, 3).
        ties: a key of `PAIR_LOSSES`.
        tie: (D,) t, minus infinity where the training data has no tie; None: no dimension has any.
        margin: (G, D) or None; only for losses without a tie parameter.

    Returns:
        (G, D) losses.
    """
    difference = rewards[:, 0] - rewards[:, 1]
    selected = PAIR_LOSSES[ties]
    if selected.initial_tie is None:
        return selected.loss(difference, shares, margin)
    untied = bradley_terry(difference, shares)
    if tie is None:
        return untied
    has_ties = tie.isfinite()
    # torch.where passes gradients through both branches: t must be finite in the one not taken.
    tied = selected.loss(difference, shares, tie.masked_fill(~has_ties, 0))
    return torch.where(has_ties, tied, untied)


def centring(rewards: Tensor) -> Tensor:
    """Returns (2 mean_k r_k)^2, which for a pair is (r_1 + r_2)^2.

    Eisenstein et al. 2023 (arXiv 2312.09244), the auxiliary loss that fixes the free constant of
    rewards.

    Args:
        rewards: (G, K, D).

    Returns:
        (G, D).
    """
    return (2 * rewards.mean(1)).square()


def answer_sets(answers: int) -> Tensor:
    """Returns (2^K - 1, K) 0/1 rows, all sets of answers by binary number, answer 0 lowest."""
    return torch.tensor([[float(n >> k & 1) for k in range(answers)] for n in range(1, 2**answers)])


def plackett_luce(
    rewards: Tensor,
    coefficients: Tensor,
    stages: Tensor,
    tie: Tensor | None,
) -> Tensor:
    """Returns the negative log-likelihood of rankings, chosen stage by stage from what is left.

    -log p = sum_A w_A log sum_(S in A) exp(e_S) - sum_S c_S e_S, where e_S is the log worth of a
    set: the mean of its rewards, plus t when it holds a tie. Plackett 1975 (doi:10.2307/2346567);
    with ties Turner, van Etten, Firth and Kosmidis 2020 (doi:10.1007/s00180-020-00959-3), equation
    2, with one tie parameter for all sizes. At K = 2 it is Bradley-Terry, and with ties Davidson.

    Args:
        rewards: (G, K, D).
        coefficients: (G, D, 2^K - 1) c by `ranking_terms`.
        stages: (G, D, 2^K - 1) w by `ranking_terms`.
        tie: (D,) t, minus infinity where the training data has no tie; None where ties are not
            modelled.

    Returns:
        (G, D) losses.
    """
    answers = rewards.shape[1]
    alternatives = answer_sets(answers).to(rewards)
    sets = alternatives if tie is not None else alternatives[alternatives.sum(-1) == 1]
    worth = torch.einsum("gkd,sk->gds", rewards, sets / sets.sum(-1, keepdim=True))
    if tie is None:
        coefficients = coefficients[..., alternatives.sum(-1) == 1]
    else:
        worth = worth + (sets.sum(-1) > 1) * tie.clamp_min(_NO_TIE)[:, None]
    outside = (sets[None] > alternatives[:, None]).any(-1)
    left = worth[..., None, :].masked_fill(outside, -torch.inf).logsumexp(-1)
    return (stages * left).sum(-1) - (coefficients * worth).sum(-1)


def ranking_terms(
    rankings: Sequence[Ranking], answers: int, models_ties: bool
) -> tuple[list[float], list[float]]:
    """Returns c and w of `plackett_luce`, averaged over the rankings of one label.

    Where ties are not modelled, a tie stands for all orders of its answers, each equally likely,
    and the loss is the mean over them: the share of a pair's tie is split evenly in the same way.

    Args:
        rankings: one for each vote.
        answers: K.
        models_ties: whether a tie is an outcome of its own on this dimension.

    Returns:
        (2^K - 1 coefficients, 2^K - 1 stage weights), indexed by the binary number of the set less
        one.

    Raises:
        DataError: more than `MOST_RANKED` answers.
    """
    if answers > MOST_RANKED:
        raise DataError(
            f"a ranking of {answers} answers; at most {MOST_RANKED} are accepted: split the case "
            "into smaller ones"
        )
    coefficients = [0.0] * (2**answers - 1)
    stages = [0.0] * (2**answers - 1)
    for ranking in rankings:
        left = 0
        for group in reversed(ranking):
            _add_group(coefficients, stages, group, left, models_ties, 1 / len(rankings))
            left |= sum(1 << k for k in group)
    return coefficients, stages


def _add_group(
    coefficients: list[float],
    stages: list[float],
    group: Sequence[int],
    worse: int,
    models_ties: bool,
    weight: float,
) -> None:
    """Adds the stages in which `group` is chosen while the set `worse` is still left."""
    whole = sum(1 << k for k in group)
    if models_ties:
        coefficients[whole - 1] += weight
        stages[(whole | worse) - 1] += weight
        return
    for answer in group:
        coefficients[(1 << answer) - 1] += weight
    for size in range(1, len(group) + 1):
        share = weight / math.comb(len(group), size)
        for rest in itertools.combinations(group, size):
            stages[(sum(1 << k for k in rest) | worse) - 1] += share
