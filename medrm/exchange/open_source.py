"""Opens a file that is to be imported: which table or JSON it holds, read row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medrm.data.medical.conversions import parse_conversion
from medrm.data.parquet_files import plain_batches, readable_parquet
from medrm.data.row_tables import JsonLines, LocatedRow, read_json_file
from medrm.errors import ConfigError, DataError, report
from medrm.exchange.imported import WORKBOOKS, Opened, Records, Unread, unread
from medrm.exchange.tables.delimited import open_delimited
from medrm.exchange.tables.excel import open_excel
from medrm.exchange.tables.grid import MOST_COLUMNS
from medrm.exchange.tables.open_document import open_document

SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".ods"),
    *(".json", ".jsonl", ".parquet"),
)
"""Of files that can be imported, in any case."""

_LARGEST = 2**30
"""1 GiB: the largest file that is read row by row."""

_LARGEST_JSON = 2**28
"""256 MiB: the largest `.json`, which is read whole."""


def open_source(
    path: Path,
    image_root: Path | None = None,
    mapping: Mapping[str, Any] | None = None,
    image_conversion: str | None = None,
    sheet: str | None = None,
) -> Opened:
    """Returns a file that is to be imported.

    Args:
        path: of the file.
        image_root: a folder in which images are looked for first.
        mapping: the content of the user's mapping, which may name a sheet and its header's row.
        image_conversion: by which medical images become pictures; None: they are refused.
        sheet: of a workbook; None: that of the mapping, or the only one with rows.

    Raises:
        ConfigError: the root is no folder, the conversion is not known, or no sheet is meant.
        DataError: there is none, it is of another kind, too large, or cannot be read at all.
    """
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"--image_root {image_root} is no folder; give that of the images.")
    conversion = None if image_conversion is None else parse_conversion(image_conversion)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give the file that is to be imported.")
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the file that is to be imported.")
    if suffix in (".xls", ".xlsb", ".numbers"):
        raise DataError(f"{path} is in a form of its program's own. Save it there as .xlsx.")
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is no file that is imported; accepted are {', '.join(SUFFIXES)}.")
    size, most = path.stat().st_size, _LARGEST_JSON if suffix == ".json" else _LARGEST
    if size > most:
        raise DataError(
            f"{path} has {size:,} bytes; accepted are at most {most:,}. Split it, or leave images "
            "out and give their paths."
        )
    if not size and suffix in (".json", ".jsonl"):
        raise DataError(f"{path} is empty; it holds no rows.")
    stated = (mapping or {}).get("sheet")
    if sheet is not None and suffix not in WORKBOOKS:
        raise ConfigError(f"--sheet {sheet!r}: {path} is no workbook. Leave it out.")
    if sheet is not None and stated not in (None, sheet):
        raise ConfigError(f"--sheet is {sheet!r}, and the mapping names {stated!r}. Keep one.")
    opened = _opened(path, suffix, {**(mapping or {}), "sheet": sheet or stated})
    opened.mapping = mapping
    opened.columns = opened.columns or _columns(path, opened)
    opened.image_root, opened.image_conversion = image_root, conversion
    return opened


def refuse_no_rows(opened: Opened) -> None:
    """Refuses a file that holds nothing to import.

    Raises:
        DataError: it has no rows.
    """
    is_keyed = isinstance(opened.content, dict) and bool(opened.content)
    if not is_keyed and next(iter(opened.records), None) is None:
        reasons = [f"{row.place}: {row.reason}" for row in opened.records.unread]
        title = f"{opened.path} holds no rows."
        raise DataError(report(title, reasons) if reasons else title)


def _opened(path: Path, suffix: str, mapping: Mapping[str, Any]) -> Opened:
    """Opens a file by its suffix."""
    stated, row = mapping.get("sheet"), str(mapping.get("header_row"))
    sheet = stated if isinstance(stated, str) else None
    header_row = int(row) if re.fullmatch("[0-9]{1,6}", row) else None
    if suffix == ".json":
        return _open_json(path)
    if suffix == ".jsonl":
        return Opened(path, suffix, Records(lambda no_rows: _json_lines(path, no_rows)))
    if suffix == ".parquet":
        return Opened(path, suffix, Records(lambda _: _parquet_rows(path)))
    if suffix in (".xlsx", ".xlsm"):
        return open_excel(path, sheet, header_row)
    if suffix == ".ods":
        return open_document(path, sheet, header_row)
    return open_delimited(path, header_row)


def _open_json(path: Path) -> Opened:
    content = read_json_file(path)
    listed = content if isinstance(content, list) else []
    return Opened(
        path, ".json", Records(lambda no_rows: _listed_rows(listed, no_rows)), content=content
    )


def _listed_rows(listed: list[Any], no_rows: list[Unread]) -> Iterator[LocatedRow]:
    for number, row in enumerate(listed, start=1):
        if isinstance(row, dict):
            yield f"row {number}", row
        else:
            no_rows.append(
                unread(f"row {number}", f"it is no object but {type(row).__name__}", row)
            )


def _json_lines(path: Path, no_rows: list[Unread]) -> Iterator[LocatedRow]:
    problems: list[str] = []
    yield from JsonLines(path, problems)
    for problem in problems:
        place, _, reason = problem.partition(": ")
        no_rows.append(unread(place, reason, ""))


def _parquet_rows(path: Path) -> Iterator[LocatedRow]:
    number = 0
    for table in plain_batches(path):
        for row in table.to_pylist():
            number += 1
            yield f"row {number}", row


def _columns(path: Path, opened: Opened) -> tuple[str, ...]:
    """Returns the keys of all rows, of which some of JSON may stand in the last one alone.

    Raises:
        DataError: there are too many.
    """
    names: dict[str, None] = {}
    rows: Iterable[Iterable[str]] = (row for _, row in opened.records)
    if opened.suffix == ".parquet":  # its header names them; nothing is decoded
        with readable_parquet(path) as parquet:
            rows = [parquet.schema_arrow.names]
    for row in rows:
        names |= dict.fromkeys(row)
        if len(names) > MOST_COLUMNS:
            raise DataError(f"{path} has more than {MOST_COLUMNS:,} columns; split it.")
    return tuple(names)
