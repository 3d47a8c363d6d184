"""One row of a released benchmark -> question, answers and votes, by the form of its file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medrm.data.drafts import Vote
from medrm.data.row_tables import Row
from medrm.errors import DataError

MET, NOT_MET = "The criterion is met.", "The criterion is not met."
"""The two answers of a case that asks whether a response meets a criterion, in this order."""

_RELEASED = "released"
_QUESTION = """\
Conversation:

{conversation}

Criterion: {criterion}

Does the last response of the assistant meet the criterion? A criterion may describe something \
undesirable; it is met where the response does what it describes."""


class Said(NamedTuple):
    """What a row says besides its images and groups."""

    question: str
    answers: tuple[str, ...]
    votes: list[Vote]


def pair_of(row: Row, columns: Mapping[str, str], case_id: str) -> Said:
    """Reads two answers and which of them is better.

    The columns hold `chosen` and `rejected`; or `first`, `second` and in `better` the name of one
    of these columns; or a list of `answers` and in `ranking` the rank of each, 0 the best. Of
    `chosen` and `rejected` a hash of the row decides which is stored first.

    Raises:
        DataError: a value of another kind.
    """
    question = text_of(row, columns["question"])
    if "chosen" in columns:
        chosen, rejected = (
            text_of(row, columns[key], empty=True) for key in ("chosen", "rejected")
        )
        better = _hash("\0".join((case_id, chosen, rejected)))[0] % 2
        answers = (rejected, chosen) if better else (chosen, rejected)
    elif "better" in columns:
        names = columns["first"], columns["second"]
        answers = (text_of(row, names[0], empty=True), text_of(row, names[1], empty=True))
        if row[columns["better"]] not in names:
            raise DataError(
                f"{columns['better']} is {row[columns['better']]!r}; accepted: {', '.join(names)}"
            )
        better = names.index(row[columns["better"]])
    else:
        first, second = _texts(row, columns["answers"], exactly=2)
        ranks = row[columns["ranking"]]
        if ranks not in ([0, 1], [1, 0]):
            raise DataError(f"{columns['ranking']} is {ranks!r}; accepted: [0, 1] or [1, 0]")
        answers, better = (first, second), ranks.index(0)
    return Said(question, answers, [Vote(_RELEASED, better)])


def best_of(row: Row, columns: Mapping[str, str], case_id: str) -> Said:
    """Reads any number of correct answers, all equally good, and of wrong ones.

    They are stored in the order of a hash, so that their places tell nothing.

    Raises:
        DataError: a value of another kind, or no answer of one sort.
    """
    right = _texts(row, columns["chosen"])
    wrong = _texts(row, columns["rejected"])
    places = sorted(range(len(right) + len(wrong)), key=lambda place: _hash(f"{case_id}\0{place}"))
    answers = tuple([*right, *wrong][place] for place in places)
    best = tuple(index for index, place in enumerate(places) if place < len(right))
    rest = tuple(index for index, place in enumerate(places) if place >= len(right))
    value = best[0] if len(answers) == 2 else (best, rest)
    return Said(text_of(row, columns["question"]), answers, [Vote(_RELEASED, value)])


def criterion_of(row: Row, columns: Mapping[str, str], case_id: str) -> Said:
    """Reads a conversation, a response, a criterion, and what each rater said of it.

    The first answer always says that the criterion is met, so that the rules `always_a` and
    `majority` are the rates of the raters.

    Raises:
        DataError: a value of another kind.
    """
    turns = row[columns["conversation"]]
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in turns
    ):
        raise DataError(f"{columns['conversation']} must be a list of messages (role, content)")
    response = {"role": "assistant", "content": text_of(row, columns["response"], empty=True)}
    question = _QUESTION.format(
        conversation="\n\n".join(
            f"{turn['role']}: {turn['content']}" for turn in (*turns, response)
        ),
        criterion=text_of(row, columns["criterion"]),
    )
    labels, raters = row[columns["labels"]], row[columns["raters"]]
    if (
        not isinstance(labels, list)
        or not isinstance(raters, list)
        or len(labels) != len(raters)
        or not all(isinstance(label, bool) for label in labels)
    ):
        raise DataError(
            f"{columns['labels']} must be a list of true or false, {columns['raters']} the name of "
            "each one's rater"
        )
    votes = [Vote(str(rater), 0 if met else 1) for rater, met in zip(raters, labels, strict=True)]
    return Said(question, (MET, NOT_MET), votes)


def text_of(row: Row, column: str, *, empty: bool = False) -> str:
    """Returns a text.

    Raises:
        DataError: it is none, or empty where that is not accepted.
    """
    value = row.get(column)
    if not isinstance(value, str) or not (value.strip() or empty):
        raise DataError(f"{column} is {value!r}; give text")
    return value


def _texts(row: Row, column: str, exactly: int | None = None) -> Sequence[str]:
    value: Any = row[column]
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(one, str) for one in value)
        or len(value) != (exactly or len(value))
    ):
        raise DataError(f"{column} must be a list of {exactly or 'one or more'} texts")
    return value


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
