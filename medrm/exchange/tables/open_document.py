"""Sheets of OpenDocument, as LibreOffice writes them: the cells of one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from medrm.exchange.imported import Opened, Unread
from medrm.exchange.tables.archive import (
    chosen_sheet,
    elements,
    hidden_rows,
    local_name,
    opened_archive,
)
from medrm.exchange.tables.excel import LONGEST_CELL
from medrm.exchange.tables.grid import MOST_COLUMNS, MOST_ROWS, open_grid
from medrm.exchange.tables.merged import MergedCells, Range

_CONTENT = "content.xml"
_MOST_SPACES = 1000
_NOT_SHOWN = ("annotation", "shape", "frame")
"""Parts of a cell that are not its text: comments and drawings."""


def open_document(path: Path, sheet: str | None = None, header_row: int | None = None) -> Opened:
    """Returns one table of an OpenDocument spreadsheet; see `open_grid`.

    Args:
        path: of the file.
        sheet: the table's name; None: the only one with rows that is not hidden.
        header_row: the number of the row that names the columns; None: it is looked for.

    Raises:
        DataError: it is no such file that can be read, or is too large.
        ConfigError: it has no table of that name.
    """
    tables = _tables(path)
    names = [table.name for table in tables]
    shown = [table.name for table in tables if table.is_shown]
    filled = {table.name for table in tables if table.has_rows}
    name, notes = chosen_sheet(path, sheet, names, shown, filled.__contains__)
    if hidden := tables[names.index(name)].hidden:
        notes.append(hidden_rows(hidden))

    def grid(no_rows: list[Unread]) -> Iterator[tuple[int, Sequence[Any]]]:
        return _rows(path, names.index(name))

    return open_grid(path, grid, notes, header_row)


class _Table(NamedTuple):
    """A table of a file.

    Attributes:
        name: of the table.
        has_rows: whether it has a row below its first.
        is_shown: whether it is not hidden.
        hidden: the numbers of the rows with cells that are.
    """

    name: str
    has_rows: bool
    is_shown: bool
    hidden: list[str]


def _tables(path: Path) -> list[_Table]:
    tables: list[_Table] = []
    unshown: set[str] = set()
    number = filled = 0
    hidden: list[str] = []
    with opened_archive(path) as archive:
        for element in elements(archive, _CONTENT, {"table-row", "table", "style"}):
            match local_name(element.tag):
                case "style":
                    if any(_attribute(part, "display", "") == "false" for part in element):
                        unshown.add(_attribute(element, "name", ""))
                case "table-row":
                    first = number + 1
                    number += _count(element, "number-rows-repeated", MOST_ROWS + 1)
                    if any(len(cell) or _attribute(cell, "value-type", "") for cell in element):
                        filled += 1
                        is_hidden = _attribute(element, "visibility", "") in ("collapse", "filter")
                        if is_hidden:
                            hidden += map(str, range(first, min(number, MOST_ROWS) + 1))
                case _:
                    is_shown = _attribute(element, "style-name", "") not in unshown
                    name = _attribute(element, "name", "")
                    tables.append(_Table(name, filled > 1, is_shown, hidden))
                    number, filled, hidden = 0, 0, []
    return tables


def _rows(path: Path, index: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields the rows of one table that have cells."""
    number = tables = 0
    merged = MergedCells()
    with opened_archive(path) as archive:
        for element in elements(archive, _CONTENT, {"table-row", "table"}):
            if local_name(element.tag) == "table":
                tables += 1
            elif tables == index:
                repeated = _count(element, "number-rows-repeated", MOST_ROWS + 1)
                cells = _cells(element, number + 1, merged)
                for _ in range(repeated):
                    number += 1
                    filled = merged.fill(number, list(cells))
                    if filled:
                        yield number, filled
            if tables > index:
                return


def _cells(row: Any, number: int, merged: MergedCells) -> list[Any]:
    """Returns the cells of a row as far as they have values, and notes the merged ones.

    Raises:
        ValueError: there are too many.
    """
    cells: list[Any] = []
    position = 0
    for cell in row:
        if local_name(cell.tag) not in ("table-cell", "covered-table-cell"):
            continue
        repeated = _count(cell, "number-columns-repeated", 2**20)
        value = _value(cell)
        if value is not None:
            if position + repeated > MOST_COLUMNS:
                raise ValueError(f"it has more than {MOST_COLUMNS:,} columns")
            cells += [None] * (position - len(cells)) + [value] * repeated
            rows = _count(cell, "number-rows-spanned", MOST_ROWS)
            columns = _count(cell, "number-columns-spanned", MOST_COLUMNS - position)
            if rows > 1 or columns > 1:
                covers = Range(number, position + 1, number + rows - 1, position + columns)
                merged.add(covers, value)
        position += repeated
    return cells


def _value(cell: Any) -> Any:
    """Returns what a cell holds; of a formula its result, as it was computed when it was saved.

    Raises:
        ValueError: it is no value of its type, or too long.
    """
    kind = _attribute(cell, "value-type", "")
    if kind in ("float", "percentage", "currency"):
        number = float(_attribute(cell, "value", "nan"))
        return int(number) if number.is_integer() else number
    if kind == "date":
        return datetime.fromisoformat(_attribute(cell, "date-value", ""))
    if kind == "boolean":
        return _attribute(cell, "boolean-value", "") == "true"
    shown = [_text(part) for part in cell if local_name(part.tag) not in _NOT_SHOWN]
    text = "\n".join(shown) or _attribute(cell, "string-value", "")
    if len(text) > LONGEST_CELL:
        raise ValueError(f"a cell has {len(text):,} characters")
    return text or None


def _text(part: Any) -> str:
    """Returns the text of a paragraph; several blanks, tabs and breaks are elements in it."""
    name = local_name(part.tag)
    inner = {"tab": "\t", "line-break": "\n"}.get(name, part.text or "")
    if name == "s":
        inner = " " * _count(part, "c", _MOST_SPACES)
    return inner + "".join(
        ("" if local_name(child.tag) in _NOT_SHOWN else _text(child)) + (child.tail or "")
        for child in part
    )


def _attribute(element: Any, name: str, default: str) -> str:
    """Returns an attribute, of whatever namespace."""
    values = (value for key, value in element.items() if local_name(key) == name)
    return str(next(values, default))


def _count(element: Any, name: str, most: int) -> int:
    return max(1, min(int(_attribute(element, name, "1")), most))
