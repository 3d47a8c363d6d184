"""An earlier set that a file is joined with: its lines, and which readers are its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from medrm.data.pseudonyms import shown_reader
from medrm.data.readers.votes_jsonl import VOTES_FILE
from medrm.data.row_tables import JsonLines, LocatedRow, Row
from medrm.errors import DataError, shortened
from medrm.exchange.hash_keys import stated_report
from medrm.exchange.imported import Imported, unread
from medrm.files import fits

READER_ADDRESSES = "reader_addresses"
"""Where the report of an import keeps the addresses of readers who are known by a number."""


def joined_lines(folder: Path, imported: Imported) -> Iterator[LocatedRow]:
    """Yields the lines of an earlier set.

    Raises:
        DataError: it is none.
    """
    if not (folder / VOTES_FILE).is_file():
        raise DataError(f"{folder} holds no {VOTES_FILE}, so nothing can be joined with it.")
    problems: list[str] = []
    name = f"{folder.name}/{VOTES_FILE}"
    for place, line in JsonLines(folder / VOTES_FILE, problems):
        yield f"{name} {place}", line
    imported.unread += [
        unread(f"{name} {problem}", "it cannot be joined", "") for problem in problems
    ]


class JoinedReaders:
    """Tells readers apart whom two servers of a tool call by the same number, by their addresses.

    Args:
        folder: of the set that a file is joined with; None: there is none.

    Attributes:
        addresses: of the readers who are known by a number, in the set and in the file.
    """

    def __init__(self, folder: Path | None) -> None:
        stated = stated_report(folder).get(READER_ADDRESSES) if folder else None
        self._joined = dict[str, str]()
        if stated and fits(stated, dict[str, str]):
            self._joined |= stated
        self._names = {_key(address): number for number, address in self._joined.items()}
        self._readers: set[str] = set()
        self._notes: dict[str, None] = {}
        self.addresses = dict(self._joined)

    @property
    def notes(self) -> list[str]:
        """What is decided about who is who; sentences."""
        return [*self._notes]

    def add(self, line: Row) -> None:
        """Adds the reader of a line of the set."""
        name = str(line.get("annotator"))
        self._readers.add(name)
        if "@" in name:
            self._names.setdefault(_key(name), name)

    def named(self, line: Row, addresses: Mapping[str, str]) -> Row:
        """Returns a line of the file, its reader named as in the set.

        Args:
            line: of the file.
            addresses: of those readers of the file who have a number.
        """
        if not isinstance(stated := line.get("annotator"), str):
            return line
        name = self._name_of(stated, addresses.get(stated))
        if name != stated:
            self._notes[
                f"Reader {_shown(stated)} of this file is {_shown(name)} in the set: a number is "
                "that of one server, and the address decides."
            ] = None
        elif stated in addresses:
            self.addresses.setdefault(stated, addresses[stated])
        return {**line, "annotator": name}

    def _name_of(self, stated: str, address: str | None) -> str:
        if name := self._names.get(_key(address or stated)):
            return name
        if stated in self._readers and (address or stated in self._joined):
            if address and stated in self._joined:
                return address
            self._notes[
                f"Reader {_shown(stated)} of this file and of the joined set count as one; "
                "only one of the two states an address, so check that they are."
            ] = None
        return stated


def _shown(name: str) -> str:
    return repr(shortened(shown_reader(name)))


def _key(address: str) -> str:
    return address.strip().casefold()
