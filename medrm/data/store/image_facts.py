"""What decoding each distinct image of an indexed set showed, kept beside the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medrm.data.batched import batched
from medrm.data.images import ImageFacts, facts_of
from medrm.data.store.case_records import DIGEST
from medrm.data.store.indexed_cases import (
    CaseIndex,
    IndexedCases,
    list_column,
    read_table,
    to_numpy,
)
from medrm.schema import Case, ImageRef

FACTS_FILE = "image-facts.arrow"
_SCHEMA = pa.schema(
    {
        "digest": DIGEST,
        "problem": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "pixel_digest": pa.string(),
        "perceptual_hash": pa.uint64(),
        "mode": pa.string(),
    }
)
"""`digest` and the fields of `ImageFacts`."""

_ROWS_AT_ONCE = 1024


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
        with pa.ipc.new_file(file, _SCHEMA) as writer:
            for batch in batched(records, _ROWS_AT_ONCE):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))

    tables = [index.cached(FACTS_FILE, partial(write, index), read_table) for index in indexes]
    return StoredFacts(pa.concat_tables(tables))


def _facts_records(
    index: CaseIndex, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Yields a row of `_SCHEMA` for each distinct image, in the order of their first cases."""
    all_digests, case_indices = list_column(IndexedCases(index), "image_digests")
    first = np.sort(np.unique(all_digests, return_index=True)[1])
    first = first[all_digests[first] != b""]
    digests = all_digests[first].tolist()

    def image(digest: bytes, case_number: int) -> ImageRef:
        images = index.case(case_number).images
        return next(ref for ref in images if ref.digest == digest.decode())

    facts_of_images = facts_of(map(image, digests, case_indices[first].tolist()))
    for done_count, (digest, facts) in enumerate(
        zip(digests, facts_of_images, strict=True), start=1
    ):
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
