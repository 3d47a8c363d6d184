"""Stored rows of JSON lines, JSON and parquet files; image bytes stay where they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from medrm.assets import cache_dir
from medrm.data.images import bytes_image, file_image
from medrm.errors import DataError, nearest
from medrm.schema import ImageRef

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet")
Row = dict[str, Any]


@dataclass
class Table:
    """Rows with the place where each stands, and what was wrong while reading them.

    `columns` are the keys of the first row. `folder` is what image paths are relative to; no link
    may leave `boundary`. `images` holds the image columns of a parquet table, read when asked.
    """

    name: str
    folder: Path
    boundary: Path
    columns: tuple[str, ...]
    rows: Iterator[tuple[str, Row]]
    problems: list[str] = field(default_factory=list)
    images: Dataset | None = None


def missing_columns(
    columns: Mapping[str, Any] | tuple[str, ...], required: tuple[str, ...]
) -> list[str]:
    """Returns one problem for each required column that is not there, with the nearest that is."""
    given = tuple(columns)
    return [
        f"column {name!r} is missing; given: {', '.join(given)}.{nearest(name, given)}"
        for name in required
        if name not in given
    ]


def open_table(path: Path, boundary: Path | None = None) -> Table:
    """Returns the rows of one `.jsonl`, `.json` or `.parquet` file.

    Raises:
        DataError: another kind of file, or one that cannot be read at all.
    """
    folder = path.parent
    if path.suffix == ".parquet":
        return parquet_table(path, boundary or folder)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is no data file; accepted are {', '.join(SUFFIXES)}.")
    table = Table(path.name, folder, boundary or folder, (), iter(()))
    rows = list(_json_lines(path, table.problems) if path.suffix == ".jsonl" else _json_list(path))
    table.columns = tuple(rows[0][1]) if rows else ()
    table.rows = iter(rows)
    return table


def _decoded(text: str) -> Any:
    """Returns the content of JSON.

    Raises:
        ValueError: no JSON, or an escape that holds half a character, which no tokenizer takes.
        RecursionError: nested too deeply.
    """
    content = json.loads(text)
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _json_lines(path: Path, problems: list[str]) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _decoded(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number}: no valid JSON in UTF-8 ({error})")
                continue
            if isinstance(row, dict):
                yield f"line {number}", row
            else:
                problems.append(f"line {number}: {type(row).__name__} in place of an object")


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = _decoded(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold a list of objects, one for each row.")
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def parquet_table(path: Path, boundary: Path) -> Table:
    """Returns the rows of a parquet file; its images stay in a memory-mapped copy in the cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        pq.read_schema(path)
        with _no_bars():
            data = load_dataset(
                "parquet",
                data_files=str(path),
                split="train",
                cache_dir=str(cache_dir() / "tables"),
            )
    except (pa.ArrowException, DatasetsError, OSError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}.") from error
    return dataset_table(data, path.name, path.parent, boundary)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets`: for local files, one each, they are noise."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def dataset_table(data: Dataset, name: str, folder: Path, boundary: Path) -> Table:
    """Returns the rows of a loaded data set, images undecoded."""
    from datasets import Image, List

    pictures = []
    for column, feature in data.features.items():
        several = isinstance(feature, List)
        single = feature.feature if several else feature
        if isinstance(single, Image):
            stored = Image(decode=False)
            data = data.cast_column(column, List(stored) if several else stored)
        # A file without the metadata of `datasets` has the same structure as a plain struct.
        if isinstance(single, Image) or (isinstance(single, dict) and "bytes" in single):
            pictures.append(column)
    rows = ((f"row {number}", row) for number, row in enumerate(data, start=1))
    images = data.select_columns(pictures) if pictures else None
    return Table(name, folder, boundary, tuple(data.column_names), rows, images=images)


def row_images(table: Table, index: int, row: Row, column: str | None) -> tuple[ImageRef, ...]:
    """Returns the references of the images in one cell: a path, a stored image, or a list of them.

    Raises:
        DataError: a path that leaves the data folder, or a cell that holds no image.
    """
    cell = row.get(column) if column else None
    if cell is None:
        return ()
    several = isinstance(cell, list)
    return tuple(
        _image(table, index, column or "", position if several else None, value)
        for position, value in enumerate(cell if several else [cell])
    )


def _image(table: Table, index: int, column: str, position: int | None, value: Any) -> ImageRef:
    if isinstance(value, str):
        return file_image(value, table.folder, boundary=table.boundary)
    if not isinstance(value, dict) or not {"bytes", "path"} & set(value):
        raise DataError(
            f"{column} holds {type(value).__name__}; accepted are a path or an image (bytes, path)"
        )
    stored, path = value.get("bytes"), value.get("path")
    name = PurePath(path).name if path else f"{table.name} row {index + 1}"
    if table.images is not None and stored is not None:
        return bytes_image(name, partial(_stored_bytes, table.images, index, column, position))
    if path is not None:
        return file_image(path, table.folder, boundary=table.boundary)
    return ImageRef(name, "", bytes, "no image is stored")


def _stored_bytes(data: Dataset, index: int, column: str, position: int | None) -> bytes:
    cell = data[index][column]
    stored: bytes = (cell if position is None else cell[position])["bytes"]
    return stored
