"""Parquet files: opened as plain local paths, and copied in bounded memory into Arrow files.

A copy is mapped into memory, so that rows and images are read where they lie.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from medrm.errors import DataError, first_line, shortened
from medrm.files import cache_dir, partial_file, status_of
from medrm.integrity import fill_cache_folder

MOST_EXPANSION = 200
"""How many times its size a file may hold, compressed and with repeated values written once."""

ALWAYS_HELD = 2**26
"""64 MiB: what a file may hold whatever its size."""

_ROWS_AT_ONCE = 64
_BATCH_BYTES = 2**25
_ORDINARY_RATIO = 8
"""Of decompressed bytes to those of a file; above it, values may be large and repeated."""

_COPY = "rows.arrow"
_VERSION = 2
"""Of the copies; raised whenever the same file would give another."""


@contextmanager
def readable_parquet(path: Path) -> Iterator[Any]:
    """Yields an open `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: it is none, or is damaged where it is read.
    """
    import pyarrow.parquet as pq

    try:
        # As an open file, for in a path pyarrow and fsspec look for addresses and patterns.
        with (
            pa.OSFile(str(path)) as file,
            pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True) as parquet,
        ):
            yield parquet
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        reason = shortened(first_line(error))
        raise DataError(f"{path} is no readable parquet file: {reason}.") from error


def plain_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yields the rows of a parquet file in a few at a time, in plain Arrow types.

    Args:
        path: of the file.
        columns: to read; None: all.

    Raises:
        DataError: it is no undamaged parquet file, or holds too much for its size.
    """
    most = max(ALWAYS_HELD, MOST_EXPANSION * path.stat().st_size)
    held = 0
    with readable_parquet(path) as parquet:
        schema = _plain_schema(parquet.schema_arrow)
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        rows = _rows_at_once(parquet.metadata, most, path)
        for batch in parquet.iter_batches(rows, columns=columns, use_threads=False):
            batch.validate(full=True)
            held += batch.nbytes
            _check_held(held, most, path)
            table = pa.Table.from_batches([batch])
            yield table if table.schema == schema else table.cast(schema)


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, *, durable: bool = True) -> Iterator[Any]:
    """Yields a `pyarrow.parquet.ParquetWriter` of a file that appears when it is complete.

    The file is opened here: pyarrow reads a path such as `~/x` or `s3:x` as an address.
    """
    from pyarrow import parquet

    with (
        partial_file(path, durable=durable) as partial,
        partial.open("wb") as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        yield writer


def arrow_copy(path: Path) -> Path:
    """Returns the Arrow file of a parquet file's rows, written into the cache where it is not.

    The copy is read whole once more to see that it is undamaged, about a second for each GB. That
    is when a set is indexed; later starts take the copy by its status.

    Raises:
        DataError: as `plain_batches`.
        ConfigError: the cache cannot be written.
    """
    version = repr((_VERSION, os.path.abspath(path), status_of(path)))
    folder = cache_dir() / "tables" / hashlib.sha256(version.encode()).hexdigest()[:32]
    if not path.is_file():
        raise DataError(f"{path} is no readable parquet file: there is no such file.")

    def fill(draft: Path) -> None:
        with readable_parquet(path) as parquet:
            schema = _plain_schema(parquet.schema_arrow)
        with pa.OSFile(str(draft / _COPY), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for table in plain_batches(path):
                writer.write_table(table)

    fill_cache_folder(folder, fill)
    return folder / _COPY


def _rows_at_once(metadata: Any, most: int, path: Path) -> int:
    """Returns how many rows are decoded together.

    Metadata of columns are not asked for: damaged ones end the process (pyarrow 26).
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    decompressed: list[int] = [group.total_byte_size for group in groups]
    _check_held(sum(decompressed), most, path)
    if sum(decompressed) <= _ORDINARY_RATIO * path.stat().st_size:
        return _ROWS_AT_ONCE
    return max(1, min(_ROWS_AT_ONCE, _BATCH_BYTES // max(1, *decompressed)))


def _check_held(held: int, most: int, path: Path) -> None:
    if held > most:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes but holds more than {most:,}, which no set "
            f"of texts and images does; accepted is at most {MOST_EXPANSION} times the size of the "
            "file. Look at what it holds, and write it anew."
        )


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    """Returns the type that holds the same values without large offsets, views or dictionaries.

    Nulls without a type become texts: pyarrow cannot cast a struct that has such a field.
    """
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    ):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind
