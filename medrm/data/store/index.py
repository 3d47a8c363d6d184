"""A set on disk: its cases, read one at a time, and their columns.

`cases.jsonl` holds the cases; every other file is one array, mapped into memory.
`medrm.data.store.build` writes an index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from medrm.data.images import StoredCell, StoredFile
from medrm.data.store.cache import write_whole
from medrm.data.store.columns import COLUMNS, FLAT, LABEL, TOKENS, IndexedCases, Places
from medrm.files import status_of
from medrm.schema import Case, ImageRef, Label, PairLabel, RankingLabel

KEPT_CASES = 4096
"""How many decoded cases a process keeps."""

ABOUT_FILE, CASES_FILE = "index.json", "cases.jsonl"


class Store:
    """One index; picklable, and opened again where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        self._arrays: dict[str, NDArray[Any]] = {}
        self.case = lru_cache(KEPT_CASES)(self._case)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return int(self.about["cases"])

    @property
    def dimensions(self) -> list[str]:
        """Those that some label mentions, in the order in which they were met."""
        return list(self.about["dimensions"])

    def array(self, name: str, kind: Any) -> NDArray[Any]:
        """Returns what a file holds; it stays there."""
        if name not in self._arrays:
            self._arrays[name] = mapped(self.folder / f"{name}.bin", kind)
        return self._arrays[name]

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what the file of that name says, computed where there is none.

        Args:
            name: of the file; it tells all that the value depends on but the set.
            compute: gives what JSON can hold.
        """
        path = self.folder / f"{name}.json"
        with suppress(FileNotFoundError, json.JSONDecodeError):  # none, or one that was torn
            return json.loads(path.read_bytes())
        content = json.dumps(compute()).encode()
        write_whole(path, content)
        return json.loads(content)

    def kept_array(self, name: str, kind: Any, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Returns the array of that name, one value for each case; see `kept`."""
        path = self.folder / f"{name}.bin"
        if status_of(path)[:1] != [len(self) * np.dtype(kind).itemsize]:
            write_whole(path, compute().astype(kind).tobytes())
        return self.array(name, kind)

    def line(self, place: int) -> dict[str, Any]:
        """Returns what is stored of a case."""
        starts = self.array("start", "<u8")
        start, end = int(starts[place]), int(starts[place + 1])
        # Opened each time: workers that share a file share its position.
        with (self.folder / CASES_FILE).open("rb", buffering=0) as lines:
            lines.seek(start)
            record: dict[str, Any] = json.loads(lines.read(end - start))
        return record

    def _case(self, place: int) -> Case:
        record = self.line(place)
        return Case(
            record["case_id"],
            tuple(_image(self.about["tables"], *image) for image in record["images"]),
            record["question"],
            tuple(record["answers"]),
            {name: _label(*label) for name, label in record["labels"].items()},
            self.array("cluster", "S16")[place].decode(),
            record["groups"],
        )


def mapped(path: Path, kind: Any) -> NDArray[Any]:
    """Returns the array in a file; an empty file cannot be mapped."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


class StoredCases(IndexedCases):
    """The cases of an index, or some of them; each is decoded when it is asked for."""

    def __init__(self, store: Store, places: Places | None = None) -> None:
        self.store = store
        self._places = places

    @property
    def places(self) -> Places:
        """Where the cases stand in the index."""
        return np.arange(len(self.store)) if self._places is None else self._places

    def __len__(self) -> int:
        return len(self.store) if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Case: ...

    @overload
    def __getitem__(self, index: slice) -> StoredCases: ...

    def __getitem__(self, index: int | slice) -> Case | StoredCases:
        """Returns a case, or some of them."""
        if isinstance(index, slice):
            return StoredCases(self.store, self.places[index])
        place = range(len(self))[index]
        return self.store.case(place if self._places is None else int(self._places[place]))

    def chosen(self, places: Places) -> StoredCases:
        """Returns some of the cases, in the order of the places."""
        return StoredCases(self.store, self.places[places])

    def column(self, name: str) -> NDArray[Any]:
        """Returns a column of `COLUMNS`, or `cluster`."""
        kind = "S16" if name == "cluster" else COLUMNS[name][0]
        return self._own(self.store.array(name, kind))

    def flat(self, name: str) -> NDArray[Any]:
        """Returns a column of `FLAT`."""
        values = self.store.array(name, FLAT[name][0])
        if self._places is None:
            return values
        counts = self.store.array(f"{name}s", "<i4")
        ends = np.cumsum(counts, dtype=np.int64)[self._places]
        own = counts[self._places].astype(np.int64)
        within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        chosen: NDArray[Any] = values[np.repeat(ends - own, own) + within]
        return chosen

    def labels(self, dimension: str) -> NDArray[Any]:
        """Returns the labels of a dimension."""
        if dimension not in self.store.dimensions:
            return np.zeros(len(self), LABEL)
        number = self.store.dimensions.index(dimension)
        return self._own(self.store.array(f"label-{number}", LABEL))

    def mentioned(self) -> set[str]:
        """Returns the dimensions that some label mentions."""
        return {name for name in self.store.dimensions if (self.labels(name)["votes"] > 0).any()}

    def _own(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._places is None else values[self._places]


@dataclass(frozen=True)
class StoredLengths:
    """`TOKENS` of the cases of an index, by their places in it; 0 where they were not counted."""

    values: NDArray[Any]


Counts = Sequence[int] | NDArray[Any]
"""`TOKENS` of cases, in their order; one number stands for both."""

Lengths = Mapping[str, Any] | StoredLengths
"""Cases to their `TOKENS`: by id, or by place; one number stands for both."""


def lengths_of(
    cases: Sequence[Case], lengths: Lengths, of: Literal["longest", "unique"] = "longest"
) -> NDArray[np.int64]:
    """Returns the tokens of each case: of its longest row, or those that are unique."""
    if isinstance(lengths, StoredLengths):
        assert isinstance(cases, StoredCases)
        return lengths.values[of][cases.places].astype(np.int64)
    found = np.array([lengths[case.case_id] for case in cases], dtype=TOKENS)
    return found[of].astype(np.int64)


def together(first: Sequence[Case], second: Sequence[Case]) -> Sequence[Case]:
    """Returns the cases of both; those of one index stay there."""
    if (
        isinstance(first, StoredCases)
        and isinstance(second, StoredCases)
        and first.store is second.store
    ):
        return StoredCases(first.store, np.concatenate([first.places, second.places]))
    return [*first, *second]


def case_record(case: Case, tables: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """Returns what is stored of a case, its cluster apart; new tables of images are added."""
    return {
        "case_id": case.case_id,
        "question": case.question,
        "answers": case.answers,
        "labels": {
            name: [label.shares, label.votes] if isinstance(label, PairLabel) else [label.rankings]
            for name, label in case.labels.items()
        },
        "groups": dict(case.groups),
        "images": [
            [ref.name, ref.digest, ref.problem, _place(ref.read, tables)] for ref in case.images
        ],
    }


def _place(
    read: Callable[[], bytes], tables: dict[tuple[str, ...], int]
) -> str | tuple[Any, ...] | None:
    """Returns where an image is stored: a path, or a table's number and the cell."""
    if isinstance(read, StoredFile):
        return read.path
    if isinstance(read, StoredCell):
        number = tables.setdefault(read.files, len(tables))
        return (number, read.row, read.column, read.position)
    return None


def _image(
    tables: Sequence[Sequence[str]], name: str, digest: str, problem: str | None, place: Any
) -> ImageRef:
    read: Callable[[], bytes] = bytes
    if isinstance(place, str):
        read = StoredFile(place)
    elif place is not None:
        number, row, column, position = place
        read = StoredCell(tuple(tables[number]), row, column, position)
    return ImageRef(name, digest, read, problem)


def _label(said: list[Any], votes: int | None = None) -> Label:
    if votes is None:
        return RankingLabel(tuple(tuple(map(tuple, ranking)) for ranking in said))
    first, tie, second = said
    return PairLabel((first, tie, second), votes)
