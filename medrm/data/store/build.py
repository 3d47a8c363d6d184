"""Builds the index of a set, once, in bounded memory, and keeps it in the cache.

It lies below the digest of what it was built from: files, label rules, departments. What is held
for each case while it is built is a few numbers. An index is never changed or removed, for another
process may be reading it: where an image has changed, a further one is built beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medrm.assets import cache_dir
from medrm.data.drafts import CaseDraft, ReadResult
from medrm.data.images import StoredFile
from medrm.data.labels import AgreementTally, LabelRules, Voters, labels_of
from medrm.data.splits import cluster_names, keys_of
from medrm.data.store.cache import appear
from medrm.data.store.columns import COLUMNS, FLAT, LABEL, chunks, label_row
from medrm.data.store.index import ABOUT_FILE, CASES_FILE, Store, case_record, mapped
from medrm.errors import DataError
from medrm.files import status_of
from medrm.schema import DIMENSIONS, Case, Label

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the files of an index; raised whenever the same set would give others."""

_FILES, _KEYS = "files.jsonl", "keys.jsonl"
_AT_ONCE = 1024
_KEPT_PATHS = 2**16


def open_index(
    source: str,
    files: Sequence[Path],
    parts: Sequence[Any],
    read: Callable[[], ReadResult],
    rules: LabelRules,
    departments: Mapping[str, str],
) -> Store:
    """Returns the index of a set, built where the cache has none or an image file has changed.

    Args:
        source: of the set, for messages.
        files: that it is read from: another content, another index.
        parts: what else tells the set from others.
        read: gives its drafts.
        rules: how votes become labels.
        departments: organ to department, for cases that state none.

    Raises:
        DataError: what `read` raises, there is no case, or a file changes while it is read.
        ConfigError: rules that do not fit the votes, or a cache that cannot be written.
    """
    known = list(map(_file_part, files))
    # What an image shows depends on the library that decodes it.
    content = [VERSION, version("pillow"), known, parts, dataclasses.asdict(rules), departments]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    latest, folder = _latest(cache_dir() / "index", key)
    if latest is not None:
        changed = _changed(latest)
        if changed is None:
            return Store(latest)
        logger.info("%s: %s has changed; the set is read again", source, changed)

    def build(draft: Path) -> None:
        _build(draft, source, read(), rules, departments)
        if list(map(_file_part, files)) != known:
            raise DataError(f"{source} was changed while it was read. Start again.")

    started = time.perf_counter()
    appear(folder, build)
    store, seconds = Store(folder), time.perf_counter() - started
    logger.info("%s: %d cases read and indexed in %.1f s", source, len(store), seconds)
    return store


def _latest(index: Path, key: str) -> tuple[Path | None, Path]:
    """Returns the latest index of a key, and where the next one belongs."""
    latest = None
    for number in count():
        folder = index / f"{key}-{number}"
        if not folder.is_dir():
            break
        latest = folder
    return latest, folder


def _file_part(path: Path) -> list[Any]:
    """Returns what tells a file from its other versions.

    Of text that is its content; of a table, which may hold images, its size and times.
    """
    where = os.path.abspath(path)  # not behind links: images are looked for beside it
    if path.suffix in (".parquet", ".arrow"):
        return [where, *status_of(path)]
    with path.open("rb") as file:
        return [where, hashlib.file_digest(file, "sha256").hexdigest()]


def ordered(dimensions: Collection[str]) -> tuple[str, ...]:
    """Returns dimensions in their order: the benchmark's six first, then by name."""
    own = sorted(set(dimensions) - {*DIMENSIONS})
    return (*(name for name in DIMENSIONS if name in dimensions), *own)


def joint_digest(digests: NDArray[np.bytes_]) -> str:
    """Returns the SHA-256 over the digests of cases, whatever their order."""
    return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()


def _changed(folder: Path) -> str | None:
    """Returns a file of an index, or an image of its cases, that is not as when it was built."""
    try:
        sizes: dict[str, int] = json.loads((folder / ABOUT_FILE).read_bytes())["sizes"]
    except (OSError, ValueError):
        return str(folder / ABOUT_FILE)
    for name, size in sizes.items():
        if status_of(folder / name)[:1] != [size]:
            return str(folder / name)
    with (folder / _FILES).open(encoding="utf-8") as lines:
        for line in lines:
            path, *known = json.loads(line)
            if known != status_of(path):
                return str(path)
    return None


class _Arrays:
    """Arrays that grow in the files of a folder, which `files` closes."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._open = folder, files
        self._files: dict[str, IO[bytes]] = {}

    def add(self, name: str, values: Iterable[Any], kind: Any) -> None:
        """Appends values to an array."""
        if name not in self._files:
            file = (self._folder / f"{name}.bin").open("wb")
            self._files[name] = self._open.enter_context(file)
        self._files[name].write(np.array(list(values), dtype=kind).tobytes())


def _build(
    folder: Path,
    source: str,
    reading: ReadResult,
    rules: LabelRules,
    departments: Mapping[str, str],
) -> None:
    agreement, voters = AgreementTally(), Voters()
    # Dawid-Skene learns from all votes at once.
    streams = rules.aggregation == "shares"
    with ExitStack() as files:
        writer = _Writer(folder, departments, files)
        for drafts in chunks(reading.drafts, _AT_ONCE) if streams else [list(reading.drafts)]:
            agreement.add(drafts)
            voters.add(drafts)
            if not streams:
                voters.check(rules)
            writer.add(drafts, labels_of(drafts, rules))
        if not writer.count:
            raise DataError(
                f"{source} holds no case that can be used ({len(reading.excluded)} rows were set "
                "aside); give at least one."
            )
        voters.check(rules)
        writer.add_end()
    agreements = agreement.agreements()
    writer.conclude(
        {
            "excluded": [[entry.case_id, entry.reason] for entry in reading.excluded],
            "agreement": {name: dataclasses.astuple(one) for name, one in agreements.items()},
        }
    )


class _Writer:
    """Writes the files of an index, draft by draft."""

    def __init__(self, folder: Path, departments: Mapping[str, str], files: ExitStack) -> None:
        self.count = 0
        self._started = time.time_ns()
        self._folder, self._departments = folder, departments
        self._arrays = _Arrays(folder, files)
        self._lines = files.enter_context((folder / CASES_FILE).open("wb"))
        self._files = files.enter_context((folder / _FILES).open("w", encoding="utf-8"))
        self._paths: set[str] = set()
        self._tables: dict[tuple[str, ...], int] = {}
        self._dimensions: dict[str, int] = {}
        self._key_lines = files.enter_context((folder / _KEYS).open("wb"))
        self._key_starts, self._key_counts = array("Q"), array("i")
        self._keys = array("q")

    def add(self, drafts: Sequence[CaseDraft], labels: Sequence[Mapping[str, Label]]) -> None:
        """Appends cases."""
        cases = [self._case(draft, own) for draft, own in zip(drafts, labels, strict=True)]
        for draft, case in zip(drafts, cases, strict=True):
            keys = keys_of(draft)
            self._keys.extend(map(hash, keys))
            self._key_counts.append(len(keys))
            self._arrays.add("start", [self._lines.tell()], "<u8")
            self._key_starts.append(self._key_lines.tell())
            self._key_lines.write(json.dumps(keys).encode() + b"\n")
            record = case_record(case, self._tables)
            self._lines.write(json.dumps(record).encode() + b"\n")
            self._note_files(case)
        for name, (kind, value) in COLUMNS.items():
            self._arrays.add(name, map(value, cases), kind)
        for name, (kind, values) in FLAT.items():
            self._arrays.add(name, (one for case in cases for one in values(case)), kind)
        self._add_labels(cases)
        self.count += len(cases)

    def add_end(self) -> None:
        """Marks the end of the last case, and keeps what tells the tables of images."""
        self._arrays.add("start", [self._lines.tell()], "<u8")
        for path in (path for files in self._tables for path in files):
            self._files.write(json.dumps([path, *status_of(path)]) + "\n")

    def conclude(self, about: Mapping[str, Any]) -> None:
        """Writes what is known once all cases are written and the files closed."""
        self._write_clusters()
        known = {
            "cases": self.count,
            "dimensions": list(self._dimensions),
            "tables": list(self._tables),
            "digest": joint_digest(mapped(self._folder / "digest.bin", COLUMNS["digest"][0])),
            "sizes": {path.name: path.stat().st_size for path in self._folder.iterdir()},
            **about,
        }
        (self._folder / ABOUT_FILE).write_text(json.dumps(known), encoding="utf-8")

    def _write_clusters(self) -> None:
        marks = np.frombuffer(self._keys, np.int64)
        counts = np.frombuffer(self._key_counts, np.int32)
        with (self._folder / _KEYS).open("rb") as lines:

            def key(case: int, number: int) -> str:
                lines.seek(self._key_starts[case])
                return str(json.loads(lines.readline())[number])

            cluster_names(marks, counts, key).tofile(self._folder / "cluster.bin")
        (self._folder / _KEYS).unlink()  # it names patients

    def _case(self, draft: CaseDraft, labels: Mapping[str, Label]) -> Case:
        groups = dict(draft.groups)
        if "department" not in groups and groups.get("organ") in self._departments:
            groups["department"] = self._departments[groups["organ"]]
        return Case(draft.case_id, draft.images, draft.question, draft.answers, labels, "", groups)

    def _add_labels(self, cases: Sequence[Case]) -> None:
        for name in dict.fromkeys(name for case in cases for name in case.labels):
            if name not in self._dimensions:
                self._dimensions[name] = len(self._dimensions)
                earlier = np.zeros(self.count, LABEL)
                self._arrays.add(f"label-{self._dimensions[name]}", earlier, LABEL)
        for name, number in self._dimensions.items():
            rows = (label_row(case.labels.get(name)) for case in cases)
            self._arrays.add(f"label-{number}", rows, LABEL)

    def _note_files(self, case: Case) -> None:
        """Keeps what tells image files from other versions, some of them perhaps more than once."""
        for ref in case.images:
            path = (ref.read.link or ref.read.path) if isinstance(ref.read, StoredFile) else ""
            if path and path not in self._paths:
                if len(self._paths) >= _KEPT_PATHS:
                    self._paths.clear()
                self._paths.add(path)
                # One that changes while it is read counts as changed at the next start.
                status = status_of(path)
                known = [] if max(status[1:], default=0) >= self._started else status
                self._files.write(json.dumps([path, *known]) + "\n")
