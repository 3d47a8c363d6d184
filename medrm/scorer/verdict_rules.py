"""From responses to verdicts: rewards are compared, replies parsed, votes counted.

    (case, its responses) -> one verdict for each dimension, protocol and order

All functions are pure and need no model: the lines of `responses.jsonl` give the same verdicts
again. Robust: the strict parser reads every vote, and the majority of those read counts. Official:
the released scorer's parser reads the first vote of the forward order. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import get_args

from medrm.errors import DataError
from medrm.parsers import Parser, parse_verdict
from medrm.parsers.parsed import majority, stored_outcome
from medrm.parsers.thinking import UNENDED
from medrm.readouts import READOUTS, writes_rewards, writes_text
from medrm.schema import (
    DIMENSIONS,
    LETTERS,
    NEITHER,
    ORDERS,
    TIE,
    UNREAD,
    Case,
    Expected,
    Label,
    Outcome,
    Protocol,
    RankingLabel,
    Response,
    Verdict,
)

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

CUT_OFF = "cut_off"
"""Why a reply that reached its longest length is unread."""

_LENGTH_REASONS = (
    *("length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_completion_tokens"),
    *("model_length", "max_length", "model_context_window_exceeded"),
)
"""How engines and services say that a reply reached its longest length, in lower case."""

EVALUATE_AGAIN = (
    "Start the same `medrm evaluate` again: it keeps what is intact and asks for the rest alone."
)
"""What to do about a damaged evaluation."""

NOT_OFFICIAL = (
    f"The official protocol reads one reply on all of {', '.join(DIMENSIONS)}; this judge "
    "is asked about less at a time. Give --protocol robust or both, or the prompt 'json' "
    "and all six dimensions."
)
"""What to do where `can_be_official` says no."""

_PARSERS: dict[Protocol, Parser] = {"official": "official", "robust": "strict"}


def verdicts_of(
    case: Case,
    responses: Sequence[Response],
    scorer_dimensions: Sequence[str],
    dimensions: Sequence[str],
    protocols: Sequence[Protocol] = PROTOCOLS,
) -> list[Verdict]:
    """Returns the verdicts that a model's responses to a case mean.

    The official protocol has the stored order only and knows pairs only. Of more than two answers a
    judge prefers the one that wins most of its comparisons.

    Args:
        case: that was judged.
        responses: all of one or both orders.
        scorer_dimensions: the scorer's dimensions.
        dimensions: the benchmark's dimensions; those that the scorer lacks have no verdict.
        protocols: by whose rules to read.

    Raises:
        DataError: no response is about one of the dimensions, or a comparison of two answers is
            missing.
        ValueError: a reward or a probability is not finite.
    """
    verdicts = []
    answer_count = len(case.answers)
    for order in ORDERS:
        calls = [response for response in responses if response.order == order]
        if not calls:
            continue
        by_protocol: dict[Protocol, Mapping[str, Verdict]] = {}
        if "robust" in protocols:
            by_protocol["robust"] = _robust_verdicts(calls, scorer_dimensions, answer_count)
        is_stored_pair = order == "forward" and answer_count == 2
        if "official" in protocols and is_stored_pair and is_official(calls[0], scorer_dimensions):
            by_protocol["official"] = {
                name: verdict
                for call in calls
                if call.vote == 0
                for name, verdict in read_response(call, scorer_dimensions, "official").items()
                # The released scorer knows no other dimensions.
                if name in DIMENSIONS or not writes_text(call.readout)
            }
        for protocol, by_dimension in by_protocol.items():
            for name in (name for name in dimensions if name in scorer_dimensions):
                if name in by_dimension:
                    verdicts.append(labelled(case, by_dimension[name]))
                elif protocol == "robust" or name in DIMENSIONS:
                    raise DataError(
                        f"There is no response about case {case.case_id!r} ({order}) on {name}. "
                        f"{EVALUATE_AGAIN}"
                    )
    return verdicts


def agreed_verdicts(
    case: Case, responses: Sequence[Response], dimensions: Sequence[str]
) -> dict[str, Verdict]:
    """Returns one verdict for each dimension in which all presented orders count together.

    A judge prefers an answer where both orders, each by the majority of its votes, say so. Where
    they differ there is no choice, and the reason is "orders_disagree". Probabilities are the mean
    of the orders; one in which neither answer is named counts as 0.5. Rewards have one order.
    """
    by_dimension: dict[str, list[Verdict]] = {}
    for verdict in verdicts_of(case, responses, dimensions, dimensions, ("robust",)):
        by_dimension.setdefault(verdict.dimension, []).append(verdict)
    agreed = {}
    for name, verdicts in by_dimension.items():
        reasons = [verdict.reason for verdict in verdicts if verdict.reason is not None]
        if not reasons and len({verdict.outcome for verdict in verdicts}) > 1:
            reasons = ["orders_disagree"]
        stated = [verdict.probability_a for verdict in verdicts]
        mean = sum(0.5 if value is None else value for value in stated) / len(stated)
        agreed[name] = replace(
            verdicts[0],
            protocol=None,
            order="both",
            outcome=UNREAD if reasons else verdicts[0].outcome,
            reason=reasons[0] if reasons else None,
            probability_a=None if set(stated) == {None} else mean,
            cluster="",
        )
    return agreed


def is_official(response: Response, scorer_dimensions: Sequence[str]) -> bool:
    """Returns whether the official protocol can read a response; see `can_be_official`."""
    return can_be_official(response.readout, response.dimension is not None, scorer_dimensions)


def can_be_official(readout: str, per_dimension: bool, scorer_dimensions: Sequence[str]) -> bool:
    """Returns whether the official protocol can read what a readout writes.

    The released scorer reads a text only as one reply on all of its six dimensions. Rewards and
    probabilities are no reply; there only the way of counting is the released scorer's.

    Args:
        readout: how the model is read.
        per_dimension: whether each dimension is asked about in a call of its own.
        scorer_dimensions: all dimensions that are asked about.
    """
    if readout in READOUTS and not READOUTS[readout].official:
        return False
    return not writes_text(readout) or (
        not per_dimension and set(DIMENSIONS) <= set(scorer_dimensions)
    )


def read_response(
    response: Response, scorer_dimensions: Sequence[str], protocol: Protocol = "robust"
) -> dict[str, Verdict]:
    """Returns what one response says on the dimensions it is about, in terms of stored answers.

    The verdicts lack what the case says: label, cluster and groups; see `labelled`.

    Args:
        response: of any scorer.
        scorer_dimensions: the scorer's dimensions.
        protocol: whose parser reads a reply.
    """
    names = tuple(scorer_dimensions) if response.dimension is None else (response.dimension,)
    unread = {
        name: Verdict(response.case_id, name, protocol, response.order, UNREAD) for name in names
    }
    if response.state != "ok":
        failure = (response.reason if response.state == "error" else None) or response.state
        return {name: replace(verdict, reason=failure) for name, verdict in unread.items()}
    if response.rewards is not None:
        return {
            name: _highest_reward(unread[name], rewards, response.readout)
            for name, rewards in response.rewards.items()
            if name in unread
        }
    if response.probabilities is not None:
        return {
            name: _more_probable(unread[name], probabilities)
            for name, probabilities in response.probabilities.items()
            if name in unread
        }
    parsed = parse_verdict(response.text or "", _PARSERS[protocol], names)
    reason = unread_reason(response, parsed.reason)
    return {
        name: replace(unread[name], reason=reason)
        if outcome is None
        else replace(unread[name], outcome=stored_outcome(outcome, response.order))
        for name, outcome in parsed.outcomes.items()
    }


def is_cut_off(finish_reason: str | None) -> bool:
    """Returns whether a reply ended because it reached its longest length.

    >>> is_cut_off("MAX_TOKENS"), is_cut_off("stop")
    (True, False)
    """
    return (finish_reason or "").lower() in _LENGTH_REASONS


def unread_reason(response: Response, parser_reason: str | None) -> str | None:
    """Returns why a reply is unread: that it was cut off, and where, else what the parser says."""
    if not is_cut_off(response.finish_reason):
        return parser_reason
    return f"{CUT_OFF}: {UNENDED}" if parser_reason == UNENDED else CUT_OFF


def labelled(case: Case, verdict: Verdict) -> Verdict:
    """Returns the verdict with what the case says: label, shares, cluster and groups.

    Scores of a pair become `score_a` and `score_b`.
    """
    label, shares = label_of(case.labels.get(verdict.dimension), len(case.answers))
    scores = verdict.scores
    is_pair = len(case.answers) == 2
    score_a, score_b = scores if scores is not None and is_pair else (None, None)
    return replace(
        verdict,
        label=label,
        label_shares=shares,
        score_a=score_a,
        score_b=score_b,
        cluster=case.cluster or case.case_id,
        groups=dict(case.groups),
        scores=None if is_pair else scores,
    )


def label_of(label: Label | None, answers: int) -> tuple[Expected | None, tuple[float, ...] | None]:
    """Returns the majority label as it is written, and the vote shares behind it.

    A pair has the shares (A, tie, B) of the votes that accept an answer. K > 2 rankings have the
    share of the votes for each answer, a tie on top being split evenly. Their label is what more
    than half of the votes put on top: an answer, several of them, or a tie where that is all.
    """
    if label is None:
        return None, None
    if isinstance(label, RankingLabel):
        tops = [ranking[0] for ranking in label.rankings]
        shares = tuple(
            sum(1 / len(top) for top in tops if index in top) / len(tops)
            for index in range(answers)
        )
        best = next((top for top in tops if tops.count(top) > len(tops) / 2), None)
        if best is None:
            return None, shares
        return (best[0] if len(best) == 1 else TIE if len(best) == answers else best), shares
    choice = NEITHER if label.unacceptable else label.choice
    return (LETTERS[choice] if isinstance(choice, int) else choice), label.shares


def _robust_verdicts(
    calls: Sequence[Response], scorer_dimensions: Sequence[str], answer_count: int
) -> dict[str, Verdict]:
    """Returns what the calls of one order say on each dimension, over all votes and pairs."""
    votes: dict[str, dict[tuple[int, int] | None, list[Verdict]]] = {}
    for call in calls:
        for name, verdict in read_response(call, scorer_dimensions).items():
            votes.setdefault(name, {}).setdefault(call.pair, []).append(verdict)
    merged = {}
    for name, votes_by_pair in votes.items():
        by_pair = {pair: _majority(pair_votes) for pair, pair_votes in votes_by_pair.items()}
        if answer_count == 2 or writes_rewards(calls[0].readout):
            merged[name] = next(iter(by_pair.values()))
        else:
            merged[name] = _round_robin(by_pair, answer_count)
    return merged


def _majority(votes: Sequence[Verdict]) -> Verdict:
    """Returns what most of the votes that were read say.

    The probability is the share of A among the votes for A or B.
    """
    read = [vote.outcome for vote in votes if vote.outcome != UNREAD]
    if len(votes) == 1 or not read:
        return votes[0]
    outcome = majority(read)
    if outcome is None:
        return replace(votes[0], outcome=UNREAD, reason="votes_split")
    decided = [letter for letter in read if letter in LETTERS]
    share = decided.count("A") / len(decided) if decided else None
    return replace(votes[0], outcome=outcome, reason=None, probability_a=share)


def _round_robin(by_pair: Mapping[tuple[int, int] | None, Verdict], answer_count: int) -> Verdict:
    """Returns who wins most comparisons; `scores` are the shares that each answer wins.

    A tie is half a win for both, what is unread a win for neither.

    Raises:
        DataError: not every two answers were compared.
    """
    first_verdict = next(iter(by_pair.values()))
    if by_pair.keys() != set(combinations(range(answer_count), 2)):
        raise DataError(
            f"The responses about case {first_verdict.case_id!r} on {first_verdict.dimension} do "
            f"not compare every two of its {answer_count} answers. {EVALUATE_AGAIN}"
        )
    if all(verdict.outcome == UNREAD for verdict in by_pair.values()):
        return first_verdict
    wins = [0.0] * answer_count
    for pair, verdict in by_pair.items():
        share = {LETTERS[0]: 1.0, LETTERS[1]: 0.0, TIE: 0.5}.get(str(verdict.outcome))
        if pair is not None and share is not None:
            wins[pair[0]] += share
            wins[pair[1]] += 1 - share
    scores = tuple(won / (answer_count - 1) for won in wins)
    return replace(
        first_verdict, outcome=_best(scores), reason=None, probability_a=None, scores=scores
    )


def _more_probable(unread: Verdict, probabilities: tuple[float, float, float]) -> Verdict:
    if not all(map(math.isfinite, probabilities)):
        raise ValueError(
            f"The model judged case {unread.case_id!r} with the probabilities {probabilities}."
        )
    first, second, _ = probabilities
    if first + second == 0:
        return replace(unread, reason="no_mass")
    return replace(unread, outcome=_best((first, second)), probability_a=first / (first + second))


def _highest_reward(unread: Verdict, rewards: tuple[float, ...], readout: str) -> Verdict:
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"The model scored case {unread.case_id!r} with {rewards}.")
    scale = READOUTS[readout].rewards_are if readout in READOUTS else None
    probability = None
    if scale == "probabilities":
        probability = rewards[0]
    elif scale == "log_odds" and len(rewards) == 2:
        # Bradley-Terry: P(A) = sigmoid(reward of A - reward of B); exp would overflow above 709.
        probability = 1 / (1 + math.exp(min(rewards[1] - rewards[0], 700.0)))
    return replace(unread, outcome=_best(rewards), probability_a=probability, scores=rewards)


def _best(scores: Sequence[float]) -> Outcome:
    """Returns the answer with the highest score; equal scores at the top are a tie."""
    highest = max(scores)
    best = [index for index, score in enumerate(scores) if score == highest]
    if len(best) > 1:
        return TIE
    return LETTERS[best[0]] if len(scores) == 2 else best[0]
