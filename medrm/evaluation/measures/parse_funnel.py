"""How a judge's replies were read, for `report.json`; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from medrm.parsers import Parser, parse_verdict
from medrm.parsers.parsed import Parsed
from medrm.readouts import writes_rewards, writes_text
from medrm.schema import UNREAD, Response
from medrm.scorer.verdict_rules import CUT_OFF, is_official
from medrm.statistics.intervals import mean

NONE = "none"
"""The stage of a reply that no rule could read."""


def parsing_measures(
    responses: Sequence[Response], dimensions: Sequence[str]
) -> dict[str, Any] | None:
    """Returns `parsing`: what became of a judge's calls; None for rewards.

    `official` counts the replies that the released scorer's rules read (first vote, forward order),
    `strict` all replies. Both are None where nothing was written, `official` also where less than
    the six dimensions were asked about at a time.

    Args:
        responses: all of an evaluation.
        dimensions: the judge's dimensions.
    """
    if not responses or writes_rewards(responses[0].readout):
        return None
    replies = [call for call in responses if writes_text(call.readout) and call.state == "ok"]
    first = [
        reply
        for reply in replies
        if reply.vote == 0 and reply.order == "forward" and is_official(reply, dimensions)
    ]
    return {
        "calls": len(responses),
        "states": _counts(response.state for response in responses),
        "finish_reasons": _counts(response.finish_reason or NONE for response in replies),
        "official": _official(first, dimensions) if first else None,
        "strict": _funnel(_parsed(replies, dimensions, "strict")) if replies else None,
    }


def verdict_mass(responses: Sequence[Response]) -> float | None:
    """Returns the mean probability of naming one of the two answers; None where none is stated.

    Where it is small, the verdicts compare two things the model would hardly ever say.
    """
    stated = [response.probabilities.values() for response in responses if response.probabilities]
    return mean(mass for of_dimension in stated for _, _, mass in of_dimension)


def kind_of(reason: str | None) -> str:
    """Returns why something is unread, without the names and words that follow a colon."""
    return (reason or UNREAD).partition(":")[0]


def _official(replies: Sequence[Response], dimensions: Sequence[str]) -> dict[str, Any]:
    """The funnel, and the dropped replies of which the strict parser reads some dimension."""
    parsed_replies = _parsed(replies, dimensions, "official")
    dropped = (reply for reply, parsed in parsed_replies if parsed.stage is None)
    strict = _parsed(dropped, dimensions, "strict")
    readable = sum(any(parsed.outcomes.values()) for _, parsed in strict)
    return {**_funnel(parsed_replies), "voided_but_readable": readable}


def _parsed(
    replies: Iterable[Response], dimensions: Sequence[str], parser: Parser
) -> list[tuple[Response, Parsed]]:
    parsed_replies = []
    for reply in replies:
        names = [reply.dimension] if reply.dimension else dimensions
        parsed_replies.append((reply, parse_verdict(reply.text or "", parser, names)))
    return parsed_replies


def _funnel(parsed_replies: Sequence[tuple[Response, Parsed]]) -> dict[str, Any]:
    """Counts of replies: by the rule that read them, and by why not all of one was read."""
    return {
        "stages": _counts(parsed.stage or NONE for _, parsed in parsed_replies),
        "suspect": sum(parsed.suspect for _, parsed in parsed_replies),
        "unread": _counts(
            CUT_OFF if reply.finish_reason == "length" else kind_of(parsed.reason)
            for reply, parsed in parsed_replies
            if None in parsed.outcomes.values()
        ),
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first, then by name."""
    return dict(Counter(sorted(names)).most_common())
