"""A set on disk: its cases, decoded one at a time, and its columns as arrays.

    folder/cases.arrow        one row for each case (`case_records.SCHEMA`), mapped into memory
    folder/clusters.npy       the cluster of each case
    folder/index.json         what is known of the whole set
    folder/image-facts.arrow  what decoding each distinct image showed
    folder/*.npy, *.json      what was computed from the set since: splits, token counts, ...
    folder/*.sha256           the digest of each file that was written since

The functions of this module take any sequence of cases. Of an index they read the columns and
decode no case; of a list they compute the same. `medrm.data.store.build_index` writes an index.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medrm.data.batched import batched
from medrm.data.images import ImageFacts, facts_of
from medrm.data.store.case_records import (
    DIGEST,
    LABEL,
    SCHEMA,
    case_record,
    decode_case,
    label_numbers,
)
from medrm.files import discard, file_digest, write_cache_file
from medrm.schema import Case, ImageRef

DECODED_CASES = 4096
"""How many decoded cases a process keeps."""

INDEX_FILE, CASES_FILE, CLUSTERS_FILE = "index.json", "cases.arrow", "clusters.npy"
FACTS_FILE = "image-facts.arrow"
_FACTS_SCHEMA = pa.schema(
    {
        "digest": DIGEST,
        "problem": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "pixel_digest": pa.string(),
        "perceptual_hash": pa.uint64(),
        "mode": pa.string(),
        "contrast": pa.int32(),
    }
)
"""`digest` and the fields of `ImageFacts`."""

_ROWS_AT_ONCE = 1024

Content = TypeVar("Content")
"""Of a file."""

Indices = NDArray[np.int64]
"""Of cases in a sequence, from 0."""

TOKEN_COUNT = np.dtype([("longest", "<i4"), ("unique", "<i4")])
"""Tokens of a case: of its longest row, and of what its rows share once with the rest of each."""

TokenCounts = Mapping[str, Any] | NDArray[Any]
"""`TOKEN_COUNT` of cases: by id, or for each case of an index, 0 where they were not counted. One
number stands for both of its fields."""


class CaseIndex:
    """An index of cases; picklable, and opened again where it is unpickled.

    Raises:
        OSError: a file is missing.
        ValueError: a file is torn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.table = read_table(folder / CASES_FILE)
        self.clusters = np.load(folder / CLUSTERS_FILE, mmap_mode="r")
        self.case = lru_cache(DECODED_CASES)(self._case)

    def __reduce__(self) -> tuple[type[CaseIndex], tuple[Path]]:
        return CaseIndex, (self.folder,)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def case_json(self, number: int) -> str:
        """Returns a case as it is stored."""
        return str(self.table["case_json"][number].as_py())

    def _case(self, number: int) -> Case:
        cluster = self.clusters[number].decode()
        return decode_case(self.case_json(number), cluster, self.about["tables"])

    def cached_json(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the content of a JSON file of the index, computed where there is none.

        Args:
            name: of the file; it tells all that the content depends on besides the cases.
            compute: gives the content.
        """
        return self.cached(
            f"{name}.json",
            lambda file: file.write(json.dumps(compute()).encode()),
            lambda path: json.loads(path.read_bytes()),
        )

    def cached_array(self, name: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Returns the array in a file of the index, mapped into memory; see `cached_json`."""
        return self.cached(
            f"{name}.npy",
            lambda file: np.save(file, compute()),
            lambda path: np.load(path, mmap_mode="r"),
        )

    def cached(
        self, name: str, write: Callable[[BinaryIO], object], read: Callable[[Path], Content]
    ) -> Content:
        """Returns the content of a file of the index, written where there is no whole one.

        Its SHA-256 stands in a file beside it.

        Args:
            name: of the file.
            write: writes the content.
            read: reads it.
        """
        path, digest_path = self.folder / name, self.folder / f"{name}.sha256"
        with suppress(OSError, ValueError):
            if digest_path.read_text(encoding="ascii") == file_digest(path):
                return read(path)
        buffer = io.BytesIO()
        write(buffer)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        discard(path)  # somebody has put a folder there
        discard(digest_path)
        write_cache_file(digest_path, digest.encode())
        write_cache_file(path, buffer.getvalue())
        return read(path)


class IndexedCases(Sequence[Case]):
    """The cases of an index, or some of them; each is decoded when it is asked for."""

    def __init__(self, case_index: CaseIndex, indices: Indices | None = None) -> None:
        self.case_index = case_index
        self._indices = indices

    @property
    def indices(self) -> Indices:
        """Where the cases stand in the index."""
        return np.arange(len(self.case_index)) if self._indices is None else self._indices

    def __len__(self) -> int:
        return len(self.case_index) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Case: ...

    @overload
    def __getitem__(self, index: slice) -> IndexedCases: ...

    def __getitem__(self, index: int | slice) -> Case | IndexedCases:
        """Returns a case, or some of them."""
        if isinstance(index, slice):
            return IndexedCases(self.case_index, self.indices[index])
        number = range(len(self))[index]
        return self.case_index.case(number if self._indices is None else int(self._indices[number]))


def read_table(path: Path) -> pa.Table:
    """Returns an Arrow file as a table that is mapped into memory.

    Raises:
        OSError: there is no such file.
        ValueError: it is torn.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def select(cases: Sequence[Case], indices: Indices) -> Sequence[Case]:
    """Returns some of the cases, in the order of the indices."""
    if isinstance(cases, IndexedCases):
        return IndexedCases(cases.case_index, cases.indices[indices])
    return [cases[index] for index in indices.tolist()]


def concatenate(first: Sequence[Case], second: Sequence[Case]) -> Sequence[Case]:
    """Returns the cases of both; those of one index stay in it."""
    if (
        isinstance(first, IndexedCases)
        and isinstance(second, IndexedCases)
        and first.case_index is second.case_index
    ):
        return IndexedCases(first.case_index, np.concatenate([first.indices, second.indices]))
    return [*first, *second]


def column(cases: Sequence[Case], name: str) -> NDArray[Any]:
    """Returns a column of `SCHEMA` that holds one number or digest for each case."""
    table, indices = _table_of(cases)
    return to_numpy(table[name])[indices]


def list_column(cases: Sequence[Case], name: str) -> tuple[NDArray[Any], Indices]:
    """Returns a column of `SCHEMA` that holds several numbers or digests for each case.

    Returns:
        The values, those of one case after those of another, and the index of each value's case.
    """
    table, indices = _table_of(cases)
    lists = table[name].take(pa.array(indices))
    counts = pc.list_value_length(lists).to_numpy()
    return to_numpy(pc.list_flatten(lists)), np.repeat(np.arange(len(indices)), counts)


def distinct_images(cases: Sequence[Case]) -> tuple[NDArray[np.bytes_], Indices]:
    """Returns the digests of the distinct images that have bytes, in the order in which they are
    first met, and the index of the last case that shows each.
    """
    digests, case_indices = list_column(cases, "image_digests")
    case_indices, digests = case_indices[digests != b""], digests[digests != b""]
    distinct, first = np.unique(digests, return_index=True)
    last = len(digests) - 1 - np.unique(digests[::-1], return_index=True)[1]
    order = np.argsort(first)
    return distinct[order], case_indices[last[order]]


def image_of(case: Case, digest: bytes) -> ImageRef:
    """Returns the last image of a case that has this digest."""
    return next(ref for ref in reversed(case.images) if ref.digest == digest.decode())


def cluster_column(cases: Sequence[Case]) -> NDArray[np.bytes_]:
    """Returns the cluster of each case; a case without one is a cluster of its own."""
    if isinstance(cases, IndexedCases):
        clusters: NDArray[np.bytes_] = cases.case_index.clusters[cases.indices]
        return clusters
    return np.array([(case.cluster or case.case_id).encode() for case in cases], dtype=np.bytes_)


def label_column(cases: Sequence[Case], dimension: str) -> NDArray[Any]:
    """Returns the labels on a dimension, `LABEL` for each case."""
    if not isinstance(cases, IndexedCases):
        return np.array([label_numbers(case.labels.get(dimension)) for case in cases], dtype=LABEL)
    index = cases.case_index
    if dimension not in index.about["dimensions"]:
        return np.zeros(len(cases), LABEL)
    labels: NDArray[Any] = index.cached_array(
        f"labels-{index.about['dimensions'].index(dimension)}",
        lambda: np.concatenate([_labels(c, dimension) for c in index.table["labels"].chunks]),
    )
    return labels[cases.indices]


def tokens_of(
    cases: Sequence[Case], counts: TokenCounts, field: Literal["longest", "unique"] = "longest"
) -> NDArray[np.int64]:
    """Returns the tokens of each case: of its longest row, or those that are unique."""
    if isinstance(counts, Mapping):
        counts_of_cases = np.array([counts[case.case_id] for case in cases], dtype=TOKEN_COUNT)
    else:
        assert isinstance(cases, IndexedCases)
        counts_of_cases = counts[cases.indices]
    return counts_of_cases[field].astype(np.int64)


def to_numpy(values: pa.ChunkedArray) -> NDArray[Any]:
    """Returns a column of numbers, or of bytes of one length, as an array."""
    if not pa.types.is_fixed_size_binary(values.type):
        numbers: NDArray[Any] = values.to_numpy()
        return numbers
    array = values.combine_chunks()
    dtype = np.dtype(f"S{values.type.byte_width}")
    return np.frombuffer(array.buffers()[1] or b"", dtype)[array.offset :][: len(array)]


def _table_of(cases: Sequence[Case]) -> tuple[pa.Table, Indices]:
    """Returns a table that holds the cases, and where they stand in it."""
    if isinstance(cases, IndexedCases):
        return cases.case_index.table, cases.indices
    records = [case_record(case, {}) for case in cases]
    return pa.Table.from_pylist(records, schema=SCHEMA), np.arange(len(cases))


def _labels(labels: pa.ListArray, dimension: str) -> NDArray[Any]:
    """Returns `LABEL` for each list of labels, zeros where none is on the dimension."""
    label_structs = labels.flatten()
    on_dimension = pc.equal(label_structs.field("dimension"), dimension)
    mask = on_dimension.to_numpy(zero_copy_only=False)
    case_indices = labels.value_parent_indices().to_numpy()[mask]
    rows = np.zeros(len(labels), LABEL)
    for name in LABEL.names or ():
        numbers = label_structs.field(name).to_numpy(zero_copy_only=False)
        rows[name][case_indices] = numbers[mask]
    return rows


class StoredFacts(Mapping[str, ImageFacts]):
    """The facts of images by digest, read from their file when asked for.

    Attributes:
        unreadable: digests of the images that cannot be decoded.
    """

    def __init__(self, table: pa.Table) -> None:
        self._digests, self._rows = np.unique(to_numpy(table["digest"]), return_index=True)
        self._facts = table.drop("digest")
        self.unreadable = to_numpy(table.filter(pc.is_valid(table["problem"]))["digest"])

    def __getitem__(self, digest: str) -> ImageFacts:
        number = int(np.searchsorted(self._digests, np.bytes_(digest)))
        if number == len(self) or self._digests[number] != digest.encode():
            raise KeyError(digest)
        return ImageFacts(**self._facts.slice(self._rows[number], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self._digests.tolist())

    def __len__(self) -> int:
        return len(self._digests)


def stored_facts(
    indexes: Sequence[CaseIndex], progress: Callable[[int, int], None] | None = None
) -> StoredFacts:
    """Returns the facts of the images of some sets; each image is decoded once and never again.

    Args:
        indexes: of the sets.
        progress: called with the number done and the number of distinct images of a set.
    """

    def write(index: CaseIndex, file: BinaryIO) -> None:
        records = _facts_records(index, progress or (lambda done, total: None))
        with pa.ipc.new_file(file, _FACTS_SCHEMA) as writer:
            for batch in batched(records, _ROWS_AT_ONCE):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_FACTS_SCHEMA))

    tables = [index.cached(FACTS_FILE, partial(write, index), read_table) for index in indexes]
    return StoredFacts(pa.concat_tables(tables))


def _facts_records(
    index: CaseIndex, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Yields a row of `_FACTS_SCHEMA` for each distinct image, in the order of first cases."""
    digests, case_indices = distinct_images(IndexedCases(index))
    cases = map(index.case, case_indices.tolist())
    facts_of_images = zip(digests, facts_of(map(image_of, cases, digests)), strict=True)
    for done_count, (digest, facts) in enumerate(facts_of_images, start=1):
        progress(done_count, len(digests))
        yield {"digest": digest, **asdict(facts)}


def unreadable_cases(cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> NDArray[np.bool_]:
    """Returns whether each case has an image that cannot be read."""
    if isinstance(facts, StoredFacts):
        unreadable = facts.unreadable
    else:
        unreadable = np.array([key for key in facts if facts[key].problem], dtype="S64")
    digests, case_indices = list_column(cases, "image_digests")
    flags = np.zeros(len(cases), dtype=np.bool_)
    flags[case_indices[np.isin(digests, np.append(unreadable, b""))]] = True
    return flags
