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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medrm.data.batched import batched
from medrm.data.image_references import ConvertedFile, StoredFile
from medrm.data.labels import LabelRules, VoteTally, labels_of
from medrm.data.medical.converted_set import ConvertedTally, warn_of_burned_in
from medrm.data.sources import CaseDraft, ReadResult, size_problem
from medrm.data.splits import cluster_keys, cluster_names
from medrm.data.store.case_records import DIGEST, SCHEMA, case_record
from medrm.data.store.indexed_cases import (
    CASES_FILE,
    CLUSTERS_FILE,
    INDEX_FILE,
    CaseIndex,
    read_table,
    to_numpy,
)
from medrm.data.store.vote_records import VOTES, VOTES_FILE, VoteCodes
from medrm.errors import DataError, alike_together, report
from medrm.files import cache_dir, file_digest, status_of
from medrm.integrity import damage, fill_cache_folder
from medrm.schema import DIMENSIONS, Case, Label

logger = logging.getLogger(__name__)

VERSION = 11
"""Of the files of an index; raised whenever the same set would give others."""

CASES = SCHEMA.append(pa.field("image_files", pa.list_(pa.string()))).append(
    pa.field("cluster_keys", pa.list_(DIGEST))
)
"""`cluster_keys` are hashes of what cases of another set may share, such as a patient."""

KEYS = pa.schema({"keys": pa.list_(pa.string())})
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
    key_fields = [
        VERSION, PIL.__version__, versions, identity, dataclasses.asdict(rules), departments
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(key_fields, sort_keys=True).encode()).hexdigest()[:32]
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
    if path.suffix.lower() in (".parquet", ".arrow"):
        return [location, *status_of(path)]
    return [location, file_digest(path)]


def _changed_file(folder: Path) -> str | None:
    """Returns a file of an index, or an image of its cases, that is not as when it was built.

    The files of the index are read whole, about a second for each GB: a set of a million cases of
    1 kB takes that second. Of images and tables the status tells.
    """
    problems = damage(folder)
    if problems:
        return f"{folder} ({'; '.join(problems)})"
    index = CaseIndex(folder)
    image_files = pc.unique(pc.list_flatten(index.table["image_files"])).to_pylist()
    for path, status in (*index.about["table_files"], *map(json.loads, image_files)):
        if status != status_of(path):
            return str(path)
    return None


def order_dimensions(dimensions: Collection[str]) -> tuple[str, ...]:
    """Returns dimensions in their order: the benchmark's six first, then by name."""
    further = sorted(set(dimensions) - {*DIMENSIONS})
    return (*(name for name in DIMENSIONS if name in dimensions), *further)


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
    """Writes the files of an index into a folder."""
    started = time.time_ns()
    tally, codes = VoteTally(), VoteCodes()
    tables: dict[tuple[str, ...], int] = {}
    converted = ConvertedTally()
    dimensions: dict[str, None] = {}
    noted_paths: set[str] = set()
    cases_path, keys_path = folder / CASES_FILE, folder / "keys.arrow"
    with (
        pa.ipc.new_file(str(cases_path), CASES) as cases_file,
        pa.ipc.new_file(str(keys_path), KEYS) as keys_file,
        pa.ipc.new_file(str(folder / VOTES_FILE), VOTES) as votes_file,
    ):
        labelled = _labelled(result.drafts, rules, tally)
        for batch in batched(labelled, _CASES_AT_ONCE):
            cases = [_case(draft, labels, departments) for draft, labels in batch]
            keys = [cluster_keys(draft) for draft, _ in batch]
            records = [
                case_record(case, tables)
                | {"image_files": list(_image_files(case, started, noted_paths))}
                | {"cluster_keys": list(map(_key_digest, filter(_is_shared, keys_of_case)))}
                for case, keys_of_case in zip(cases, keys, strict=True)
            ]
            converted.add(chain.from_iterable(case.images for case in cases))
            cases_file.write_batch(pa.RecordBatch.from_pylist(records, schema=CASES))
            keys_file.write_batch(pa.RecordBatch.from_pydict({"keys": keys}, schema=KEYS))
            votes_file.write_batch(codes.records([draft.votes for draft, _ in batch]))
            dimensions |= dict.fromkeys(name for case in cases for name in case.labels)
            if problem := size_problem(None, dimensions):
                raise DataError(f"{source}: {problem}. A dimension is a quality that is judged.")
    digests = to_numpy(read_table(cases_path)["digest"])
    if not len(digests):
        raise _no_case(source, result)
    np.save(folder / CLUSTERS_FILE, cluster_names(read_table(keys_path)["keys"]))
    keys_path.unlink()  # it names patients
    about: dict[str, Any] = {
        "dimensions": list(dimensions),
        "tables": list(tables),
        "table_files": [[path, status_of(path)] for files in tables for path in files],
        "digest": joint_digest(digests),
        "converted": converted.summary(),
        "excluded": list(map(dataclasses.astuple, result.excluded)),
        "annotators": list(codes.annotators),
        "voted": list(codes.dimensions),
        "fast_votes": {"by_annotator": dict(tally.dropped), "examples": tally.examples},
        "agreement": {
            name: dataclasses.astuple(of_dimension)
            for name, of_dimension in tally.agreements().items()
        },
    }
    warn_of_burned_in(source, about["converted"])
    (folder / INDEX_FILE).write_text(json.dumps(about), encoding="utf-8")


def _is_shared(key: str) -> bool:
    """Returns whether a cluster's key means the same in another set; ids of prompts do not."""
    return not key.startswith("prompt:")


def _key_digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _no_case(source: str, result: ReadResult) -> DataError:
    """Returns what is said of a set without a case."""
    reasons = [f"{row.case_id!r}: {row.reason}" for row in result.excluded]
    title = f"{source} holds no case that can be used; give at least one. It has no rows."
    if reasons:
        title = f"{source} holds no case that can be used; {len(reasons)} rows are set aside:"
    return DataError(report(title, alike_together(reasons)))


def _labelled(
    drafts: Iterable[CaseDraft], rules: LabelRules, tally: VoteTally
) -> Iterator[tuple[CaseDraft, Mapping[str, Label]]]:
    """Yields drafts with their labels, and counts their votes."""
    # A model of the annotators learns from all votes at once.
    for batch in [list(drafts)] if rules.learns else batched(drafts, _CASES_AT_ONCE):
        for problem in (size_problem(draft.case_id, draft.votes) for draft in batch):
            if problem is not None:
                raise DataError(f"A case is not accepted: {problem}.")
        if rules.min_seconds:
            for draft in batch:
                tally.drop_fast(draft, rules.min_seconds)
        tally.add(batch)
        if rules.learns:
            tally.check(rules)
        yield from zip(batch, labels_of(batch, rules), strict=True)
    tally.check(rules)


def _case(draft: CaseDraft, labels: Mapping[str, Label], departments: Mapping[str, str]) -> Case:
    groups = dict(draft.groups)
    if "department" not in groups and groups.get("organ") in departments:
        groups["department"] = departments[groups["organ"]]
    said = (draft.question, draft.answers, labels, "", groups, draft.context)
    return Case(draft.case_id, draft.images, *said)


def _files_of(read: StoredFile) -> Sequence[str]:
    """Returns the files whose change makes an image another one."""
    sources = read.sources if isinstance(read, ConvertedFile) else ()
    return (read.link or read.path, *sources)


def _image_files(case: Case, started: int, noted_paths: set[str]) -> Iterator[str]:
    """Yields path and status of each image file of a case, in JSON.

    Args:
        case: whose images were just read.
        started: when the building of the index began, in ns.
        noted_paths: of files that were noted for other cases; those of this one are added.
    """
    if len(noted_paths) > _REMEMBERED_PATHS:
        noted_paths.clear()
    files = (ref.read for ref in case.images if isinstance(ref.read, StoredFile))
    for path in chain.from_iterable(map(_files_of, files)):
        if path not in noted_paths:
            noted_paths.add(path)
            status = status_of(path)
            # A file that changes while it is read counts as changed at the next start; those of the
            # cache are written once, while their images are read.
            is_late = max(status[1:], default=0) >= started
            changing = is_late and not Path(path).is_relative_to(cache_dir())
            yield json.dumps([path, [] if changing else status])
