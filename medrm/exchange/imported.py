"""What importers are given and return: an opened file, lines of votes, and rows not taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medrm.data.medical.conversions import ImageConversion
from medrm.data.row_tables import LocatedRow, Row
from medrm.errors import printable, shortened

WORKBOOKS = (".xlsx", ".xlsm", ".ods")
"""Suffixes of files of sheets."""

_LONGEST_CONTENT = 200
"""Characters of a row that is not taken, as the report shows it."""


class Unread(NamedTuple):
    """A row that is not taken.

    Attributes:
        place: such as "row 17" or "task 3, annotation 8".
        reason: why, with what is accepted; it reads on after "row 17: ".
        content: the row, shortened.
    """

    place: str
    reason: str
    content: str


def unread(place: str, reason: str, content: object) -> Unread:
    """Returns a row that is not taken, its content shortened.

    >>> unread("row 2", "it has no vote", {"Fall": "17", "Urteil": None})
    Unread(place='row 2', reason='it has no vote', content='{"Fall": "17", "Urteil": null}')
    """
    if not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False, default=str)
    return Unread(place, reason, shortened(printable(content), _LONGEST_CONTENT))


def name_key(name: str) -> str:
    """Returns a name as it is compared: without capitals, blanks as one; 1.10 is not 1.1."""
    return " ".join(name.casefold().split())


def names_alike(names: Iterable[str]) -> list[str]:
    """Returns which names of readers may be one reader's; sentences.

    >>> names_alike(["Dr. Ada", "Ben", "dr.  ada"])
    ["Readers 'Dr. Ada', 'dr.  ada' count as 2, and differ in capitals or blanks alone."]
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name_key(name), []).append(name)
    return [
        f"Readers {', '.join(map(repr, several))} count as {len(several)}, and differ in capitals "
        "or blanks alone."
        for several in alike.values()
        if len(several) > 1
    ]


class Records:
    """The rows of a file with their places, read anew whenever they are iterated over.

    Args:
        read: yields the rows, and adds to the list it is given what is no row.

    Attributes:
        unread: what is no row, such as a line that is no JSON; complete once all were read.
        count: of the rows and of what is none, likewise.
    """

    def __init__(self, read: Callable[[list[Unread]], Iterable[LocatedRow]]) -> None:
        self._read = read
        self.unread: list[Unread] = []
        self.count = 0

    def __iter__(self) -> Iterator[LocatedRow]:
        """Yields each row and its place."""
        no_rows: list[Unread] = []
        count = 0
        for located in self._read(no_rows):
            count += 1
            yield located
        self.unread, self.count = no_rows, count + len(no_rows)


@dataclass
class Opened:
    """A file that is to be imported.

    Attributes:
        path: of the file; image paths are relative to `image_root` or else to its folder.
        suffix: of its name in lower case, with the dot.
        records: rows of a table or of JSON. Cells of a sheet are None, text, numbers, truth values,
            dates or times; of JSON and parquet whatever they hold.
        columns: the names of a table's columns, or the keys of rows of JSON, in order.
        content: of a `.json` file, decoded; None: of another.
        notes: what was found out while it was opened, such as its encoding; sentences.
        image_root: a folder in which images are looked for first.
        image_conversion: by which medical images become pictures; None: they are refused.
        mapping: what the user's mapping says; None: there is none.
    """

    path: Path
    suffix: str
    records: Records
    columns: tuple[str, ...] = ()
    content: Any = None
    notes: list[str] = field(default_factory=list)
    image_root: Path | None = None
    image_conversion: ImageConversion | None = None
    mapping: Any = None


@dataclass
class Imported:
    """What an importer makes of a file.

    Attributes:
        lines: of `votes.jsonl`, each with its place in the file. Their images are as the source
            writes them: a path, a data URL, base64, or bytes; the writer stores them.
        unread: rows that are not taken, complete once the lines were all read. Not those of
            `Opened.records`, nor what the writer refuses.
        notes: what else is worth knowing, likewise; sentences.
        settings: by what the file was read, such as a mapping; for the report.
        addresses: of readers whom the lines name by a number, complete before the first line.
    """

    lines: Iterator[tuple[str, Row]]
    unread: list[Unread] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)


class Suggestion(NamedTuple):
    """A mapping that is suggested.

    Attributes:
        text: in YAML, with comments.
        open_points: what it leaves open; the same stand in the text as `?`.
    """

    text: str
    open_points: list[str]


@dataclass(frozen=True)
class Importer:
    """A form of annotation that can be imported.

    Attributes:
        name: for messages and the report.
        recognises: returns whether a file is of this form, by its columns, its content or its first
            records.
        read: returns the lines of a file of this form. Each is read when it is asked for.
        suggest: returns a mapping of a file; None: this form is not read by one.
    """

    name: str
    recognises: Callable[[Opened], bool]
    read: Callable[[Opened], Imported]
    suggest: Callable[[Opened], Suggestion] | None = None
