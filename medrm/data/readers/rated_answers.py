"""Lists of answers with ratings of each, as UltraFeedback has them, as rankings with ties."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from medrm.data.readers.vote_values import read_vote
from medrm.data.row_tables import Row
from medrm.data.sources import Vote
from medrm.errors import DataError, shortened
from medrm.files import fits

_ANSWERS = ("completions", "responses", "generations", "answers")
"""Columns of a list of answers."""

_SCORES = ("scores", "ratings")
"""Columns of a number for each answer, more is better; or of an object, dimension to numbers."""

_RANKS = ("ranks", "ranking")

RATED_COLUMNS = (*_ANSWERS, *_SCORES, *_RANKS)
"""All columns of answers and their ratings."""

_TEXTS = ("response", "text", "completion", "output")
"""Keys of an answer's text, where it is an object."""

_WHOLE = ("overall_score", "fine-grained_score", "score", "rating")
"""Keys of an answer's rating as a whole, where it is an object; the first that all have counts."""


def objects_of(cell: Any) -> Any:
    """Returns a list of objects that a table keeps as an object of lists; else the cell itself."""
    if not fits(cell, dict[str, list[Any]]) or len({*map(len, cell.values())}) != 1:
        return cell
    return [dict(zip(cell, held, strict=True)) for held in zip(*cell.values(), strict=True)]


def answers_column(columns: Collection[str]) -> str | None:
    """Returns the column of the answers, where they are rated in their own or in other columns."""
    column = next((name for name in _ANSWERS if name in columns), None)
    has_ratings = not {*_SCORES, *_RANKS}.isdisjoint(columns)
    return column if has_ratings or column == "completions" else None


def rated_answers(row: Row) -> dict[str, Any]:
    """Returns what messages call each answer, to the answer: a text or messages.

    Raises:
        DataError: they are no list.
    """
    answers = {}
    for index, stated in enumerate(_stated(row)):
        keys = [key for key in _TEXTS if isinstance(stated, dict) and key in stated]
        answers[f"answer {index}"] = stated[keys[0]] if keys else stated
    return answers


def rated_votes(row: Row, dimension: str) -> dict[str, list[Vote]]:
    """Returns a vote on a row's answers by dimension: a ranking with equal ratings as ties.

    A dimension on which one of the answers has no rating is left out.

    Args:
        row: with its answers and their ratings.
        dimension: of ratings that name none.

    Raises:
        DataError: no dimension is rated for each answer, or ranks can be read in two ways.
    """
    answers = _stated(row)
    ratings = _inner_ratings(answers, dimension)
    for cell in (row[name] for name in _SCORES if row.get(name) is not None):
        ratings |= cell if isinstance(cell, dict) else {dimension: cell}
    rankings = {}
    for name, rated in ratings.items():
        numbers = _numbers(rated, len(answers), name)
        if numbers is not None:
            rankings[name.strip().lower().replace(" ", "_")] = _ranking(numbers)
    if row.get("ranks") is not None:
        numbers = _numbers(row["ranks"], len(answers), "ranks")
        rankings |= {} if numbers is None else {dimension: _ranking([-rank for rank in numbers])}
    elif row.get("ranking") is not None:
        rankings[dimension] = _stated_ranking(row["ranking"], len(answers))
    if not rankings:
        raise DataError("no dimension is rated for each of its answers")
    cast = {name: read_vote(ranking, len(answers)) for name, ranking in rankings.items()}
    return {name: [Vote("rating", value)] for name, (value, _) in cast.items()}


def _stated(row: Row) -> list[Any]:
    """Returns the answers as they are stated."""
    column = answers_column(row)
    answers = None if column is None else objects_of(row[column])
    if not isinstance(answers, list):
        raise DataError(f"{column!r} must be a list of answers")
    return answers


def _inner_ratings(answers: Sequence[Any], dimension: str) -> dict[str, Any]:
    """Returns the ratings that answers hold themselves, by dimension, one for each answer."""
    if not fits(answers, list[Row]):
        return {}
    aspects = [answer.get("annotations") for answer in answers]
    if not fits(aspects, list[Row]):
        aspects = [{} for _ in answers]
    names = dict.fromkeys(name for rated in aspects for name in rated)
    ratings: dict[str, Any] = {name: [rated.get(name) for rated in aspects] for name in names}
    whole = next(
        (key for key in _WHOLE if all(_number(a.get(key)) is not None for a in answers)), None
    )
    if whole is not None:
        ratings[dimension] = [answer[whole] for answer in answers]
    return ratings


def _numbers(rated: Any, count: int, name: str) -> list[float] | None:
    """Returns the rating of each answer; None where one has none.

    Raises:
        DataError: there is not one for each answer.
    """
    if not isinstance(rated, list) or len(rated) != count:
        raise DataError(f"{shortened(repr(name))} must hold {count} ratings, one for each answer")
    numbers = [number for number in map(_number, rated) if number is not None]
    return numbers if len(numbers) == count else None


def _number(rating: Any) -> float | None:
    """Returns a rating, which may be written as text or in an object; None where it is none."""
    if isinstance(rating, dict):
        rating = rating.get("Rating", rating.get("rating", rating.get("score")))
    if isinstance(rating, bool) or not isinstance(rating, int | float | str):
        return None
    try:
        number = float(rating)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _ranking(numbers: Sequence[float]) -> list[list[int]]:
    """Returns the indices of numbers, the largest first, equal ones together."""
    return [
        [index for index, number in enumerate(numbers) if number == level]
        for level in sorted(set(numbers), reverse=True)
    ]


def _stated_ranking(ranking: Any, count: int) -> Any:
    """Returns a ranking that is to be read as `votes.jsonl` has it.

    Raises:
        DataError: it is flat, which others write for the rank of each of more than two answers.
    """
    is_flat = isinstance(ranking, list) and not any(isinstance(tied, list) for tied in ranking)
    if count > 2 and is_flat:
        raise DataError(
            f"'ranking' {shortened(repr(ranking))} may be the answers from the best on, or the "
            "rank of each; write [[0], [2], [1]], or name the column of ranks 'ranks'"
        )
    return ranking
