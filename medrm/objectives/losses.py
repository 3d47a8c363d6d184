"""Preference losses as pure tensor functions: rewards and label tensors in, one loss per label out.

Every loss is the negative log-likelihood of the votes and depends on differences of rewards alone,
so that rewards have no zero of their own.

    two answers         rewards (G, 2, D) -> d (G, D)   `PAIR_LOSSES` by the option `ties`
    K > 2, ranked       rewards (G, K, D)               `plackett_luce`, a sum over sets of answers

Legend: G cases with the same number of answers, K answers, D dimensions, S = 2^K - 1 sets of
answers. r is a reward, exp(r) an answer's worth, d = r_first - r_second, s = (s_first, s_tie,
s_second) the vote shares, t a dimension's learned tie parameter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
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


def bradley_terry(difference: Tensor, vote_shares: Tensor, margin: Tensor | None = None) -> Tensor:
    """Returns -y log f(d - m) - (1 - y) log f(-d - m), y = s_first + s_tie / 2, f the logistic.

    Bradley and Terry 1952 (doi:10.2307/2334029); the margin m as in Llama 2, equation 2 (arXiv
    2307.09288). A tie counts as half a vote for either answer: a pair that is all tie keeps its
    weight and pulls both rewards together.

    Args:
        difference: (G, D) d.
        vote_shares: (G, D, 3) s.
        margin: (G, D) m >= 0, how far the preferred answer is asked to lead.

    Returns:
        (G, D) losses.
    """
    first = vote_shares[..., 0] + vote_shares[..., 1] / 2
    second = vote_shares[..., 2] + vote_shares[..., 1] / 2
    lead = 0.0 if margin is None else margin
    return -first * logsigmoid(difference - lead) - second * logsigmoid(-difference - lead)


def davidson(difference: Tensor, vote_shares: Tensor, tie: Tensor) -> Tensor:
    """Returns -sum s log p with p = softmax(d/2, t, -d/2) for first, tie, second.

    Davidson 1970 (doi:10.1080/01621459.1970.10481082), equation 2.4, with worth exp(r) and nu =
    exp(t): p_tie is proportional to nu sqrt(worth_1 worth_2). Given that there is no tie it is
    Bradley-Terry.

    Args:
        difference: (G, D) d.
        vote_shares: (G, D, 3) s.
        tie: (D,) t.

    Returns:
        (G, D) losses.
    """
    logits = torch.stack([difference / 2, tie.expand_as(difference), -difference / 2], dim=-1)
    return -(vote_shares * log_softmax(logits, dim=-1)).sum(-1)


def rao_kupper(difference: Tensor, vote_shares: Tensor, tie: Tensor) -> Tensor:
    """Returns -sum s log p with p_first = f(d - h), p_second = f(-d - h), p_tie the rest.

    Rao and Kupper 1967 (doi:10.1080/01621459.1967.10482901), with theta = exp(h), h = softplus(t)
    > 0: a difference below the threshold h is seen as a tie, p_tie = (theta^2 - 1) p_first
    p_second.

    Args:
        difference: (G, D) d.
        vote_shares: (G, D, 3) s.
        tie: (D,) t.

    Returns:
        (G, D) losses.
    """
    threshold = softplus(tie)
    first, second = logsigmoid(difference - threshold), logsigmoid(-difference - threshold)
    # log(theta^2 - 1) without overflow; the floor keeps the gradient finite at t -> -infinity.
    gap = (2 * threshold).clamp_min(1e-12)
    tied = gap + torch.log(-torch.expm1(-gap)) + first + second
    return -(vote_shares * torch.stack([first, tied, second], dim=-1)).sum(-1)


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
    rewards: Tensor,
    vote_shares: Tensor,
    ties: str,
    tie: Tensor | None,
    margin: Tensor | None = None,
) -> Tensor:
    """Returns the loss of each label of a pair.

    On dimensions without ties, a loss with a tie parameter gives way to plain Bradley-Terry.

    Args:
        rewards: (G, 2, D).
        vote_shares: (G, D, 3).
        ties: a key of `PAIR_LOSSES`.
        tie: (D,) t, minus infinity where the training data has no tie; None: no dimension has any.
        margin: (G, D) or None; only for losses without a tie parameter.

    Returns:
        (G, D) losses.
    """
    difference = rewards[:, 0] - rewards[:, 1]
    selected = PAIR_LOSSES[ties]
    if selected.initial_tie is None:
        return selected.loss(difference, vote_shares, margin)
    untied = bradley_terry(difference, vote_shares)
    if tie is None:
        return untied
    has_ties = tie.isfinite()
    # torch.where passes gradients through both branches: t must be finite in the one not taken.
    tied = selected.loss(difference, vote_shares, tie.masked_fill(~has_ties, 0))
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
    rewards: Tensor, coefficients: Tensor, stages: Tensor, tie: Tensor | None
) -> Tensor:
    """Returns the negative log-likelihood of rankings, chosen stage by stage from what is left.

    A ranking is read as choices: of all answers the best (or a set of tied ones), of those left
    the next, and so on. Each choice has probability exp(e_S) / sum of exp(e_S') over the sets S' of
    what is left, where e_S is the log worth of a set: the mean of its rewards, plus t when it holds
    a tie. Summed over all choices of all votes, with c_S how often S is chosen and w_A how often
    the answers left are A:

        -log p = sum_A w_A log sum_(S in A) exp(e_S) - sum_S c_S e_S

    Both sums run over fixed lists of sets, so that rankings of any shape are one tensor.

    Plackett 1975 (doi:10.2307/2346567); with ties Turner, van Etten, Firth and Kosmidis 2020
    (doi:10.1007/s00180-020-00959-3), equation 2, with one tie parameter for all sizes. At K = 2 it
    is Bradley-Terry, and with ties Davidson.

    Args:
        rewards: (G, K, D).
        coefficients: (G, D, 2^K - 1) c by `ranking_terms`.
        stages: (G, D, 2^K - 1) w by `ranking_terms`.
        tie: (D,) t, minus infinity where the training data has no tie; None where ties are not
            modelled.

    Returns:
        (G, D) losses.
    """
    alternatives = answer_sets(rewards.shape[1]).to(rewards)  # (S, K), what may be left
    single = alternatives.sum(-1) == 1
    # What may be chosen, (C, K): with ties any set, else one answer.
    choices = alternatives if tie is not None else alternatives[single]
    # e, (G, D, C): a choice's mean reward.
    log_worth = torch.einsum("gkd,ck->gdc", rewards, choices / choices.sum(-1, keepdim=True))
    if tie is None:
        coefficients = coefficients[..., single]
    else:
        log_worth = log_worth + (choices.sum(-1) > 1) * tie.clamp_min(_NO_TIE)[:, None]
    # (S, C): the choice holds an answer that is not among those left.
    impossible = (choices[None] > alternatives[:, None]).any(-1)
    # (G, D, S): log of the summed worth of all choices from each set.
    log_total = log_worth[..., None, :].masked_fill(impossible, -torch.inf).logsumexp(-1)
    return (stages * log_total).sum(-1) - (coefficients * log_worth).sum(-1)


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
    weight = 1 / max(1, len(rankings))
    for ranking in rankings:
        worse = 0
        # From the last place up, so that what is left below each place is known.
        for tied in reversed(ranking):
            if models_ties:
                coefficients[_set_number(tied) - 1] += weight
                stages[(_set_number(tied) | worse) - 1] += weight
            else:
                # All orders of the tied answers are equally likely: each is chosen once, and before
                # every choice each subset of the size that is still left is equally likely to be
                # what is left.
                for answer in tied:
                    coefficients[_set_number([answer]) - 1] += weight
                for size in range(1, len(tied) + 1):
                    for remaining in itertools.combinations(tied, size):
                        probability = weight / math.comb(len(tied), size)
                        stages[(_set_number(remaining) | worse) - 1] += probability
            worse |= _set_number(tied)
    return coefficients, stages


def _set_number(answers: Iterable[int]) -> int:
    """Returns the binary number of a set of answers."""
    return sum(1 << answer for answer in answers)
