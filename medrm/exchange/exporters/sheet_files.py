"""Tables with drop-downs as files: Excel, OpenDocument, and CSV, which has none.

A text stays a text: no cell that comes from data is ever a formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from medrm.data.decoding import use_decoded
from medrm.errors import ConfigError, DataError
from medrm.exchange.sheet_form import plain_text

LONGEST_CELL = 32_000
"""Characters; Excel takes 32,767."""

MOST_ROWS = 20_000
"""Of a sheet for a reader: it is written in memory."""

_NO_CELL = re.compile(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, or not so that it stays as it is."""

_THUMBNAIL = 160
"""Pixels of the longer side of a picture in a cell."""

_MOST_THUMBNAILS = 1000
_THUMBNAIL_BYTES = 20 * 2**20
"""Of all pictures in one file; further images are links alone."""


class Column(NamedTuple):
    """A column of a sheet.

    Attributes:
        name: its heading.
        width: in characters.
        choices: of its drop-down; none: it has no drop-down.
        unlocked: whether a reader may write in it, as in those with a drop-down.
        hidden: whether it is not shown.
        is_link: whether its cells are paths of images.
    """

    name: str
    width: int
    choices: Sequence[str] = ()
    unlocked: bool = False
    hidden: bool = False
    is_link: bool = False


Add = Callable[[Mapping[str, Any]], None]
"""Adds a row of cells by their columns' names."""

Writer = Callable[[Path, Sequence[Column]], AbstractContextManager[Add]]


def writer_of(table: str) -> Writer:
    """Returns what writes a form of table."""
    writers: dict[str, Writer] = {"xlsx": _excel, "ods": _open_document, "csv": _csv}
    return writers[table]


@contextmanager
def _csv(path: Path, columns: Sequence[Column]) -> Iterator[Add]:
    with path.open("w", encoding="utf-8-sig", newline="", errors="replace") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(plain_text(column.name) for column in columns)

        def add(cells: Mapping[str, Any]) -> None:
            texts = (_cell_text(cells.get(column.name, "")) for column in columns)
            writer.writerow(map(plain_text, texts))

        yield add


@contextmanager
def _excel(path: Path, columns: Sequence[Column]) -> Iterator[Add]:
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise _missing("openpyxl") from error
    from openpyxl.styles import Alignment, Font, Protection
    from openpyxl.utils import get_column_letter
    from openpyxl.worksheet.datavalidation import DataValidation

    book = Workbook()
    sheet: Any = book.active
    sheet.title = "votes"
    top = Alignment(vertical="top", wrap_text=True)
    thumbnails = _Thumbnails(path.parent)

    rows = count(1)

    def add(cells: Mapping[str, Any]) -> None:
        row = next(rows)
        for number, column in enumerate(columns, start=1):
            cell = sheet.cell(row, number)
            text = _cell_text(cells.get(column.name, ""))
            if text:
                cell.value = text
                cell.data_type = "s"  # which openpyxl takes for a formula where it begins with =
                cell.quotePrefix = bool(re.match(r"[=+\-@]", text))
            cell.alignment = top
            if column.unlocked or column.choices:
                cell.protection = Protection(locked=False)
            if column.is_link and text and row > 1:
                cell.hyperlink = text
                cell.font = Font(underline="single", color="0563C1")
                thumbnails.put(sheet, cell, text)

    add({column.name: column.name for column in columns})
    for number, column in enumerate(columns, start=1):
        letter = get_column_letter(number)
        sheet.cell(1, number).font = Font(bold=True)
        sheet.cell(1, number).protection = Protection(locked=True)
        sheet.column_dimensions[letter].width = column.width
        sheet.column_dimensions[letter].hidden = column.hidden
        if column.choices:
            listed = DataValidation("list", formula1=f'"{",".join(column.choices)}"')
            listed.error = f"Choose one of: {', '.join(column.choices)}; or leave it empty."
            listed.add(f"{letter}2:{letter}{MOST_ROWS * 10}")
            sheet.add_data_validation(listed)
    sheet.freeze_panes = "C2"
    sheet.protection.sheet = True
    sheet.protection.formatColumns = sheet.protection.formatRows = False
    yield add
    book.save(path)


class _Thumbnails:
    """Small pictures in cells, as many as a file of a sensible size holds.

    Args:
        folder: of the images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count, self._bytes = folder, 0, 0

    def put(self, sheet: Any, cell: Any, name: str) -> None:
        """Puts the picture of a path into a cell, which grows by it."""
        from openpyxl.drawing.image import Image as Picture

        if self._count >= _MOST_THUMBNAILS or self._bytes >= _THUMBNAIL_BYTES:
            return
        file = io.BytesIO()

        def draw(image: Image.Image, _: str) -> None:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.save(file, "JPEG", quality=80)

        try:
            use_decoded((self._folder / name).read_bytes(), name, draw)
        except DataError:
            return
        self._count += 1
        self._bytes += file.tell()
        picture = Picture(file)
        sheet.add_image(picture, cell.coordinate)
        height = sheet.row_dimensions[cell.row].height or 15
        sheet.row_dimensions[cell.row].height = max(height, picture.height * 0.75 + 15)


def _cell_text(cell: object) -> str:
    """Returns what a cell of any form of table can hold of a text."""
    return _NO_CELL.sub("\ufffd", str(cell).replace("\r\n", "\n").replace("\r", "\n"))


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"--table needs the package {package}, which is not installed. Install medrm[sheets], or "
        "give --table csv."
    )


@contextmanager
def _open_document(path: Path, columns: Sequence[Column]) -> Iterator[Add]:
    try:
        from odf.opendocument import OpenDocumentSpreadsheet
    except ImportError as error:
        raise _missing("odfpy") from error
    from odf import style, table, teletype, text

    document = OpenDocumentSpreadsheet()
    free = style.Style(name="free", family="table-cell")
    free.addElement(style.TableCellProperties(cellprotect="none"))
    document.automaticstyles.addElement(free)
    listed = table.ContentValidations()
    document.spreadsheet.addElement(listed)
    sheet = table.Table(name="votes", protected="true")
    document.spreadsheet.addElement(sheet)
    attributes: list[dict[str, Any]] = []
    for number, column in enumerate(columns):
        width = style.Style(name=f"column{number}", family="table-column")
        width.addElement(style.TableColumnProperties(columnwidth=f"{column.width * 0.2}cm"))
        document.automaticstyles.addElement(width)
        visibility = "collapse" if column.hidden else "visible"
        sheet.addElement(table.TableColumn(stylename=width, visibility=visibility))
        if column.choices:
            choices = ";".join(f'"{choice}"' for choice in column.choices)
            condition = f"of:cell-content-is-in-list({choices})"
            name = f"choices{number}"
            listed.addElement(
                table.ContentValidation(name=name, condition=condition, displaylist="unsorted")
            )
            attributes.append({"stylename": free, "contentvalidationname": name})
        else:
            attributes.append({"stylename": free} if column.unlocked else {})

    def add(cells: Mapping[str, Any], is_heading: bool = False) -> None:
        row = table.TableRow()
        for column, stated in zip(columns, attributes, strict=True):
            words = _cell_text(cells.get(column.name, ""))
            value_type = {"valuetype": "string"} if words else {}
            cell = table.TableCell(**({} if is_heading else stated), **value_type)
            for line in words.split("\n") if words else ():
                paragraph = text.P()
                linked = paragraph
                if column.is_link and not is_heading:
                    linked = text.A(href=line, type="simple")
                    paragraph.addElement(linked)
                teletype.addTextToElement(linked, line)
                cell.addElement(paragraph)
            row.addElement(cell)
        sheet.addElement(row)

    add({column.name: column.name for column in columns}, is_heading=True)
    yield add
    document.save(str(path))
