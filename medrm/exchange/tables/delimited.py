"""Tables in text, CSV and TSV, whose encoding and delimiter are found out."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from medrm.errors import DataError
from medrm.exchange.imported import Opened, Unread, unread
from medrm.exchange.tables.grid import open_grid

_DELIMITERS = (";", "\t", ",", "|")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""How a text of an encoding may start."""

_LOOKED_AT = 2**18
"""Characters in which the delimiter is looked for."""

_ROWS_LOOKED_AT = 20
_BLOCK = 2**20
_LONGEST_CELL = 2**24
"""Characters; base64 of an image may stand in a cell."""


def open_delimited(path: Path, header_row: int | None = None) -> Opened:
    """Returns a table in text; see `open_grid`.

    Raises:
        DataError: it is in no known encoding, or has no columns.
    """
    csv.field_size_limit(_LONGEST_CELL)  # of the whole process; the default is 131,072
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as text:
        start = text.read(_LOOKED_AT)
    stated = start[:20].splitlines()[:1]
    separator = stated[0].strip('"') if stated else ""
    states = len(separator) == 5 and separator.lower().startswith("sep=")  # Excel writes it so
    delimiter = separator[-1] if states else _delimiter(start)

    def grid(no_rows: list[Unread]) -> Iterator[tuple[int, list[str]]]:
        with path.open(encoding=encoding, newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            number = 0
            while True:
                number, first = number + 1, reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    count = reader.line_num - first + 1
                    lines = f"lines {first} to {reader.line_num}" if count > 1 else f"line {first}"
                    lost = f"; all {count} lines are lost" if count > 1 else ""
                    reason = (
                        f"its quotes or cells cannot be read ({error}; {lines} of the text{lost})"
                    )
                    no_rows.append(unread(f"row {number}", reason, ""))
                    continue
                if number > 1 or not states:
                    yield number, cells

    name = {"\t": "a tab"}.get(delimiter, repr(delimiter))
    notes = [f"The text is read as {encoding}, with {name} between columns."]
    if encoding == "cp1252":
        notes.append(
            f"The text is not in UTF-8, from line {_first_line_of_another_encoding(path)} on, so "
            "all of it is read as Windows-1252 (cp1252); where letters are wrong, save it in UTF-8."
        )
    return open_grid(path, grid, notes, header_row)


def _encoding(path: Path) -> str:
    """Returns the encoding of a text: as its mark says, UTF-8 where all is, else Windows-1252."""
    with path.open("rb") as file:
        start = file.read(_BLOCK)
    likely = [encoding for mark, encoding in _MARKS.items() if start.startswith(mark)]
    zeros = Counter(index % 2 for index, byte in enumerate(start[:1000]) if byte == 0)
    if sum(zeros.values()) > min(len(start), 1000) / 4:  # every other byte of plain letters
        likely.append("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    for encoding in likely[:1] or ("utf-8", "cp1252"):
        if _decodes(path, encoding):
            return encoding
    raise DataError(f"{path} is text in neither UTF-8, UTF-16 nor Windows-1252; save it in UTF-8.")


def _decodes(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        try:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _first_line_of_another_encoding(path: Path) -> int:
    """Returns the number of the first line that is not UTF-8."""
    number = 1
    with path.open("rb") as file:
        while line := file.readline(_BLOCK):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                if len(line) < _BLOCK or error.end < len(line):
                    return number
            number += line.endswith(b"\n")
    return number


def _delimiter(start: str) -> str:
    """Returns what gives the most columns that most of the first rows agree on."""

    def columns(delimiter: str) -> tuple[int, int]:
        widths: Counter[int] = Counter()
        try:
            reader = csv.reader(io.StringIO(start), delimiter=delimiter)
            widths.update(map(len, islice(filter(None, reader), _ROWS_LOOKED_AT)))
        except csv.Error:
            pass  # the last row may be cut
        width, count = max(widths.items(), key=lambda shape: shape[::-1], default=(1, 0))
        return (count if width > 1 else 0), width

    return max(_DELIMITERS, key=columns)
