"""The index of cases of several sets, made of the indexes of these sets; no file is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medrm.data.batched import batched
from medrm.data.splits import cluster_names
from medrm.data.store.build_index import CASES, KEYS, VERSION, joint_digest
from medrm.data.store.case_records import case_record
from medrm.data.store.indexed_cases import (
    CASES_FILE,
    CLUSTERS_FILE,
    INDEX_FILE,
    CaseIndex,
    IndexedCases,
    read_table,
    to_numpy,
)
from medrm.data.store.vote_records import VOTES, VOTES_FILE, VoteCodes, VotesOfCase, votes_on
from medrm.files import cache_dir
from medrm.integrity import fill_cache_folder

SET_GROUP = "set"
"""The group of a case that says which set it comes from."""

_SETS_FILE = "sets.npy"
_CASES_AT_ONCE = 1024


class JoinedCases(NamedTuple):
    """Cases of one set that are joined with those of others.

    Attributes:
        name: of the set, before the ids of its cases and their group `set`; empty: neither.
        cases: of an index that is as the data are now, in its order.
    """

    name: str
    cases: IndexedCases


def open_joint_index(parts: Sequence[JoinedCases]) -> CaseIndex:
    """Returns the index of the cases of several sets, built where the cache has none.

    Cases that share an image, a patient or a study are one cluster, whichever set they come from.

    Raises:
        ConfigError: the cache cannot be written.
    """
    fields: list[Any] = [VERSION, "joint"]
    for part in parts:
        index, numbers = part.cases.case_index, part.cases.indices.astype("<i8")
        drawn = hashlib.sha256(numbers.tobytes()).hexdigest()
        fields.append([part.name, index.folder.name, index.about["digest"], drawn])
    key = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]
    folder = cache_dir() / "index" / f"{key}-joint"
    fill_cache_folder(folder, partial(_build, parts))
    return CaseIndex(folder)


def set_numbers(cases: IndexedCases) -> NDArray[np.int16]:
    """Returns from which of the joined sets each case of a joint index comes."""
    numbers: NDArray[np.int16] = np.load(cases.case_index.folder / _SETS_FILE)[cases.indices]
    return numbers


def _build(parts: Sequence[JoinedCases], folder: Path) -> None:
    """Writes the files of a joint index into a folder; its images are watched by their own sets."""
    codes = VoteCodes()
    tables: dict[tuple[str, ...], int] = {}
    dimensions: dict[str, None] = {}
    cases_path, keys_path = folder / CASES_FILE, folder / "keys.arrow"
    with (
        pa.ipc.new_file(str(cases_path), CASES) as cases_file,
        pa.ipc.new_file(str(keys_path), KEYS) as keys_file,
        pa.ipc.new_file(str(folder / VOTES_FILE), VOTES) as votes_file,
    ):
        for number, part in enumerate(parts):
            for batch in batched(_records(part, tables, dimensions), _CASES_AT_ONCE):
                cases_file.write_batch(pa.RecordBatch.from_pylist(batch, schema=CASES))
            for keys in batched(_keys(part, number), _CASES_AT_ONCE):
                keys_file.write_batch(pa.RecordBatch.from_pydict({"keys": keys}, schema=KEYS))
            for votes in batched(_votes(part), _CASES_AT_ONCE):
                votes_file.write_batch(codes.records(votes))
    np.save(folder / CLUSTERS_FILE, cluster_names(read_table(keys_path)["keys"]))
    keys_path.unlink()
    counts = [len(part.cases) for part in parts]
    np.save(folder / _SETS_FILE, np.repeat(np.arange(len(parts), dtype=np.int16), counts))
    about = {
        "dimensions": list(dimensions),
        "tables": list(tables),
        "digest": joint_digest(to_numpy(read_table(cases_path)["digest"])),
        "annotators": list(codes.annotators),
        "voted": list(codes.dimensions),
    }
    (folder / INDEX_FILE).write_text(json.dumps(about), encoding="utf-8")


def _records(
    part: JoinedCases, tables: dict[tuple[str, ...], int], dimensions: dict[str, None]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each case of a part; its tables and dimensions are added to the others."""
    for case in part.cases:
        if part.name:
            groups = {**case.groups, SET_GROUP: part.name}
            case = replace(case, case_id=f"{part.name}/{case.case_id}", groups=groups)
        dimensions |= dict.fromkeys(case.labels)
        yield case_record(case, tables) | {"image_files": [], "cluster_keys": []}


def _keys(part: JoinedCases, number: int) -> Iterator[list[str]]:
    """Yields what the clusters of a part's cases are known by, in their set and beyond it."""
    index, indices = part.cases.case_index, part.cases.indices
    for numbers in batched(indices.tolist(), _CASES_AT_ONCE):
        shared = index.table["cluster_keys"].take(pa.array(numbers, pa.int64())).to_pylist()
        for row, keys in zip(numbers, shared, strict=True):
            yield [f"{number}:{index.clusters[row].decode()}", *map(bytes.decode, keys)]


def _votes(part: JoinedCases) -> Iterator[VotesOfCase]:
    """Yields the votes on each case of a part, which are empty where nobody voted."""
    count = 0
    for position, votes in votes_on(part.cases):
        yield from repeat({}, position - count)
        yield votes
        count = position + 1
    yield from repeat({}, len(part.cases) - count)
