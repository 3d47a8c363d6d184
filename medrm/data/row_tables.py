"""Stored rows of JSON lines, JSON and parquet files; image bytes stay where they are stored."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from medrm.data.image_references import ImageOptions, StoredCell, file_images
from medrm.data.images import cell_images
from medrm.data.parquet_files import arrow_copy
from medrm.errors import DataError, check_characters, nearest, shortened
from medrm.files import cache_dir, fits
from medrm.integrity import fill_cache_folder
from medrm.schema import ImageRef

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet")
"""Of files of rows, in any case."""

_ROWS_AT_ONCE = 64
Row = dict[str, Any]
LocatedRow = tuple[str, Row]
"""A row and where it stands in its file, such as `line 3`."""


@dataclass
class RowTable:
    """Rows with their locations, and what was wrong while reading them.

    Rows are read when asked, one at a time but for `.json`; `problems` is complete once all were.
    `columns` are the keys of the first row. `folder` is what image paths are relative to; no link
    may leave `boundary`, but into the folder of `image_options`. `files` are a table's Arrow files.
    """

    name: str
    folder: Path
    boundary: Path
    columns: tuple[str, ...]
    rows: JsonLines | ArrowRows | DatasetRows | JoinedRows | list[LocatedRow]
    problems: list[str] = field(default_factory=list)
    files: tuple[str, ...] = ()
    image_options: ImageOptions = field(default_factory=ImageOptions)

    def images(self, path: str) -> tuple[ImageRef, ...]:
        """Returns the references of an image file; see `image_references.file_images`."""
        return file_images(path, self.folder, self.boundary, self.image_options)


def missing_columns(columns: Collection[str], required: Collection[str]) -> list[str]:
    """Returns one problem for each required column that is not there, with the nearest that is."""
    return [
        f"column {name!r} is missing; given: {', '.join(columns)}.{nearest(name, columns)}"
        for name in required
        if name not in columns
    ]


def open_table(path: Path, boundary: Path | None = None) -> RowTable:
    """Returns the rows of one `.jsonl`, `.json` or `.parquet` file.

    Raises:
        DataError: another kind of file, or one that cannot be read at all.
    """
    folder, suffix = path.parent, path.suffix.lower()
    if suffix == ".parquet":
        return parquet_table(path, boundary or folder)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is no data file; accepted are {', '.join(SUFFIXES)}. A sheet, and what other "
            "programs write, is made one by `medrm data import`."
        )
    problems: list[str] = []
    rows = JsonLines(path, problems) if suffix == ".jsonl" else list(_json_list(path))
    _, first = next(iter(rows), ("", {}))
    return RowTable(path.name, folder, boundary or folder, tuple(first), rows, problems)


def decode_json(text: str) -> Any:
    """Returns the content of JSON.

    Raises:
        ValueError: no JSON, a key that stands twice in one object, of which one value would be
            lost, or an escape that holds half a character, which no tokenizer takes.
        RecursionError: nested too deeply.
    """
    decoded = json.loads(text, object_pairs_hook=_without_doubles)
    if "\\u" in text:
        check_characters(decoded)
    return decoded


def _without_doubles(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        for doubled, _ in pairs:
            if doubled in seen:
                break
            seen.add(doubled)
        raise ValueError(f"key {shortened(doubled)!r} stands twice in one object; keep one")
    return row


def json_problem(error: Exception) -> str:
    """Returns why a text is no JSON, in words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply; write it flat"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8; save the file in UTF-8"
    return shortened(str(error))


class JsonLines:
    """The objects of a JSON-lines file, parsed when asked.

    Args:
        path: of the file.
        problems: what is wrong with its lines, once all were read.
    """

    def __init__(self, path: Path, problems: list[str]) -> None:
        self._path, self._problems = path, problems
        self._starts, self._numbers = array("Q"), array("Q")

    def __iter__(self) -> Iterator[LocatedRow]:
        starts, numbers, problems = array("Q"), array("Q"), []
        start = end = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                start, end = end, end + len(line)
                if not line.strip():
                    continue
                try:
                    row = self._row(number, line)
                except (ValueError, RecursionError) as error:
                    reason = json_problem(error)
                    problems.append(f"line {number}: no valid JSON in UTF-8 ({reason})")
                    continue
                if not isinstance(row, dict):
                    problems.append(f"line {number}: {type(row).__name__} in place of an object")
                    continue
                starts.append(start)
                numbers.append(number)
                yield f"line {number}", row
        self._starts, self._numbers, self._problems[:] = starts, numbers, problems

    def __getitem__(self, index: int) -> LocatedRow:
        """Returns an object and its location; to be asked once all were read."""
        number = self._numbers[index]
        with self._path.open("rb") as lines:
            lines.seek(self._starts[index])
            return f"line {number}", self._row(number, lines.readline())

    @staticmethod
    def _row(number: int, line: bytes) -> Any:
        return decode_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))


class ArrowRows:
    """The rows of an Arrow table, read when asked."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """The columns with their types."""
        return self._table.schema

    def __iter__(self) -> Iterator[LocatedRow]:
        number = 0
        for batch in self._table.to_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row

    def __getitem__(self, index: int) -> LocatedRow:
        return f"row {index + 1}", self._table.slice(index, 1).to_pylist()[0]


class JoinedRows:
    """The rows of several tables, one after the other, each located by its file as well.

    Args:
        tables: at least one.
        problems: what is wrong with their rows, once all were read.
    """

    def __init__(self, tables: Sequence[RowTable], problems: list[str]) -> None:
        self._tables, self._problems = tables, problems
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[LocatedRow]:
        ends, count = [], 0
        for table in self._tables:
            for location, row in table.rows:
                count += 1
                yield f"{table.name} {location}", row
            ends.append(count)
        self._ends = ends
        self._problems[:] = [
            f"{table.name} {text}" for table in self._tables for text in table.problems
        ]

    def __getitem__(self, index: int) -> LocatedRow:
        """Returns a row and its location; to be asked once all were read."""
        number = bisect_right(self._ends, index)
        table = self._tables[number]
        location, row = table.rows[index - ([0, *self._ends][number])]
        return f"{table.name} {location}", row


def joined_table(tables: Sequence[RowTable], name: str) -> RowTable:
    """Returns the rows of several tables as one.

    Raises:
        DataError: they lie in several folders, to which paths of images are relative, or store
            images in different ways.
    """
    first = tables[0]
    names = ", ".join(table.name for table in tables)
    if any(table.folder != first.folder for table in tables):
        raise DataError(f"{name}: {names} lie in several folders; the files of a set lie in one.")
    schemas = [table.rows.schema if isinstance(table.rows, ArrowRows) else None for table in tables]
    stores_images = any(table.files for table in tables)
    if stores_images and any(schema is None or schema != schemas[0] for schema in schemas):
        raise DataError(
            f"{name}: {names} store images, and their columns are not of the same names and types; "
            "give files of one form."
        )
    problems: list[str] = []
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    files = tuple(path for table in tables for path in table.files)
    rows = JoinedRows(tables, problems)
    return RowTable(name, first.folder, first.boundary, columns, rows, problems, files)


class DatasetRows:
    """The rows of a loaded data set, read when asked."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def __iter__(self) -> Iterator[LocatedRow]:
        for number, row in enumerate(self._data, start=1):
            yield f"row {number}", row

    def __getitem__(self, index: int) -> LocatedRow:
        return f"row {index + 1}", self._data[index]


def read_json_file(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return decode_json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {json_problem(error)}.") from error


def _json_list(path: Path) -> Iterator[LocatedRow]:
    rows = read_json_file(path)
    if not fits(rows, list[Row]):
        raise DataError(f"{path} must hold a list of objects, one for each row.")
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def parquet_table(path: Path, boundary: Path) -> RowTable:
    """Returns the rows of a parquet file; its images stay in a memory-mapped copy in the cache.

    Raises:
        DataError: it is no undamaged parquet file, or holds too much for its size.
    """
    import pyarrow as pa

    copy = arrow_copy(path)
    rows = pa.ipc.open_stream(pa.memory_map(str(copy))).read_all()
    files = (str(copy),) if any(map(_holds_images, rows.schema.types)) else ()
    names = tuple(rows.column_names)
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name ({', '.join(names)}); rename one.")
    return RowTable(path.name, path.parent, boundary, names, ArrowRows(rows), files=files)


def _holds_images(kind: Any) -> bool:
    """Returns whether a column of an Arrow type may store images: bytes, or a struct with some."""
    import pyarrow as pa

    value = kind.value_type if pa.types.is_list(kind) else kind
    if pa.types.is_struct(value):
        return bool(value.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(value))


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets`: for local files, one each, they are noise."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_enabled = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_enabled:
            enable_progress_bars()


def dataset_table(data: Dataset, name: str, folder: Path, boundary: Path) -> RowTable:
    """Returns the rows of a loaded data set, images undecoded."""
    from datasets import Image, List

    holds_images = False
    for column, feature in data.features.items():
        is_list = isinstance(feature, List)
        value = feature.feature if is_list else feature
        if isinstance(value, Image):
            stored = Image(decode=False)
            data = data.cast_column(column, List(stored) if is_list else stored)
        # A file without the metadata of `datasets` has the same structure as a plain struct.
        holds_images |= isinstance(value, Image) or (isinstance(value, dict) and "bytes" in value)
    files = _arrow_files(data) if holds_images else ()
    return RowTable(
        name, folder, boundary, tuple(data.column_names), DatasetRows(data), files=files
    )


def _arrow_files(data: Dataset) -> tuple[str, ...]:
    """Returns the files that hold just the rows of a data set, written where it has none."""
    from datasets import Dataset

    files = tuple(str(file["filename"]) for file in data.cache_files)
    if not files or sum(len(Dataset.from_file(path)) for path in files) != len(data):
        folder = cache_dir() / "tables" / f"rows-{data._fingerprint}"
        with _no_bars():
            fill_cache_folder(folder, lambda draft: data.save_to_disk(str(draft)))
        files = tuple(sorted(map(str, folder.glob("*.arrow"))))
    return files


def row_images(table: RowTable, index: int, row: Row, column: str) -> tuple[ImageRef, ...]:
    """Returns the references of the images in one cell: a path, a stored image, or a list of them.

    Raises:
        DataError: a path that leaves the data folder, or a cell that holds no image.
    """
    cell = row.get(column)
    if cell is None:
        return ()
    is_list = isinstance(cell, list)
    images = (
        _images(table, index, column, position if is_list else None, value)
        for position, value in enumerate(cell if is_list else [cell])
    )
    return tuple(chain.from_iterable(images))


def _images(
    table: RowTable, index: int, column: str, position: int | None, value: Any
) -> tuple[ImageRef, ...]:
    if value is None:
        return (ImageRef(f"{table.name} row {index + 1}", "", bytes, "no image is stored"),)
    if isinstance(value, str):
        return table.images(value)
    if isinstance(value, bytes):
        value = {"bytes": value}
    if not isinstance(value, dict) or not {"bytes", "path"} & set(value):
        raise DataError(
            f"{column} holds {type(value).__name__}; accepted are a path or an image (bytes, path)"
        )
    stored, path = value.get("bytes"), value.get("path")
    if not isinstance(path, str | None):
        raise DataError(f"{column} holds a path that is {type(path).__name__}; give text")
    if isinstance(stored, str):  # JSON has no bytes
        return table.images(f"data:;base64,{stored}")
    name = PurePath(path).name if path else f"{table.name} row {index + 1}"
    if table.files and stored is not None:
        read = StoredCell(table.files, index, column, position)
        return cell_images(name, read, table.image_options)
    if path is not None:
        return table.images(path)
    return (ImageRef(name, "", bytes, "no image is stored"),)
