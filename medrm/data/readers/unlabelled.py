"""Rows without labels: JSON lines, JSON and parquet files, folders of them, and standard input.

They are read one after another, and none is passed over: what is no row says why. Of a `.json` file
all rows are in memory at once, of the other forms a few.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medrm.data.parquet_files import plain_batches, readable_parquet
from medrm.data.row_tables import SUFFIXES, decode_json, json_problem, read_json_file
from medrm.errors import DataError
from medrm.files import file_digest

STANDARD_INPUT = "-"

_NO_OBJECT = "{0.__name__} in place of an object"


class UnlabelledRow(NamedTuple):
    """One row of an input.

    Attributes:
        number: of the row in the whole input, from 1.
        row: its columns; None: it is none.
        problem: why not.
        folder: that paths of images are relative to.
    """

    number: int
    row: dict[str, Any] | None
    problem: str | None
    folder: Path


def input_files(source: str) -> list[Path]:
    """Returns the data files of an input; none for the standard input.

    Raises:
        DataError: there is no such file, or the folder holds none.
    """
    path = Path(source)
    if source == STANDARD_INPUT:
        return []
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no data file; accepted are {', '.join(SUFFIXES)}.")
        return files
    if not path.is_file():
        raise DataError(f"There is no input {source!r}. Give a file, a folder of files, or -.")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no data file; accepted are {', '.join(SUFFIXES)}.")
    return [path]


def files_digest(files: Iterable[Path]) -> str:
    """Returns the SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def count_rows(files: Iterable[Path]) -> int:
    """Returns how many rows files have, for a progress bar.

    Raises:
        DataError: a file cannot be read.
    """
    count = 0
    for path in files:
        if path.suffix.lower() == ".parquet":
            with readable_parquet(path) as parquet:
                count += parquet.metadata.num_rows
        elif path.suffix.lower() == ".json":
            count += sum(1 for _ in _contents(path))
        else:
            with path.open("rb") as lines:
                count += sum(1 for line in lines if line.strip())
    return count


def read_rows(files: Iterable[Path], image_root: Path | None = None) -> Iterator[UnlabelledRow]:
    """Yields every row of the files, in order; without files, those of the standard input.

    Args:
        files: as `input_files` gives them.
        image_root: the folder of images; None: each file's own, for the standard input this one.

    Raises:
        DataError: a file that is no JSON list or parquet table.
    """
    number = 0
    sources: Iterable[Path | None] = files or (None,)
    for path in sources:
        rows = _json_lines(sys.stdin.buffer) if path is None else _contents(path)
        folder = image_root or (Path() if path is None else path.parent)
        for content in rows:
            number += 1
            if isinstance(content, dict):
                yield UnlabelledRow(number, content, None, folder)
            else:
                yield UnlabelledRow(number, None, content, folder)


def _contents(path: Path) -> Iterator[dict[str, Any] | str]:
    """Yields each row of a file, or what is wrong with it."""
    if path.suffix.lower() == ".parquet":
        for table in plain_batches(path):
            yield from table.to_pylist()
    elif path.suffix.lower() == ".json":
        rows = read_json_file(path)
        if not isinstance(rows, list):
            raise DataError(f"{path} must hold a list of objects, one for each row.")
        yield from (row if isinstance(row, dict) else _NO_OBJECT.format(type(row)) for row in rows)
    else:
        with path.open("rb") as lines:
            yield from _json_lines(lines)


def _json_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | str]:
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = decode_json(line.decode("utf-8-sig" if index == 0 else "utf-8"))
        except (ValueError, RecursionError) as error:
            yield f"no valid JSON in UTF-8 ({json_problem(error)})"
            continue
        yield row if isinstance(row, dict) else _NO_OBJECT.format(type(row))
