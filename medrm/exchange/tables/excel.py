"""Workbooks of Excel: the cells of one sheet, with merged cells, dates and results of formulas."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import time
from itertools import islice
from pathlib import Path
from typing import Any

from medrm.errors import shortened
from medrm.exchange.imported import Opened, Unread
from medrm.exchange.tables.archive import (
    chosen_sheet,
    elements,
    hidden_rows,
    local_name,
    opened_archive,
    some_of,
)
from medrm.exchange.tables.grid import MOST_COLUMNS, MOST_ROWS, open_grid
from medrm.exchange.tables.merged import MergedCells, Range

LONGEST_CELL = 2**16
"""Characters; Excel writes at most 32,767."""

_REFERENCE = re.compile(r"\$?([A-Z]{1,3})\$?([0-9]{1,7})")
_ZEROS = re.compile("0{2,20}")


@dataclass
class _Shape:
    """What is known of a sheet before its cells are read.

    Attributes:
        columns: how many have a value.
        merged: ranges of merged cells, in the order of their rows.
        without_result: cells with a formula whose result was never computed.
        errors: cells whose formula failed.
        hidden: rows with cells that are not shown, as where a filter is set.
    """

    columns: int = 0
    merged: list[Range] = field(default_factory=list)
    without_result: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)


def open_excel(path: Path, sheet: str | None = None, header_row: int | None = None) -> Opened:
    """Returns one sheet of a workbook; see `open_grid`. Nothing is computed or fetched.

    Args:
        path: of the workbook.
        sheet: its name; None: the only one with rows that is not hidden.
        header_row: the number of the row that names the columns; None: it is looked for.

    Raises:
        DataError: it is no workbook that can be read, or is too large.
        ConfigError: it has no sheet of that name.
    """
    with opened_archive(path) as archive:
        book = _workbook(path)
        shown = [s.title for s in book.worksheets if s.sheet_state == "visible"]

        def has_rows(name: str) -> bool:
            return _has_rows(archive, book[name]._worksheet_path)

        names = [s.title for s in book.worksheets]
        name, notes = chosen_sheet(path, sheet, names, shown, has_rows)
        shape = _shape_of(archive, book[name]._worksheet_path)
        pictures = sum(member.filename.startswith("xl/media/") for member in archive.infolist())
        book.close()

    def grid(no_rows: list[Unread]) -> Iterator[tuple[int, Sequence[Any]]]:
        with opened_archive(path):
            book = _workbook(path)
            book[name].reset_dimensions()
            rows = book[name].iter_rows(max_col=max(1, shape.columns))
            values = ((number, [*map(_value, row)]) for number, row in enumerate(rows, start=1))
            yield from _filled(values, shape)
            book.close()

    return open_grid(path, grid, [*notes, *_notes(shape, pictures)], header_row)


def _workbook(path: Path) -> Any:
    from openpyxl import load_workbook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of extensions that hold no cells
        return load_workbook(path, read_only=True, data_only=True, keep_links=False)


def _has_rows(archive: zipfile.ZipFile, member: str) -> bool:
    """Returns whether a sheet has a row below its first; no more of it is read."""
    rows = (
        row
        for row in elements(archive, member, {"row"})
        if any(local_name(part.tag) in ("v", "is") for cell in row for part in cell)
    )
    return len([*islice(rows, 2)]) > 1


def _shape_of(archive: zipfile.ZipFile, member: str) -> _Shape:
    """Returns what the XML of a sheet says besides the values of its cells.

    Raises:
        ValueError: rows or columns are more than a sheet has.
    """
    shape, number = _Shape(), 0
    for element in elements(archive, member, {"row", "mergeCell"}):
        if local_name(element.tag) == "mergeCell":
            shape.merged.append(_range_of(str(element.get("ref"))))
            continue
        earlier, number = number, int(element.get("r") or number + 1)
        if number <= earlier:
            raise ValueError(f"row {number} stands behind row {earlier}")
        if number > MOST_ROWS + 1:
            raise ValueError(f"it has more than {MOST_ROWS:,} rows")
        if element.get("hidden") in ("1", "true") and len(element):
            shape.hidden.append(str(number))
        for position, cell in enumerate(element, start=1):
            _look_at(cell, position, shape)
    shape.merged.sort()
    return shape


def _look_at(cell: Any, position: int, shape: _Shape) -> None:
    """Notes the column of a cell that has a value, and a formula that has none."""
    parts = {local_name(part.tag): part for part in cell}
    value = parts.get("v")
    if "f" in parts and (value is None or not value.text):
        shape.without_result.append(str(cell.get("r")))
    if cell.get("t") == "e":
        shape.errors.append(str(cell.get("r")))
    if value is not None or "is" in parts:
        reference = cell.get("r")
        column = _column_of(reference) if reference else position
        if column > MOST_COLUMNS:
            raise ValueError(f"it has more than {MOST_COLUMNS:,} columns")
        shape.columns = max(shape.columns, column)


def _column_of(reference: str) -> int:
    return _range_of(reference).left


def _range_of(reference: str) -> Range:
    first, _, last = reference.partition(":")
    numbers = []
    for corner in (first, last or first):
        match = _REFERENCE.fullmatch(corner)
        if match is None:
            raise ValueError(f"{shortened(reference)!r} names no cells")
        column = 0
        for letter in match[1]:
            column = column * 26 + ord(letter) - ord("A") + 1
        numbers += [int(match[2]), column]
    return Range(*numbers)


def _value(cell: Any) -> Any:
    """Returns what a cell holds; leading zeros and 1:05 stay as they are shown, errors are nothing.

    What is shown as 1:05 is five past one to Excel, also where a reader meant minutes.
    """
    value = cell.value
    if value is None or cell.data_type == "e":
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number and _ZEROS.fullmatch(cell.number_format):
        return str(value).zfill(len(cell.number_format))
    if isinstance(value, time) and "s" not in cell.number_format.lower():
        return f"{value.hour}:{value.minute:02}"
    if isinstance(value, str) and len(value) > LONGEST_CELL:
        raise ValueError(f"a cell has {len(value):,} characters")
    return value


def _filled(
    rows: Iterator[tuple[int, list[Any]]], shape: _Shape
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields rows with the value of merged cells in each of them."""
    waiting, merged = iter(shape.merged), MergedCells()
    upcoming = next(waiting, None)
    for number, cells in rows:
        while upcoming is not None and upcoming.top <= number:
            if upcoming.top == number and upcoming.left <= len(cells):
                right = min(upcoming.right, shape.columns)
                merged.add(upcoming._replace(right=right), cells[upcoming.left - 1])
            upcoming = next(waiting, None)
        yield number, merged.fill(number, cells)


def _notes(shape: _Shape, pictures: int) -> Iterator[str]:
    if shape.merged:
        yield f"{len(shape.merged)} merged cells are read as their value in each of their places."
    if shape.hidden:
        yield hidden_rows(shape.hidden)
    if shape.errors:
        yield f"{_some(shape.errors)} hold errors such as #N/A; they are read as empty."
    if shape.without_result:
        yield (
            f"{_some(shape.without_result)} hold formulas without a result; they are read as empty."
            " Open the workbook in a spreadsheet program and save it."
        )
    if pictures:
        yield f"{pictures} pictures lie in the workbook and are not read; give paths of files."


def _some(cells: Sequence[str]) -> str:
    return f"{len(cells):,} cells ({some_of(cells)})"
