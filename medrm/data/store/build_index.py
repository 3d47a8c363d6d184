"""Builds the index of a set, once, in bounded memory, and keeps it in the cache.

The folder's name is a digest of what the set is read from: files, label rules, departments. What is
held for each case while it is built is a few numbers. An index is never changed or removed, for
another process may be reading it: where an image has changed, a further one is built beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medrm.assets import cache_dir
from medrm.data.batched import batched
from medrm.data.drafts import CaseDraft, ReadResult
from medrm.data.images import StoredFile
from medrm.data.labels import AgreementTally, LabelRules, Voters, labels_of
from medrm.data.splits import cluster_keys, cluster_names
from medrm.data.store.cache import fill_cache_folder
from medrm.data.store.case_records import SCHEMA, case_record
from medrm.data.store.indexed_cases import (
    CASES_FILE,
    CLUSTERS_FILE,
    INDEX_FILE,
    CaseIndex,
    read_table,
    to_numpy,
)
from medrm.errors import DataError
from medrm.files import status_of
from medrm.schema import DIMENSIONS, Case, Label

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the files of an index; raised whenever the same set would give others."""

_SOURCES_FILE, _KEYS_FILE = "sources.arrow", "keys.arrow"
_SOURCES = pa.schema({"path": pa.binary(), "status": pa.list_(pa.int64())})
_KEYS = pa.schema({"keys": pa.list_(pa.string())})
_CASES_AT_ONCE = 1024
_REMEMBERED_PATHS = 2**16


def open_index(
    source: str,
    files: Sequence[Path],
    identity: Sequence[Any],
    read: Callable[[], ReadResult],
    rules: LabelRules,
    departments: Mapping[str, str],
) -> CaseIndex:
    """Returns the index of a set, built where the cache has none or an image file has changed.

    Args:
        source: of the set, for messages.
        files: that it is read from: another content, another index.
        identity: what else tells the set from others.
        read: gives its drafts.
        rules: how votes become labels.
        departments: organ to department, for cases that state none.

    Raises:
        DataError: what `read` raises, there is no case, or a file changes while it is read.
        ConfigError: rules that do not fit the votes, or a cache that cannot be written.
    """
    versions = list(map(_file_version, files))
    # What an image shows depends on the library that decodes it.
    content = [
        VERSION, version("pillow"), versions, identity, dataclasses.asdict(rules), departments
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    folders = (cache_dir() / "index" / f"{key}-{number}" for number in count())
    existing = list(takewhile(Path.is_dir, folders))
    if existing:
        changed = _changed_file(existing[-1])
        if changed is None:
            return CaseIndex(existing[-1])
        logger.info("%s: %s has changed; the set is read again", source, changed)
    folder = cache_dir() / "index" / f"{key}-{len(existing)}"

    def build(draft: Path) -> None:
        _build(draft, source, read(), rules, departments)
        if list(map(_file_version, files)) != versions:
            raise DataError(f"{source} was changed while it was read. Start again.")

    started = time.perf_counter()
    fill_cache_folder(folder, build)
    index, seconds = CaseIndex(folder), time.perf_counter() - started
    logger.info("%s: %d cases read and indexed in %.1f s", source, len(index), seconds)
    return index


def _file_version(path: Path) -> list[Any]:
    """Returns what tells a file from its other versions.

    Of text that is its content; of a table, which may hold images, its size and times.
    """
    location = os.path.abspath(path)  # not behind links: images are looked for beside it
    if path.suffix in (".parquet", ".arrow"):
        return [location, *status_of(path)]
    with path.open("rb") as file:
        return [location, hashlib.file_digest(file, "sha256").hexdigest()]


def _changed_file(folder: Path) -> str | None:
    """Returns a file of an index, or an image of its cases, that is not as when it was built."""
    try:
        CaseIndex(folder)
        sources = read_table(folder / _SOURCES_FILE)
    except (OSError, ValueError, EOFError):
        return str(folder)
    for batch in sources.to_batches():
        for path, status in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if status != status_of(os.fsdecode(path)):
                return os.fsdecode(path)
    return None


def order_dimensions(dimensions: Collection[str]) -> tuple[str, ...]:
    """Returns dimensions in their order: the benchmark's six first, then by name."""
    others = sorted(set(dimensions) - {*DIMENSIONS})
    return (*(name for name in DIMENSIONS if name in dimensions), *others)


def joint_digest(digests: NDArray[np.bytes_]) -> str:
    """Returns the SHA-256 over the digests of cases, whatever their order."""
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()


def _build(
    folder: Path,
    source: str,
    result: ReadResult,
    rules: LabelRules,
    departments: Mapping[str, str],
) -> None:
    agreement, voters = AgreementTally(), Voters()
    # Dawid-Skene learns from all votes at once.
    streams = rules.aggregation == "shares"
    with ExitStack() as files:
        writer = _IndexWriter(folder, departments, files)
        for drafts in batched(result.drafts, _CASES_AT_ONCE) if streams else [list(result.drafts)]:
            agreement.add(drafts)
            voters.add(drafts)
            if not streams:
                voters.check(rules)
            labelled = zip(drafts, labels_of(drafts, rules), strict=True)
            for batch in batched(labelled, _CASES_AT_ONCE):
                writer.add(batch)
        if not writer.case_count:
            raise DataError(
                f"{source} holds no case that can be used ({len(result.excluded)} rows were set "
                "aside); give at least one."
            )
        voters.check(rules)
        writer.add_tables()
    agreements = agreement.agreements()
    writer.conclude(
        {
            "excluded": [dataclasses.astuple(excluded) for excluded in result.excluded],
            "agreement": {name: dataclasses.astuple(agreements[name]) for name in agreements},
        }
    )


class _IndexWriter:
    """Writes the files of an index batch by batch; `files` closes them."""

    def __init__(self, folder: Path, departments: Mapping[str, str], files: ExitStack) -> None:
        self.case_count = 0
        self._started = time.time_ns()
        self._folder, self._departments = folder, departments
        self._writers = {
            name: files.enter_context(pa.ipc.new_file(str(folder / name), schema))
            for name, schema in (
                (CASES_FILE, SCHEMA), (_KEYS_FILE, _KEYS), (_SOURCES_FILE, _SOURCES)
            )
        }  # fmt: skip
        self._paths: set[str] = set()
        self._tables: dict[tuple[str, ...], int] = {}
        self._dimensions: dict[str, None] = {}

    def add(self, drafts: Sequence[tuple[CaseDraft, Mapping[str, Label]]]) -> None:
        """Appends the cases of drafts and their labels."""
        cases = [self._case(draft, labels) for draft, labels in drafts]
        self._write(CASES_FILE, SCHEMA, [case_record(case, self._tables) for case in cases])
        self._write(_KEYS_FILE, _KEYS, [{"keys": cluster_keys(draft)} for draft, _ in drafts])
        self._write(_SOURCES_FILE, _SOURCES, list(self._image_files(cases)))
        self._dimensions |= dict.fromkeys(name for case in cases for name in case.labels)
        self.case_count += len(cases)

    def add_tables(self) -> None:
        """Notes the files of the tables that hold images."""
        self._write(
            _SOURCES_FILE,
            _SOURCES,
            [_source(path, status_of(path)) for files in self._tables for path in files],
        )

    def conclude(self, about: Mapping[str, Any]) -> None:
        """Writes what is known once all cases are written and the files closed."""
        keys_path = self._folder / _KEYS_FILE
        clusters = cluster_names(read_table(keys_path)["keys"])
        keys_path.unlink()  # it names patients
        np.save(self._folder / CLUSTERS_FILE, clusters)
        content = {
            "dimensions": list(self._dimensions),
            "tables": list(self._tables),
            "digest": joint_digest(to_numpy(read_table(self._folder / CASES_FILE)["digest"])),
            **about,
        }
        (self._folder / INDEX_FILE).write_text(json.dumps(content), encoding="utf-8")

    def _write(self, file: str, schema: pa.Schema, records: list[dict[str, Any]]) -> None:
        self._writers[file].write_batch(pa.RecordBatch.from_pylist(records, schema=schema))

    def _case(self, draft: CaseDraft, labels: Mapping[str, Label]) -> Case:
        groups = dict(draft.groups)
        if "department" not in groups and groups.get("organ") in self._departments:
            groups["department"] = self._departments[groups["organ"]]
        return Case(draft.case_id, draft.images, draft.question, draft.answers, labels, "", groups)

    def _image_files(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Yields what tells image files from other versions, some of them perhaps repeatedly."""
        for ref in (ref for case in cases for ref in case.images):
            path = (ref.read.link or ref.read.path) if isinstance(ref.read, StoredFile) else ""
            if path and path not in self._paths:
                if len(self._paths) >= _REMEMBERED_PATHS:
                    self._paths.clear()
                self._paths.add(path)
                # One that changes while it is read counts as changed at the next start.
                status = status_of(path)
                changing = max(status[1:], default=0) >= self._started
                yield _source(path, [] if changing else status)


def _source(path: str, status: list[int]) -> dict[str, Any]:
    return {"path": os.fsencode(path), "status": status}
