"""Comparisons that a critic was asked for in one text, and its reply, as LLaVA-Critic has them."""

from __future__ import annotations

import re

from medrm.data.row_tables import Row
from medrm.data.sources import Vote
from medrm.errors import DataError
from medrm.files import fits

_HEADERS = (
    ("Question: [",),
    ("Response 1: [", "Response A: [", "The first response: ["),
    ("Response 2: [", "Response B: [", "The second response: ["),
)
"""How the lines begin in which the question and the two responses begin; each ends with `]`."""

_VERDICT = re.compile(r"The better response: \[(\w{1,10})\]")
_CHOICES = {"first": 0, "1": 0, "a": 0, "second": 1, "2": 1, "b": 1}
_EQUAL = re.compile(r"responses are equally good\s*([.,;:]|$)", re.MULTILINE)
"""How a reply says so of the pair; the critic also finds them equally good in one respect."""


def critic_texts(row: Row) -> tuple[str, str, str]:
    """Returns the question and the two responses that the first message holds.

    Raises:
        DataError: it holds them in another form.
    """
    lines = _said(row)[0].splitlines()
    starts: list[int] = []
    for headers in _HEADERS:
        above = starts[-1] + 1 if starts else 0
        below = (n for n in range(above, len(lines)) if lines[n].lstrip().startswith(headers))
        starts.append(next(below, len(lines)))
    if starts[-1] == len(lines):
        raise DataError("its text has no question and two responses, each in brackets")
    question, first, second = (
        "\n".join(lines[start:end]).partition("[")[2].rpartition("]")[0].strip()
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)
    )
    return question, first, second


def critic_votes(row: Row, dimension: str) -> dict[str, list[Vote]]:
    """Returns the vote of the critic, whose reply is its reason.

    Raises:
        DataError: the reply names neither response, and does not call them equally good.
    """
    reply = _said(row)[1]
    verdict = _VERDICT.search(reply)
    if verdict is not None and verdict[1].lower() in _CHOICES:
        return {dimension: [Vote("critic", _CHOICES[verdict[1].lower()], reason=reply)]}
    if verdict is None and _EQUAL.search(reply):
        return {dimension: [Vote("critic", "tie", reason=reply)]}
    raise DataError("its verdict is not understood; accepted are one of the responses, and a tie")


def _said(row: Row) -> tuple[str, str]:
    """Returns what the critic is asked, without marks of images, and its reply."""
    turns = row.get("conversations")
    if not fits(turns, list[Row]) or [turn.get("from") for turn in turns or ()] != ["human", "gpt"]:
        raise DataError("'conversations' is not one question to the critic and its reply")
    asked, reply = (turn.get("value") for turn in turns or ())
    if not isinstance(asked, str) or not isinstance(reply, str):
        raise DataError("'conversations' holds a message without a text")
    return asked.replace("<image>", ""), reply
