"""Argilla 2's exports, of `datasets` and as nested JSON -> one row for each record and user.

The formats are those of argilla 2.8.0, `records/_io/_generic.py`: flat, with the columns
`q.responses`, `q.responses.users` and `q.responses.status` for each question `q`, or nested, where
the status of a response is lost.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from medrm.data.readers.votes_jsonl import listed
from medrm.data.row_tables import LocatedRow, Row
from medrm.exchange.imported import Opened, unread
from medrm.exchange.importers.tool_rows import RANK, Tally, decoded, single
from medrm.exchange.sheet_words import answer_side

_RESPONSES = ".responses"
_SHOWN = ("fields", "metadata")
_NOT_SHOWN = ("id", "status", "_server_id", "responses", "suggestions", "vectors", "score")
_LEFT_OUT = ("draft", "discarded")


class _Response(NamedTuple):
    question: str
    user: str
    value: Any
    status: Any


def is_argilla(opened: Opened) -> bool:
    """Returns whether a file is an export of Argilla."""
    is_nested = {"fields", "responses"} <= {*opened.columns}
    return is_nested or any(name.endswith(_RESPONSES) for name in opened.columns)


def response_rows(opened: Opened, tally: Tally) -> Iterator[LocatedRow]:
    """Yields what each user submitted on each record, with a column for each field and question."""
    rankings = _rankings(opened)
    for place, record in opened.records:
        responses = _responses(record)
        if responses is None:
            reason = "its responses are no lists of values and users, of one length"
            tally.unread.append(unread(place, reason, record))
            continue
        if not responses:
            tally.remarks["records without a response"] += 1
        shown = _shown(record)
        by_user: defaultdict[str, list[_Response]] = defaultdict(list)
        for response in responses:
            by_user[response.user].append(response)
        for user, of_user in by_user.items():
            said = _said(of_user, rankings, tally)
            if said:
                yield f"{place}, user {user}", {**shown, **said, "annotator": user}


def _rankings(opened: Opened) -> set[str]:
    """Returns the questions whose bare lists are rankings, best first, as the client returns them.

    A question of several labels has such lists as well, of what was chosen, in the order of its
    labels. So all lists of a ranking name all answers, and some of them in another order.
    """
    orders: defaultdict[str, set[tuple[int | None, ...]]] = defaultdict(set)
    for _, record in opened.records:
        for response in _responses(record) or ():
            if isinstance(response.value, list) and response.status not in _LEFT_OUT:
                orders[response.question].add(tuple(map(_number, response.value)))
    return {
        question
        for question, lists in orders.items()
        if all(_is_permutation(order) for order in lists)
        and len({*map(len, lists)}) == 1
        and any(order != (*range(1, len(order) + 1),) for order in lists)
    }


def _is_permutation(order: tuple[int | None, ...]) -> bool:
    return len(order) > 1 and {*order} == {*range(1, len(order) + 1)}


def _responses(record: Row) -> list[_Response] | None:
    """Returns the responses of a record; None: they are in no such form."""
    return _nested(record) if "responses" in record else _flat(record)


def _nested(record: Row) -> list[_Response] | None:
    """Returns the responses of nested JSON; None: it is in no such form."""
    questions = record["responses"]
    if not isinstance(questions, dict):
        return None
    responses = []
    for question, answers in questions.items():
        if not isinstance(answers, list) or not all(isinstance(one, dict) for one in answers):
            return None
        responses += [
            _Response(question, str(one.get("user_id")), one.get("value"), one.get("status"))
            for one in answers
        ]
    return responses


def _flat(record: Row) -> list[_Response] | None:
    """Returns the responses in the columns of a record; None: they are in no such form."""
    responses = []
    for column in record:
        values = decoded(record[column])
        if not column.endswith(_RESPONSES) or values is None:
            continue
        users, status = (decoded(record.get(f"{column}.{name}")) for name in ("users", "status"))
        if isinstance(values, list) and status is None:
            status = [None] * len(values)
        lists = (values, users, status)
        if not all(isinstance(one, list) for one in lists) or len({*map(len, lists)}) > 1:
            return None
        question = column.removesuffix(_RESPONSES)
        responses += [
            _Response(question, str(user), value, state)
            for value, user, state in zip(*lists, strict=True)
        ]
    return responses


def _shown(record: Row) -> Row:
    """Returns what users were shown of a record, of a chat the last turn as its question."""
    ids = listed([record.get(name) for name in ("id", "_server_id")])
    shown: Row = {"case_id": next(iter(ids), None)}
    if "responses" in record:
        for name in _SHOWN:
            stated = record.get(name)
            shown |= stated if isinstance(stated, dict) else {}
    else:
        columns = [name for name in record if _RESPONSES not in name and ".suggestion" not in name]
        shown |= {name: record[name] for name in columns if name not in _NOT_SHOWN}
    for name, cell in [*shown.items()]:
        turns: list[Any] = cell if isinstance(cell, list) else [None]
        if turns and all(isinstance(turn, dict) and "content" in turn for turn in turns):
            shown[name] = turns[-1]["content"]
            if turns[:-1]:
                shown["context"] = turns[:-1]
    return shown


def _said(responses: list[_Response], rankings: set[str], tally: Tally) -> Row:
    """Returns the columns of what a user submitted.

    Args:
        responses: of the user.
        rankings: questions whose bare lists are rankings.
        tally: is told what is left out, and what was said.
    """
    said: Row = {}
    for question, _, value, status in responses:
        if status in _LEFT_OUT:
            tally.remarks[f"responses that are {status}, left out"] += 1
            continue
        if status is None:
            tally.remarks["responses without their status, among which drafts may be"] += 1
        ranks = _ranks(value)
        if not ranks and question in rankings and isinstance(value, list):
            tally.remarks["rankings that have lost their ranks, and so which are equal"] += 1
            ranks = {_number(option) or str(option): rank for rank, option in enumerate(value, 1)}
        tally.controls.add(question)
        tally.dimensions.setdefault(question, question)
        if ranks:
            columns = {f"{question}{RANK}_{option}": rank for option, rank in ranks.items()}
            tally.controls |= columns.keys()
            said |= columns
            continue
        said[question] = single(value)
        if isinstance(said[question], int | float):
            tally.rated.add(question)
    return said


def _ranks(value: Any) -> dict[int | str, Any]:
    """Returns the rank of each option of a ranking, by the number of its answer where it has one.

    Args:
        value: a list of options with ranks, of which some may be equal; what else it may be, such
            as the labels that were chosen, has no ranks.
    """
    if isinstance(value, dict) and isinstance(value.get("value"), list):  # as columns store it
        ranks = value.get("rank")
        ranks = ranks if isinstance(ranks, list) else []
        pairs = list(zip(value["value"], ranks, strict=False))
    elif isinstance(value, list) and value and all(_is_ranked(one) for one in value):
        pairs = [(one.get("value"), one.get("rank")) for one in value]
    else:
        return {}
    return {_number(option) or str(option): rank for option, rank in pairs}


def _is_ranked(option: Any) -> bool:
    """Returns whether an option has a rank, which spans of a text have not."""
    return isinstance(option, dict) and {"value", "rank"} <= option.keys()


def _number(option: Any) -> int | None:
    """Returns the number of the answer that an option is named after; None: after none.

    >>> [_number(option) for option in ("response1", "Antwort B", "both")]
    [1, 2, None]
    """
    text = str(option)
    if match := re.fullmatch(r"\D*([1-9])", text):
        return int(match[1])
    return {"a": 1, "left": 1, "b": 2, "right": 2}.get(answer_side(text) or "")
