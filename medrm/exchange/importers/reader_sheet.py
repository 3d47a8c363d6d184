"""medrm's own sheet, as `medrm data export --to sheet` wrote it and a reader filled it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from medrm.data.row_tables import LocatedRow, Row
from medrm.errors import DataError, printable, shortened
from medrm.exchange.case_files import CASES_FILE, read_cases_file
from medrm.exchange.filled_form import Fields, votes_of_form
from medrm.exchange.imported import Imported, Opened, unread
from medrm.exchange.importers.tool_rows import decoded
from medrm.exchange.sheet_form import (
    ANNOTATOR,
    CASE,
    COMMENT,
    CONFIDENCE,
    MARK,
    QUESTION,
    REASON,
    SECONDS,
    answer_column,
    case_key,
    is_form_column,
    original_text,
    rank_column,
    read_mark,
    start_of_cut,
    strength_column,
    vote_column,
)
from medrm.exchange.tables.grid import number_of, text_of


def is_reader_sheet(opened: Opened) -> bool:
    """Returns whether a table is one of medrm's own sheets, also where its mark was lost."""
    names = {*opened.columns}
    if MARK in names:
        return True
    dimensions = [name.removeprefix(vote_column("")) for name in names]
    is_form = any({vote_column(name), strength_column(name)} <= names for name in dimensions)
    is_form = is_form or any(name.startswith(rank_column("", 0)) for name in names)
    return is_form and {CASE, ANNOTATOR, QUESTION, answer_column(0), answer_column(1)} <= names


def read_reader_sheet(opened: Opened) -> Imported:
    """Returns the votes of a filled sheet, on the answers as they are stored.

    Raises:
        DataError: its hidden column is missing, or the cases of its export do not lie beside it.
    """
    if MARK not in opened.columns:
        raise DataError(
            f"{opened.path} is a sheet of `medrm data export` whose hidden column {MARK!r} is "
            "missing, which says which case a row is about and which answer it shows first. "
            "Import the sheet as it was saved before that column was deleted; or write it again, "
            "by the same `medrm data export` with the same --seed, into another folder, and copy "
            "what readers filled in into it."
        )
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
        prefix = strength_column("")
        graded = [name.removeprefix(prefix) for name in opened.columns if name.startswith(prefix)]
        imported.notes += [
            f"Column {vote_column(name)!r} is missing: no votes on {name!r} are read."
            for name in graded
            if name not in names
        ]

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
        if contradiction := self._contradiction(row, case, mark[1]):
            return {}, contradiction
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
        added = {name: self._text(row, name) for name in row if not is_form_column(name)}
        if extra := {name: text for name, text in added.items() if text}:
            line["extra"] = extra
        return line, None

    def _contradiction(self, row: Row, case: Row, order: Sequence[int]) -> str | None:
        """Returns which cell of a row shows another case than its mark names; None: none does.

        An empty cell contradicts nothing.
        """
        texts = {CASE: case["case_id"], QUESTION: case["question"]}
        texts |= {answer_column(n): case["answers"][index] for n, index in enumerate(order)}
        for column, text in texts.items():
            shown = self._text(row, column)
            if shown and not _is_same(shown, text):
                return (
                    f"its {column!r} is {shortened(printable(shown))!r}, but its hidden cell "
                    f"{MARK!r} names case {shortened(case['case_id'])!r}, exported with "
                    f"{shortened(printable(text))!r}. Rows were sorted without the hidden column, "
                    "or the cell was changed; put the row back as it was exported"
                )
        return None

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
        number = number_of(text)
        if number is not None and column != REASON:
            return number
        stated = decoded(text)
        is_by_dimension = isinstance(stated, dict) and stated and stated.keys() <= votes.keys()
        return stated if is_by_dimension else text or None

    def _text(self, row: Row, column: str) -> str:
        text = text_of(row.get(column))
        return original_text(text) if self._opened.suffix == ".csv" else text


def _is_same(shown: str, text: str) -> bool:
    """Returns whether a cell shows a text, which a spreadsheet program may have rewritten.

    It may change blanks and how a number is written, and saves CSV in Windows-1252.
    """
    start = start_of_cut(shown)
    if start is not None:
        return _plain(text).startswith(_plain(start))
    lossy = text.encode("cp1252", "replace").decode("cp1252")
    if _plain(shown) in (_plain(text), _plain(lossy)):
        return True
    number = number_of(shown)
    return number is not None and number == number_of(text)


def _plain(text: str) -> str:
    """Returns a text in small letters, without blanks and what is not printable."""
    text = text.replace("_x000D_", "").casefold()  # TRUE and true are one cell
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace())


def _written(row: Row) -> str:
    """Returns what a reader wrote in a row, for the report."""
    return json.dumps({name: row[name] for name in row if row[name] not in (None, "")}, default=str)
