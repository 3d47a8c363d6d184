"""What is asked of all cases at once, as arrays: counts, hashes of texts, clusters and labels.

A column of stored cases is read from their index, that of a list is computed: both by the
functions here. Nothing that starts a run goes over the cases themselves.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medrm.schema import Case, Label, PairLabel, RankingLabel

Item = TypeVar("Item")

Places = NDArray[np.int64]
"""Numbers of cases in a sequence, from 0."""

LABEL = np.dtype([("votes", "<i4"), ("tied", "<f8"), ("decided", "?"), ("ranked", "?")])
"""A label as numbers: votes (0: there is none), the mass of ties among them (of rankings: tied
pairs of answers), whether a majority decides, and whether the votes are rankings."""

TOKENS = np.dtype([("longest", "<i4"), ("unique", "<i4")])
"""Tokens of a case: of its longest row, and of what its rows share once with the rest of each."""


class IndexedCases(Sequence[Case]):
    """Cases whose columns are stored; `medrm.data.store.index.StoredCases`."""

    @abstractmethod
    def column(self, name: str) -> NDArray[Any]:
        """Returns a column of `COLUMNS`, or `cluster`: one value for each case."""

    @abstractmethod
    def flat(self, name: str) -> NDArray[Any]:
        """Returns a column of `FLAT`, the values of one case after those of another."""

    @abstractmethod
    def labels(self, dimension: str) -> NDArray[Any]:
        """Returns the labels of a dimension, `LABEL` for each case."""

    @abstractmethod
    def chosen(self, places: Places) -> IndexedCases:
        """Returns some of the cases, in the order of the places."""


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last of which may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def plain_text(text: str) -> str:
    """Returns a text in lower case, its white space as single blanks."""
    return " ".join(text.split()).casefold()


def texts_of(case: Case) -> tuple[str, ...]:
    """Returns what two text-only cases have in common when one is a copy of the other."""
    return (plain_text(case.question), *sorted(map(plain_text, case.answers)))


def text_mark(*texts: str) -> int:
    """Returns a 64-bit number for texts."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "little")


def case_digest(case: Case) -> str:
    """Returns the SHA-256 over id, question, answers, labels and image digests."""
    labels = {
        dimension: [label.shares, label.votes] if isinstance(label, PairLabel) else label.rankings
        for dimension, label in case.labels.items()
    }
    images = [ref.digest for ref in case.images]
    content = [case.case_id, case.question, case.answers, labels, images]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


COLUMNS: dict[str, tuple[str, Callable[[Case], Any]]] = {
    "images": ("<i4", lambda case: len(case.images)),
    "answers": ("<i4", lambda case: len(case.answers)),
    "question": ("<u8", lambda case: text_mark(plain_text(case.question))),
    "texts": ("<u8", lambda case: text_mark(*texts_of(case))),
    "digest": ("S64", case_digest),
}
"""Column to its type and to what it says of a case."""

FLAT: dict[str, tuple[str, Callable[[Case], Iterable[Any]]]] = {
    "answer": ("<u8", lambda case: [text_mark(plain_text(answer)) for answer in case.answers]),
    "image": ("S64", lambda case: [ref.digest for ref in case.images]),
}
"""Column of `answers` or `images` values a case to its type and to its values of a case."""


def column(cases: Sequence[Case], name: str) -> NDArray[Any]:
    """Returns a column of `COLUMNS`."""
    if isinstance(cases, IndexedCases):
        return cases.column(name)
    kind, value = COLUMNS[name]
    return np.array([value(case) for case in cases], dtype=kind)


def flat(cases: Sequence[Case], name: str) -> NDArray[Any]:
    """Returns a column of `FLAT`."""
    if isinstance(cases, IndexedCases):
        return cases.flat(name)
    kind, values = FLAT[name]
    return np.array([value for case in cases for value in values(case)], dtype=kind)


def cluster_column(cases: Sequence[Case]) -> NDArray[np.bytes_]:
    """Returns the cluster of each case."""
    if isinstance(cases, IndexedCases):
        return cases.column("cluster")
    return np.array([case.cluster.encode() for case in cases], dtype=np.bytes_)


def label_column(cases: Sequence[Case], dimension: str) -> NDArray[Any]:
    """Returns the labels of one dimension, `LABEL` for each case."""
    if isinstance(cases, IndexedCases):
        return cases.labels(dimension)
    return np.array([label_row(case.labels.get(dimension)) for case in cases], dtype=LABEL)


def label_row(label: Label | None) -> tuple[int, float, bool, bool]:
    """Returns a label as `LABEL`."""
    if label is None:
        return (0, 0.0, False, False)
    if isinstance(label, RankingLabel):
        places = (place for ranking in label.rankings for place in ranking)
        tied = sum(len(place) * (len(place) - 1) / 2 for place in places)
        return (label.votes, tied, True, True)
    return (label.votes, label.shares[1] * label.votes, label.choice is not None, False)


def chosen(cases: Sequence[Case], places: Places) -> Sequence[Case]:
    """Returns some of the cases, in the order of the places; of stored cases none is decoded."""
    if isinstance(cases, IndexedCases):
        return cases.chosen(places)
    return [cases[place] for place in places.tolist()]


def owners(counts: NDArray[Any]) -> Places:
    """Returns the case of each value of a flat column, given how many each case has."""
    return np.repeat(np.arange(len(counts)), counts)


def repeats(marks: NDArray[Any]) -> Places:
    """Returns the places of values that stand earlier as well."""
    _, first = np.unique(marks, return_index=True)
    return np.setdiff1d(np.arange(len(marks)), first)
