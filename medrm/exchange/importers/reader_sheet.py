"""medrm's own sheet, as `medrm data export --to sheet` wrote it and a reader filled it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from medrm.data.row_tables import LocatedRow, Row, decode_json
from medrm.errors import DataError
from medrm.exchange.case_files import CASES_FILE, read_cases_file
from medrm.exchange.filled_form import Fields, votes_of_form
from medrm.exchange.imported import Imported, Opened, unread
from medrm.exchange.sheet_form import (
    ANNOTATOR,
    COMMENT,
    CONFIDENCE,
    MARK,
    REASON,
    SECONDS,
    case_key,
    original_text,
    rank_column,
    read_mark,
    strength_column,
    vote_column,
)


def is_reader_sheet(opened: Opened) -> bool:
    """Returns whether a table has the mark of medrm's own sheets."""
    return MARK in opened.columns


def read_reader_sheet(opened: Opened) -> Imported:
    """Returns the votes of a filled sheet, on the answers as they are stored.

    Raises:
        DataError: the cases of its export do not lie beside it.
    """
    exported = read_cases_file(opened.path.parent)
    if not exported:
        raise DataError(
            f"{opened.path} is a sheet of `medrm data export`, and the {CASES_FILE} of that export "
            "is not beside it. Put the sheet back into the folder of its export."
        )
    imported = Imported(iter(()))
    imported.lines = _Sheet(opened, imported, exported).lines()
    return imported


class _Sheet:
    """A sheet of which each row becomes a line.

    Args:
        opened: the file.
        imported: is told what is not taken.
        exported: the cases of the export.
    """

    def __init__(self, opened: Opened, imported: Imported, exported: dict[str, Row]) -> None:
        self._opened, self._imported = opened, imported
        self._cases = {case_key(line): line for line in exported.values()}
        prefix = vote_column("")
        names = [name.removeprefix(prefix) for name in opened.columns if name.startswith(prefix)]
        prefix = rank_column("", 0)
        names += [name.removeprefix(prefix) for name in opened.columns if name.startswith(prefix)]
        self._dimensions = names

    def lines(self) -> Iterator[LocatedRow]:
        """Yields a line for each row with a vote."""
        stated = {self._text(row, ANNOTATOR) for _, row in self._opened.records} - {""}
        reader = stated.pop() if len(stated) == 1 else ""
        unnamed: Counter[str] = Counter()
        for place, row in self._opened.records:
            line, problem = self._line(place, row, reader)
            if problem is not None:
                self._imported.unread.append(unread(place, problem, _written(row)))
                continue
            unnamed[reader] += not self._text(row, ANNOTATOR)
            yield place, line
        if unnamed.total():
            note = f"{unnamed.total()} rows name no annotator; they count as {reader!r}'s."
            self._imported.notes.append(note)

    def _line(self, place: str, row: Row, reader: str) -> tuple[Row, str | None]:
        """Returns the line of a row, and why there is none."""
        annotator = self._text(row, ANNOTATOR) or reader
        mark = read_mark(self._text(row, MARK))
        case = self._cases.get(mark[0]) if mark else None
        if mark is None or case is None or len(case["answers"]) != len(mark[1]):
            return {}, f"its cell {MARK!r} names no case of the {CASES_FILE} beside the sheet"
        votes, problems = votes_of_form(partial(self._text, row), self._fields(mark[1]), mark[1])
        for problem in problems:
            self._imported.unread.append(unread(place, problem, _written(row)))
        if not votes:
            return {}, "it has no vote"
        if not annotator:
            return {}, f"it names nobody in the column {ANNOTATOR!r}"
        line = {**case, "annotator": annotator, "votes": votes}
        details = {name: self._stated(row, name, votes) for name in (CONFIDENCE, REASON, SECONDS)}
        line |= {name: stated for name, stated in details.items() if stated is not None}
        if comment := self._text(row, COMMENT):
            line[COMMENT] = comment
        return line, None

    def _fields(self, order: Sequence[int]) -> dict[str, Fields]:
        return {
            name: Fields(
                vote_column(name),
                strength_column(name),
                [rank_column(name, number) for number in range(len(order))],
            )
            for name in self._dimensions
        }

    def _stated(self, row: Row, column: str, votes: Mapping[str, Any]) -> Any:
        """Returns what is stated for the whole row, or by dimension; None: nothing."""
        text = self._text(row, column)
        try:
            stated = decode_json(text)
        except (ValueError, RecursionError):
            return text or None
        if isinstance(stated, dict):
            return stated if stated and stated.keys() <= votes.keys() else text
        is_number = type(stated) in (int, float) and abs(stated) < math.inf
        return stated if is_number and column != REASON else text

    def _text(self, row: Row, column: str) -> str:
        cell = row.get(column)
        if isinstance(cell, float) and cell.is_integer():
            cell = int(cell)
        text = "" if cell is None else str(cell).strip()
        return original_text(text) if self._opened.suffix == ".csv" else text


def _written(row: Row) -> str:
    """Returns what a reader wrote in a row, for the report."""
    return json.dumps({name: row[name] for name in row if row[name] not in (None, "")}, default=str)
