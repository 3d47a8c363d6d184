"""The cells of a table as rows with named columns: where its header is, and what its cells say."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from medrm.data.row_tables import LocatedRow
from medrm.errors import DataError, printable, shortened
from medrm.exchange.imported import Opened, Records, Unread, unread

MOST_COLUMNS = 1000
MOST_ROWS = 1_000_000

Grid = Callable[[list[Unread]], Iterator[tuple[int, Sequence[Any]]]]
"""Yields the number of each row as its program counts, from 1, and its cells; adds rows that are
none to the list it is given."""

_LOOKED_AT = 20
"""Rows among which the header is looked for."""

_LONGEST_NAME = 200


def open_grid(path: Path, grid: Grid, notes: list[str], header_row: int | None = None) -> Opened:
    """Returns a table with named columns.

    The header is the first row that is about as wide as the table, which may have a title above.
    Where it has a name twice and there is a row above, that one tells its columns apart.

    Args:
        path: of the file.
        grid: its rows.
        notes: what was found out while it was opened.
        header_row: the number of the row that names the columns; None: it is looked for.

    Raises:
        DataError: there is no header, or too many columns.
    """
    above = list(islice(grid([]), max(_LOOKED_AT, header_row or 0)))
    index = _header_index(path, above, header_row)
    number, header = above[index][0], _texts(above[index][1])
    group: list[str] = []
    if index and len(set(filter(None, header))) < len(list(filter(None, header))):
        group = _filled(_texts(above[index - 1][1]))
        notes.append(f"Columns are named by rows {above[index - 1][0]} and {number} together.")
    names = _names(path, header, group, notes)
    titles = above[: index - 1 if group else index]
    notes += [
        f"Row {title} lies above the header and is not read: {shortened(printable(text))!r}."
        for title, cells in titles
        if (text := " ".join(filter(None, _texts(cells))))
    ]

    def rows(no_rows: list[Unread]) -> Iterator[LocatedRow]:
        for row, cells in grid(no_rows):
            if row > MOST_ROWS:
                raise DataError(f"{path} has more than {MOST_ROWS:,} rows; split it.")
            filled = len(cells)
            while filled and cells[filled - 1] in (None, ""):
                filled -= 1
            if row <= number or not filled:
                continue
            if (
                _texts(cells[:1]) == header[:1]
                and not any(header[filled:])
                and (_texts(cells[:filled]) == header[:filled])
            ):
                reason = "it names the columns once more"
                no_rows.append(unread(f"row {row}", reason, " | ".join(header)))
                continue
            if filled > len(names):
                reason = f"it has {filled:,} cells, the header {len(names)}: its columns are moved"
                no_rows.append(
                    unread(f"row {row}", reason, " | ".join(_texts(cells[:MOST_COLUMNS])))
                )
                continue
            yield f"row {row}", dict.fromkeys(names) | dict(zip(names, cells, strict=False))

    return Opened(path, path.suffix.lower(), Records(rows), names, notes=notes)


def text_of(cell: Any) -> str:
    """Returns what a cell says: numbers and dates as they are written, nothing as an empty text.

    >>> [text_of(cell) for cell in ("007 ", 17.0, 2.5, None, True, datetime(2024, 3, 1))]
    ['007', '17', '2.5', '', 'true', '2024-03-01']
    """
    if cell is None or cell != cell:  # not a number: pandas writes it for nothing
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and math.isfinite(cell) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime):
        return (cell.date() if cell.time() == time() else cell).isoformat()
    if isinstance(cell, date | time):
        return cell.isoformat()
    return str(cell).strip()


_NUMBER = re.compile(r"[+-]?\d{1,15}([.,]\d{1,30})?(e[+-]?\d{1,3})?", re.IGNORECASE)
_THOUSANDS = re.compile(
    r"([+-]?\d{1,3})((?:([.,' \u2019\u00a0\u2009\u202f])\d{3})(?:\3\d{3}){0,3})"
    r"(?:([.,])(\d{1,30}))?"
)
"""A number with its thousands apart, and which sign stands before its decimals."""


def number_of(cell: Any) -> float | None:
    """Returns a cell as a number, which may be written with a decimal comma; None: it is none.

    Thousands may be apart, but one point or comma alone stands before decimals, as in 1.234. A
    text of more than 15 digits before its decimals is an id, and no number to compute with.

    >>> [number_of(cell) for cell in ("3,5", 4, "\u22121", "1.234,5", "2e-1", "drei", None)]
    [3.5, 4, -1.0, 1234.5, 0.2, None, None]
    """
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return cell if -sys.float_info.max <= cell <= sys.float_info.max else None
    text = text_of(cell).replace("\u2212", "-")
    match = _THOUSANDS.fullmatch(text)
    if match and match[4] != match[3] and (match[4] or match[3] not in ".," or len(match[2]) > 4):
        digits = match[1] + match[2].replace(match[3], "")
        return float(f"{digits}.{match[5] or 0}")
    return number_of(float(text.replace(",", "."))) if _NUMBER.fullmatch(text) else None


def seconds_of(cell: Any) -> float | None:
    """Returns a time as a number of seconds, which may be written as 1:05 or 0:01:05."""
    if isinstance(cell, time):
        return cell.hour * 3600 + cell.minute * 60 + cell.second + cell.microsecond / 1e6
    text = text_of(cell)
    if re.fullmatch(r"(\d{1,3}:)?\d{1,3}:\d{2}", text):
        seconds = 0
        for part in text.split(":"):
            seconds = seconds * 60 + int(part)
        return float(seconds)
    number = number_of(cell)
    return number if number is not None and number >= 0 else None


def _texts(cells: Sequence[Any]) -> list[str]:
    return [" ".join(text_of(cell).split()) for cell in cells]


def _header_index(
    path: Path, above: Sequence[tuple[int, Sequence[Any]]], header_row: int | None
) -> int:
    widths = [sum(map(bool, _texts(cells))) for _, cells in above]
    for index, (number, cells) in enumerate(above):
        if number == header_row:
            return index
        if header_row is None and widths[index] >= max(1, 0.6 * max(widths)):
            below = above[index + 1 : index + 2]
            return index + 1 if below and _is_group(_texts(cells), _texts(below[0][1])) else index
    named = "no header" if header_row is None else f"no row {header_row} to name its columns"
    raise DataError(f"{path} has {named}. Give a table whose columns have names.")


def _is_group(texts: Sequence[str], below: Sequence[str]) -> bool:
    """Returns whether a row names groups of columns, and the one below the columns in them.

    Names of groups stand in merged cells, which have their value in each of their places.
    """
    joined = [text for text, after in pairwise(texts) if text and text == after]
    names = [*zip(_filled(texts), below, strict=False)]
    has_more = len([*filter(None, below)]) > len([*filter(None, texts)])
    return bool(joined) and has_more and len({*names}) == len(names)


def _filled(texts: Sequence[str]) -> list[str]:
    """Returns the names of groups of columns, each standing over its first column alone."""
    filled: list[str] = []
    for text in texts:
        filled.append(text or (filled[-1] if filled else ""))
    return filled


def _names(
    path: Path, header: Sequence[str], group: Sequence[str], notes: list[str]
) -> tuple[str, ...]:
    if len(header) > MOST_COLUMNS:
        raise DataError(
            f"{path} has {len(header):,} columns; accepted are at most {MOST_COLUMNS}. Split it."
        )
    doubled = Counter(header)
    names: list[str] = []
    counts: Counter[str] = Counter()
    for position, text in enumerate(header):
        name = text or f"column {position + 1}"
        if group[position : position + 1] and group[position] and (doubled[text] > 1 or not text):
            name = f"{group[position]} / {text}".removesuffix(" / ")
        name = shortened(printable(name), _LONGEST_NAME)
        counts[name] += 1
        if counts[name] > 1:
            name = f"{name} ({counts[name]})"
            notes.append(f"Column {position + 1} has the name of another; it is called {name!r}.")
        names.append(name)
    return tuple(names)
