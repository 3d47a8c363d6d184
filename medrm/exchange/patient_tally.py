"""Patients and studies of imported cases: what their rows state beside what their files say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path
from typing import Any

from medrm.data.pseudonyms import digest_of, is_hash, pseudonyms
from medrm.data.readers.votes_jsonl import INDEPENDENT, listed
from medrm.data.row_tables import Row
from medrm.exchange.hash_keys import HashKeys

_NAMED = 3
"""Places that are named where rows and files disagree."""

_Digests = tuple[str, ...]


class PatientTally:
    """Gives lines all patients and studies of their case, and keeps where rows and files disagree.

    A case belongs to the patients of all its images, so that none is in two parts of a split.
    """

    def __init__(self) -> None:
        self._keys = HashKeys()
        self._of_case: dict[str, dict[str, list[Any]]] = {}
        self._differing: defaultdict[str, dict[tuple[_Digests, _Digests], list[str]]]
        self._differing = defaultdict(dict)
        self._in_both: set[str] = set()

    def completed(self, place: str, line: Row, file_keys: Iterable[str], folder: Path) -> Row:
        """Returns a line with what it states and what its DICOM files say of patient and study.

        What comes back from a reader has hashes; of a case that is known by its ids it gets these.
        Hashes that another machine made of a case stay, for ours would only be others. A line that
        states another patient by the same key stays as it is, and contradicts its case.

        Args:
            place: of the line.
            line: to complete.
            file_keys: such as `patient:dicom-...`, of all its images.
            folder: of the set that it is from.
        """
        hashes = pseudonyms(file_keys)
        known = self._of_case.get(str(line["case_id"]), {})
        completed = dict(line)
        for name in INDEPENDENT:
            stated = listed(line.get(name))
            of_files = {digest_of(hashed): hashed for hashed in hashes.get(name, ())}
            of_case = known.get(name, ())
            digests = {_digest(name, of) for of in of_case}
            is_foreign = bool(digests) and self._keys.are_foreign(digests)
            is_hashed = bool(stated) and all(map(is_hash, stated))
            if of_case and (is_foreign or is_hashed):
                is_same = {_digest(name, of) for of in stated} <= digests
                if is_same or self._keys.differ(digests, folder if is_hashed else None):
                    stated, of_files = of_case, {} if is_foreign else of_files
            of_row = {_digest(name, single): single for single in stated}
            if stated != of_case:
                hashed = [digest for digest, single in of_row.items() if is_hash(single)]
                self._keys.add(folder, hashed, {*of_row, *of_files} - {*hashed})
            if of_row and of_files:
                self._compare(name, tuple(of_row), tuple(of_files), place)
            ids = list((of_row | of_files | of_row).values())
            if ids:
                completed[name] = ids if len(ids) > 1 else ids[0]
        return completed

    def _compare(self, name: str, of_row: _Digests, of_files: _Digests, place: str) -> None:
        if {*of_row} & {*of_files}:
            self._in_both.add(name)
        if {*of_row} != {*of_files}:
            self._differing[name].setdefault((of_row, of_files), []).append(place)

    def remember(self, line: Row) -> None:
        """Keeps what a line that is taken says of its case."""
        stated = {name: listed(line.get(name)) for name in INDEPENDENT}
        if any(stated.values()):
            self._of_case.setdefault(str(line["case_id"]), stated)

    def notes(self) -> list[str]:
        """Returns what cannot be told of patients and studies, or does not fit; sentences.

        Ids in rows may be others than in files. But each stands for one of these, and where some
        are the files' own, all are.
        """
        notes = self._keys.notes()
        for name, met in self._differing.items():
            pairs = {pair for of_row, of_files in met for pair in product(of_row, of_files)}
            of_rows, of_files = (Counter(side) for side in zip(*pairs, strict=True))
            places = [
                places
                for (row, files), places in met.items()
                if name in self._in_both
                or any(of_rows[one] > 1 for one in row)
                or any(of_files[one] > 1 for one in files)
            ]
            named = [*chain.from_iterable(places)]
            if named:
                notes.append(
                    f"{name.capitalize()} of rows and of their DICOM files do not fit together in "
                    f"{len(named)} rows, such as {', '.join(named[:_NAMED])}; those cases belong "
                    "to each that is named, so that a split keeps them together. Look at them."
                )
        return notes


def _digest(name: str, stated: object) -> str:
    """Returns the digest of what a row states."""
    (hashed,) = pseudonyms([f"{name}:{stated}"])[name]
    return digest_of(hashed)
