"""From what a scorer said to verdict rows: rewards are compared, replies parsed, votes counted.

`rows_from_responses` is pure and needs no model: the lines of `responses.jsonl` give the same rows
again. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, get_args

from medrm.errors import DataError
from medrm.evaluation.records.jsonl import AGAIN
from medrm.evaluation.records.verdicts import Reading, row_of
from medrm.parsers import Parser, majority, parse_verdict, stored_outcome
from medrm.readouts import READOUTS, writes_text
from medrm.schema import (
    DIMENSIONS,
    LETTERS,
    ORDERS,
    TIE,
    UNREAD,
    Case,
    Order,
    Outcome,
    Protocol,
    Response,
    Verdict,
)

if TYPE_CHECKING:
    from medrm.scorer.runner import Scored

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

CUT_OFF = "cut_off"

NOT_OFFICIAL = (
    f"The official protocol reads one reply on all of {', '.join(DIMENSIONS)}; this judge "
    "is asked about less at a time. Give --protocol robust or both, or the prompt 'json' "
    "and all six dimensions."
)
"""What to do where `can_be_official` says no."""


@dataclass(frozen=True)
class Said:
    """Everything that a scorer said about one case.

    Attributes:
        case_id: of the case.
        responses: every call of a judge, forward orders first.
        scores: dimension to the K scores of a scalar model; None for a judge, or with a reason.
        reason: why a scalar model has no scores.
    """

    case_id: str
    responses: tuple[Response, ...] = ()
    scores: Mapping[str, tuple[float, ...]] | None = None
    reason: str | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is lost or doubled: a judge made the same calls, once, in both orders."""
        forward, backward = (
            [_call(one) for one in self.responses if one.order == o] for o in ORDERS
        )
        return forward == backward and len(set(forward)) == len(forward)

    def covers(self, dimensions: Iterable[str], answers: int) -> bool:
        """Whether it says something of these dimensions and so many answers, or why not."""
        if not self.responses:
            return self.scores is None or self.scores.keys() >= {*dimensions}
        made = {(one.dimension, one.pair) for one in self.responses}
        names, pairs = (set(parts) for parts in zip(*made, strict=True))
        names = {None} if None in names else {*dimensions}
        pairs = {None} if None in pairs else {*combinations(range(answers), 2)}
        return made >= {*product(names, pairs)}

    @property
    def failed(self) -> bool:
        """Whether a call came to nothing that another attempt may bring."""
        return any(one.state == "error" for one in self.responses)


def said_of(scored: Iterable[Scored], asked: Sequence[str]) -> Said:
    """Returns what a scorer yielded for one case.

    Args:
        scored: one entry for each order that it presents.
        asked: the scorer's dimensions, in the order of its columns.
    """
    presented = list(scored)
    first = presented[0]
    scores = None
    if first.scores is not None:
        columns = zip(asked, first.scores.T.tolist(), strict=True)
        scores = {name: tuple(column) for name, column in columns}
    responses = [response for one in presented for response in one.responses]
    return Said(first.case.case_id, in_order(responses, asked), scores, first.reason)


def in_order(responses: Iterable[Response], asked: Sequence[str]) -> tuple[Response, ...]:
    """Returns the responses about one case in the order in which they are written."""
    names = [None, *asked]
    return tuple(
        sorted(
            responses,
            key=lambda one: (one.order, names.index(one.dimension), one.vote, one.pair or ()),
        )
    )


def _call(response: Response) -> tuple[Any, ...]:
    return response.dimension, response.vote, response.pair


def rows_from_said(
    case: Case,
    said: Said,
    asked: Sequence[str],
    dimensions: Sequence[str],
    readout: str,
    protocols: Sequence[Protocol] = PROTOCOLS,
) -> list[Verdict]:
    """Returns the lines of `verdicts.jsonl` for what a scorer said about a case.

    The official protocol has the stored order only and knows pairs only.

    Args:
        case: that was judged.
        said: about it.
        asked: the scorer's dimensions.
        dimensions: the benchmark's dimensions; those the scorer lacks get no line.
        readout: how the scorer is read.
        protocols: which protocols to write.
    """
    if said.responses:
        return rows_from_responses(case, said.responses, asked, dimensions, protocols)
    pair = len(case.answers) == 2
    return [
        row_of(case, name, protocol, "forward", _read_scores(said, name, readout))
        for name in dimensions
        if name in asked
        for protocol in protocols
        if protocol == "robust" or pair
    ]


def rows_from_responses(
    case: Case,
    responses: Sequence[Response],
    asked: Sequence[str],
    dimensions: Sequence[str],
    protocols: Sequence[Protocol] = PROTOCOLS,
) -> list[Verdict]:
    """Returns the lines of `verdicts.jsonl` for a judge's responses about one case.

    Robust: the strict parser reads every vote, the majority of those read counts. Official: the
    released scorer's parser reads the first vote of the forward order, where `is_official`.
    Of more than two answers the one that wins most of its comparisons is preferred.

    Args:
        case: that was judged.
        responses: all of one or both orders.
        asked: the judge's dimensions.
        dimensions: the benchmark's dimensions; those that were not asked about get no line.
        protocols: which protocols to write.

    Raises:
        DataError: no response is about one of the dimensions.
    """
    rows = []
    judged = [name for name in dimensions if name in asked]
    orders: dict[Order, list[Response]] = {}
    for response in responses:
        orders.setdefault(response.order, []).append(response)
    for order, calls in orders.items():
        readings: dict[Protocol, Mapping[str, Reading]] = {}
        if "robust" in protocols:
            readings["robust"] = _robust(calls, asked, len(case.answers))
        pair = len(case.answers) == 2
        if "official" in protocols and order == "forward" and pair and is_official(calls[0], asked):
            first = [call for call in calls if call.vote == 0]
            readings["official"] = _merge(read_response(call, asked, "official") for call in first)
        for protocol, by_dimension in readings.items():
            for name in judged:
                if (
                    protocol == "official"
                    and writes_text(calls[0].readout)
                    and name not in DIMENSIONS
                ):
                    continue  # the released scorer knows no other
                if name not in by_dimension:
                    raise DataError(
                        f"There is no response about case {case.case_id!r} ({order}) on {name}. "
                        f"{AGAIN}"
                    )
                rows.append(row_of(case, name, protocol, order, by_dimension[name]))
    return rows


def is_official(response: Response, asked: Sequence[str]) -> bool:
    """Whether the released scorer's rules apply: to a reply on all of its six dimensions.

    Probabilities are no reply; there only the way of counting is the released scorer's.
    """
    return can_be_official(response.readout, response.dimension is not None, asked)


def can_be_official(readout: str, per_dimension: bool, asked: Sequence[str]) -> bool:
    """Whether the official protocol knows what is read so, and asked about at a time."""
    if readout in READOUTS and not READOUTS[readout].official:
        return False
    return not writes_text(readout) or (not per_dimension and set(DIMENSIONS) <= set(asked))


def read_response(
    response: Response, asked: Sequence[str], parser: Parser = "strict"
) -> dict[str, Reading]:
    """Returns what one response says on the dimensions it is about, in the stored frame.

    Args:
        response: of a judge.
        asked: the judge's dimensions.
        parser: of the reply, where there is one.
    """
    names = tuple(asked) if response.dimension is None else (response.dimension,)
    if response.state != "ok":
        detail = response.reason if response.state == "error" else None
        return dict.fromkeys(names, Reading(UNREAD, detail or response.state))
    if response.probabilities is not None:
        return {
            name: _more_probable(response.case_id, response.probabilities[name])
            for name in names
            if name in response.probabilities
        }
    parsed = parse_verdict(response.text or "", parser, names)
    reason = CUT_OFF if response.finish_reason == "length" else parsed.reason
    return {
        name: Reading(UNREAD, reason)
        if said is None
        else Reading(stored_outcome(said, response.order))
        for name, said in parsed.outcomes.items()
    }


def _robust(calls: Sequence[Response], asked: Sequence[str], answers: int) -> dict[str, Reading]:
    votes: dict[tuple[str, tuple[int, int] | None], list[Reading]] = {}
    for call in calls:
        for name, reading in read_response(call, asked).items():
            votes.setdefault((name, call.pair), []).append(reading)
    found = {key: _majority(read) for key, read in votes.items()}
    if answers == 2:
        return {name: reading for (name, _), reading in found.items()}
    rounds: dict[str, dict[tuple[int, int], Reading]] = {}
    for (name, pair), reading in found.items():
        if pair is not None:
            rounds.setdefault(name, {})[pair] = reading
    every = set(combinations(range(answers), 2))
    for name, of_pair in rounds.items():
        if of_pair.keys() != every:
            raise DataError(
                f"The responses about case {calls[0].case_id!r} on {name} do not compare every two "
                f"of its {answers} answers. {AGAIN}"
            )
    return {name: _round_robin(of_pair, answers) for name, of_pair in rounds.items()}


def _round_robin(found: Mapping[tuple[int, int], Reading], answers: int) -> Reading:
    """Who wins most comparisons; a tie is half a win for both, what is unread a win for neither."""
    if all(reading.outcome == UNREAD for reading in found.values()):
        return next(iter(found.values()))
    wins = [0.0] * answers
    for (first, second), reading in found.items():
        share = {LETTERS[0]: 1.0, LETTERS[1]: 0.0, TIE: 0.5}.get(str(reading.outcome))
        if share is not None:
            wins[first] += share
            wins[second] += 1 - share
    scores = tuple(won / (answers - 1) for won in wins)
    return Reading(_best(scores), None, None, scores)


def _majority(votes: Sequence[Reading]) -> Reading:
    """What most of the votes that were read say; the probability is their share for A over B."""
    if len(votes) == 1:
        return votes[0]
    read = [vote.outcome for vote in votes if vote.outcome != UNREAD]
    if not read:
        return votes[0]
    outcome = majority(read)
    if outcome is None:
        return Reading(UNREAD, "votes_split")
    decided = [said for said in read if said in LETTERS]
    return Reading(outcome, None, decided.count("A") / len(decided) if decided else None)


def _merge(readings: Iterable[Mapping[str, Reading]]) -> dict[str, Reading]:
    return {name: reading for one in readings for name, reading in one.items()}


def _more_probable(case_id: str, chances: tuple[float, float, float]) -> Reading:
    if not all(math.isfinite(chance) for chance in chances):
        raise ValueError(f"The model judged case {case_id!r} with the probabilities {chances}.")
    first, second, _ = chances
    if first + second == 0:
        return Reading(UNREAD, "no_mass")
    return Reading(_best((first, second)), None, first / (first + second))


def _read_scores(said: Said, dimension: str, readout: str) -> Reading:
    if said.reason is not None:
        return Reading(UNREAD, said.reason)
    if said.scores is None:
        raise ValueError(f"Case {said.case_id!r} has no score, no response and no reason.")
    scores = said.scores[dimension]
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"The model scored case {said.case_id!r} with {scores}.")
    chance = None
    scale = READOUTS[readout].rewards_are if readout in READOUTS else None
    if scale == "probabilities":
        chance = scores[0]
    elif scale == "log_odds" and len(scores) == 2:
        chance = 1 / (1 + math.exp(min(scores[1] - scores[0], 700.0)))
    return Reading(_best(scores), None, chance, scores)


def _best(scores: Sequence[float]) -> Outcome:
    """The answer with the highest score; equal scores at the top are a tie."""
    top = max(scores)
    best = [index for index, score in enumerate(scores) if score == top]
    if len(best) > 1:
        return TIE
    return LETTERS[best[0]] if len(scores) == 2 else best[0]
