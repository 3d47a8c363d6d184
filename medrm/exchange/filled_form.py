"""What a reader chose in a form of medrm's own, as votes on the answers as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from medrm.errors import DataError, shortened
from medrm.exchange.shown_order import STRENGTHS, VOTES, stored_ranking, turned, with_strength

_WORDS = {value.casefold(): value for value in (*VOTES, *STRENGTHS)}
_WORDS |= {"both unacceptable": "neither", "=": "tie"}


class Fields(NamedTuple):
    """The names of the fields of one dimension.

    Attributes:
        vote: which of two answers is better.
        strength: how far.
        ranks: of more than two answers, in the order in which they are shown.
    """

    vote: str
    strength: str
    ranks: Sequence[str]


def votes_of_form(
    text_of: Callable[[str], str], fields: Mapping[str, Fields], order: Sequence[int]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the votes of a form as `votes.jsonl` has them, and what is wrong with the others.

    Args:
        text_of: returns what a field holds; empty: nothing.
        fields: by dimension.
        order: stored indices of the answers, as they were shown.
    """
    votes: dict[str, Any] = {}
    problems = []
    for dimension, names in fields.items():
        try:
            vote = (
                _pair(text_of, names, order)
                if len(order) == 2
                else _ranking(list(map(text_of, names.ranks)), order)
            )
        except DataError as error:
            problems.append(f"{shortened(dimension)!r} {error}")
            continue
        if vote is not None:
            votes[dimension] = vote
    return votes, problems


def _pair(text_of: Callable[[str], str], names: Fields, order: Sequence[int]) -> str | None:
    """Returns a vote on two answers; None: there is none.

    Raises:
        DataError: the fields hold something else.
    """
    vote = _word(text_of(names.vote), VOTES)
    strength = _word(text_of(names.strength), STRENGTHS)
    if strength and vote not in ("A", "B"):
        raise DataError(f"is {strength!r} beside {vote or 'no vote'!r}; choose A or B, or none")
    return turned(with_strength(vote, strength), order) if vote else None


def _word(text: str, accepted: Sequence[str]) -> str:
    word = _WORDS.get(text.casefold())
    if text and word not in accepted:
        raise DataError(f"is {shortened(text)!r}; accepted are {', '.join(accepted)}")
    return word or ""


def _ranking(texts: Sequence[str], order: Sequence[int]) -> list[list[int]] | None:
    """Returns a ranking of more than two answers; None: no rank is given.

    Raises:
        DataError: some answer has none, or another one than there are answers.
    """
    if not any(texts):
        return None
    accepted = [str(rank) for rank in range(1, len(order) + 1)]
    if not all(text in accepted for text in texts):
        ranks = ", ".join(map(repr, texts))
        raise DataError(
            f"has the ranks {shortened(ranks)}; give each answer one of {', '.join(accepted)}"
        )
    return stored_ranking(dict(enumerate(map(int, texts))), order)
