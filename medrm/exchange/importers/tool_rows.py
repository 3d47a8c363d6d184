"""What importers of annotation tools share: which rows count, and in which order answers stood.

Each turns an export into a table with a row for each rater and task. What its columns hold, says
`tool_mapping.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from medrm.data.row_tables import LocatedRow, Row, decode_json
from medrm.exchange.imported import Opened, Unread, unread
from medrm.exchange.project_form import ORDER, answer_field
from medrm.exchange.shown_order import order_problem
from medrm.exchange.tables.grid import number_of

SHOWN_FIRST = "shown_first"
"""A column that says which of two stored answers stood first (on the left): `A` or `B`."""

RANK = "_rank"
"""How columns end that hold ranks of answers, before their numbers."""

_NUMBERED = re.compile(r"(.*?[a-z][ _.-]?)([1-9]\d?)", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"(answer|response|antwort|output|completion|candidate)[ _.-]?", re.IGNORECASE)


@dataclass
class Tally:
    """What a tool's file holds beside its rows, and what raters said.

    Attributes:
        unread: annotations that cannot be taken.
        remarks: what else there is, such as drafts, which are left out, and how often.
        controls: columns of what raters chose, rated or ranked.
        knows_controls: whether all of them are named; else any column may be one.
        rated: those of them that hold numbers.
        dimensions: what they are about, where the export says so.
        addresses: of raters who are known by a number.
    """

    unread: list[Unread] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    controls: set[str] = field(default_factory=set)
    knows_controls: bool = True
    rated: set[str] = field(default_factory=set)
    dimensions: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """The remarks as sentences."""
        return [f"{text[0].upper()}{text[1:]}: {n:,}." for text, n in self.remarks.items() if n]


Rows = Callable[[Opened, Tally], Iterator[LocatedRow]]
"""Reads an export and yields a row for each rater and task; what is none goes into the tally."""


def newest(
    rows: Callable[[Tally], Iterator[LocatedRow]], tally: Tally, task: str, time: str
) -> Iterator[LocatedRow]:
    """Yields the rows, of several by one rater on one task the newest; the others are unread.

    Args:
        rows: yields rows with the column `annotator`, whenever it is called.
        tally: takes what is left out.
        task: the column that names the task.
        time: the column of the time; where it is the same, the later row counts.
    """
    chosen: dict[tuple[str, str], tuple[float, str]] = {}
    for place, row in rows(Tally()):
        rater, moment = _rater(row, task, place), timestamp(row.get(time))
        if rater not in chosen or moment >= chosen[rater][0]:
            chosen[rater] = moment, place
    for place, row in rows(tally):
        _, counted = chosen[_rater(row, task, place)]
        if counted == place:
            yield place, row
        else:
            reason = f"the same rater answered this task again ({counted}); the newest counts"
            tally.unread.append(unread(place, reason, row))


def _rater(row: Row, task: str, place: str) -> tuple[str, str]:
    """Returns the task that a row is about, alone where that is unknown, and the rater."""
    stated = row.get(task)
    return (place if stated is None else f"task {stated}"), str(row.get("annotator"))


def timestamp(stated: Any) -> float:
    """Returns a time in seconds since 1970; of what is none, minus infinity.

    >>> timestamp("1970-01-01T00:01:00Z"), timestamp(60), timestamp("yesterday")
    (60.0, 60.0, -inf)
    """
    if isinstance(stated, int | float) and abs(stated) < 1e15:
        return float(stated)
    try:
        moment = datetime.fromisoformat(stated)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return -math.inf


def numbered(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the columns that are numbered from 1 without a gap, at least two, by their stem.

    >>> numbered(["q", "answer_2", "answer_1", "rank 1", "b_1", "b_3"])
    {'answer_': ['answer_1', 'answer_2']}
    """
    stems: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            stems[match[1]][int(match[2])] = name
    return {
        stem: [columns[number] for number in sorted(columns)]
        for stem, columns in stems.items()
        if len(columns) > 1 and sorted(columns) == list(range(1, len(columns) + 1))
    }


def answer_columns(names: Iterable[str]) -> list[str]:
    """Returns the numbered columns that hold answers; empty: there are none."""
    stems = numbered(names)
    return next((stems[stem] for stem in stems if _ANSWER.fullmatch(stem)), [])


def in_stored_order(row: Row) -> Row:
    """Returns a row with its answers in numbered columns, in the order in which they are stored.

    Where they were shown in another one, `order` says so, as `medrm data export` writes it into a
    task: the numbers of the stored answers from 0, as shown. Numbered answers, ratings and ranks
    are put back, and `SHOWN_FIRST` says what a letter means.

    Raises:
        ValueError: `order` is a list of something else.
    """
    texts, order = row.get("answers"), decoded(row.get(ORDER))
    if isinstance(texts, list):
        row = {name: row[name] for name in row if name != "answers"}
        row |= {answer_field(number): text for number, text in enumerate(texts, start=1)}
    answers = answer_columns([*row])
    stored = {**row, SHOWN_FIRST: "A"} if len(answers) < 3 else row
    if not isinstance(order, list) or not answers:
        return stored
    if problem := order_problem(order, len(answers)):
        raise ValueError(problem)
    stored = dict(stored)
    if SHOWN_FIRST in stored:
        stored[SHOWN_FIRST] = "AB"[order[0]]
    for names in numbered([*row]).values():
        if names == answers or (len(names) == len(order) and all_numbers(map(row.get, names))):
            stored |= {names[index]: row[name] for index, name in zip(order, names, strict=True)}
    return stored


def decoded(cell: Any) -> Any:
    """Returns a cell whose text may be a list or an object in JSON."""
    if not isinstance(cell, str) or not cell.startswith(("[", "{")):
        return cell
    try:
        return decode_json(cell)
    except (ValueError, RecursionError):
        return cell


def all_numbers(cells: Iterable[Any]) -> bool:
    """Returns whether cells are numbers, or empty."""
    return all(cell in (None, "") or number_of(cell) is not None for cell in cells)


def single(said: Any) -> Any:
    """Returns the one thing that a list holds; nothing of an empty one, and any other as it is."""
    if not isinstance(said, list) or len(said) > 1:
        return said
    return said[0] if said else None
