"""Whether patients of two sets can be told to be one, where one states hashes by another key."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medrm.data.pseudonyms import key_name
from medrm.data.row_tables import read_json_file
from medrm.errors import DataError

HASH_KEY = "hash_key"
"""Where the report of an import tells which key its hashes are by."""

REPORT_FILE = "import_report.json"

_LARGEST = 2**26
"""Bytes of a report that is read."""


class HashKeys:
    """Keeps of each folder which patients its rows state as hashes of a key that is not here."""

    def __init__(self) -> None:
        self._keys: dict[Path, str] = {}
        self._foreign: dict[Path, set[str]] = {}
        self._own: dict[Path, set[str]] = {}

    def add(self, folder: Path, hashed: Iterable[str], own: Iterable[str]) -> None:
        """Adds digests of the patients of a line.

        Args:
            folder: of the set that it is from.
            hashed: that its row states as hashes.
            own: of ids in its row, and of its files, both by the key of this machine.
        """
        self._know(folder)
        is_own = self._keys[folder] == key_name()
        (self._own if is_own else self._foreign)[folder].update(hashed)
        self._own[folder].update(own)

    def are_foreign(self, digests: Iterable[str]) -> bool:
        """Returns whether digests are of a key that is not here."""
        return all(any(digest in of for of in self._foreign.values()) for digest in digests)

    def differ(self, digests: Iterable[str], folder: Path | None) -> bool:
        """Returns whether digests that were added are known to be of another key.

        Args:
            digests: by one key.
            folder: than that which its report names; None: than that of this machine.
        """
        if folder is not None:
            self._know(folder)
        key = key_name() if folder is None else self._keys[folder]
        wanted = {*digests}
        keys = {self._keys[known] for known, of in self._foreign.items() if of & wanted}
        keys |= {key_name()} if any(of & wanted for of in self._own.values()) else set()
        return bool(key) and "" not in keys and key not in keys

    def _know(self, folder: Path) -> None:
        if folder not in self._keys:
            self._keys[folder] = _stated_key(folder)
            self._foreign[folder], self._own[folder] = set(), set()

    def notes(self) -> list[str]:
        """Returns which patients cannot be told to be those of another folder; a sentence."""
        for folder, foreign in self._foreign.items():
            comparable, apart = set[str](), set[str]()
            for other in {*self._keys} - {folder}:
                is_of_same_key = self._keys[folder] and self._keys[folder] == self._keys[other]
                (comparable if is_of_same_key else apart).update(self._foreign[other])
                apart |= self._own[other]
            name = folder.resolve().name
            if foreign and apart and not foreign & (apart | comparable):
                return [
                    f"{name} states patients as hashes by the key of another machine, or "
                    "does not say by which: nobody can tell whether they are patients of the other "
                    "rows, and a split may part one who is in both. Name patients by ids in both, "
                    f"or import what {name} was made of on this machine, or this file with "
                    "the key of the other one (data/README.md, DICOM and NIfTI)."
                ]
        return []


def _stated_key(folder: Path) -> str:
    """Returns the key that the report of an import in a folder names; empty: there is none."""
    return str(stated_report(folder).get(HASH_KEY) or "")


def stated_report(folder: Path) -> dict[str, Any]:
    """Returns the report of the import that made a folder; empty: there is none."""
    path = folder / REPORT_FILE
    with suppress(OSError, DataError):
        report = read_json_file(path) if path.stat().st_size <= _LARGEST else None
        return report if isinstance(report, dict) else {}
    return {}
