"""What one vote says: its value as files write it, its time, its confidence and its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medrm.data.row_tables import Row
from medrm.data.sources import Strength, Vote, VoteValue
from medrm.errors import DataError, shortened
from medrm.schema import LETTERS, Choice, Ranking

CHOICE_OF: dict[str, Choice] = {"A": 0, "B": 1, "tie": "tie"}

GRADED: dict[str, tuple[VoteValue, Strength | None]] = {
    "neither": ("neither", None),
    "strongly_a": (0, "strongly"),
    "slightly_a": (0, "slightly"),
    "slightly_b": (1, "slightly"),
    "strongly_b": (1, "strongly"),
}

_DETAILS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seconds": (lambda stated: _is_number(stated) and stated >= 0, "a number of 0 or more"),
    "confidence": (
        lambda stated: isinstance(stated, str) or _is_number(stated),
        "text or a number",
    ),
    "reason": (lambda stated: isinstance(stated, str), "text"),
}
DETAILS = tuple(_DETAILS)
"""Columns of what belongs to a vote: a value for all votes of a line, or dimension to value."""


_LARGEST = 1e15
"""Of numbers that votes state; all below it are exact enough as floating-point numbers."""


def _is_number(stated: Any) -> bool:
    is_number = isinstance(stated, int | float) and not isinstance(stated, bool)
    return is_number and abs(stated) < _LARGEST


def read_votes_cast(row: Row, answers: int) -> tuple[dict[str, Vote], list[str]]:
    """Returns the votes of a line by dimension, and what is wrong with them.

    A dimension whose value is null has no vote.

    Args:
        row: with an object in `votes`.
        answers: how many a case has.
    """
    details, problems = _read_details(row)
    votes = {}
    for dimension, value in row["votes"].items():
        if value is None:
            continue
        try:
            stated, strength = read_vote(value, answers)
        except DataError as error:
            problems.append(f"{dimension!r} is {shortened(repr(value))}; {error}")
            continue
        of_vote = {name: by_dimension.get(dimension) for name, by_dimension in details.items()}
        votes[dimension] = Vote(str(row["annotator"]), stated, strength, **of_vote)
    return votes, problems


def _read_details(row: Row) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns each of `DETAILS` by dimension, and what is wrong with them."""
    details: dict[str, dict[str, Any]] = {}
    problems = []
    for name, (accepts, expectation) in _DETAILS.items():
        stated = row.get(name)
        if stated is None:
            continue
        by_dimension = stated if isinstance(stated, dict) else dict.fromkeys(row["votes"], stated)
        stated_for = {key: value for key, value in by_dimension.items() if value is not None}
        refused = {repr(value): True for value in stated_for.values() if not accepts(value)}
        problems += [f"{name!r} is {shortened(value)}; give {expectation}" for value in refused]
        details[name] = {key: value for key, value in stated_for.items() if accepts(value)}
        if unvoted := [key for key in stated_for if key not in row["votes"]]:
            named = shortened(", ".join(map(repr, unvoted)))
            problems.append(f"{name!r} names {named}, which 'votes' does not name")
    return details, problems


def read_vote(value: Any, answers: int) -> tuple[VoteValue, Strength | None]:
    """Returns the value and the strength of a vote: of a pair a choice, else a ranking.

    Raises:
        DataError: what is accepted in place of this value.
    """
    if answers == 2:
        if isinstance(value, str) and value in CHOICE_OF:
            return CHOICE_OF[value], None
        if isinstance(value, str) and value in GRADED:
            return GRADED[value]
        if not isinstance(value, list):
            graded = ", ".join(map(repr, GRADED))
            raise DataError(f"accepted are 'A', 'B', 'tie' or null; also {graded}")
    ranking = _ranking(value)
    if ranking is None or sorted(index for tied in ranking for index in tied) != list(
        range(answers)
    ):
        raise DataError(
            f"accepted is a ranking that names each of 0 to {answers - 1} once, best first, such "
            "as [[0, 2], 1]"
        )
    if answers > 2:
        return ranking, None
    return ("tie" if len(ranking) == 1 else ranking[0][0]), None


def _ranking(value: Any) -> Ranking | None:
    """Returns a list of indices and lists of indices as a ranking."""
    if not isinstance(value, list):
        return None
    levels = [level if isinstance(level, list) else [level] for level in value]
    if not all(level and all(type(index) is int for index in level) for level in levels):
        return None
    return tuple(tuple(sorted(level)) for level in levels)


def vote_value(vote: Vote) -> str | list[list[int]]:
    """Returns the value of a vote as a votes file writes it; the inverse of `read_vote`.

    >>> vote_value(Vote("dr-1", 1, "slightly")), vote_value(Vote("dr-1", ((2,), (0, 1))))
    ('slightly_b', [[2], [0, 1]])
    """
    if isinstance(vote.value, tuple):
        return [list(tied) for tied in vote.value]
    letter = LETTERS[vote.value] if isinstance(vote.value, int) else vote.value
    return letter if vote.strength is None else f"{vote.strength}_{letter.lower()}"
