"""Zip archives of XML, as workbooks are: their sizes are looked at before they are unpacked."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from medrm.errors import ConfigError, DataError, MedrmError, nearest, shortened

MOST_XML = 2**28
"""256 MiB: of all XML in an archive, unpacked; a sheet of 1.5 million cells has about 60 MB."""

_MOST_TIMES = 200
_LARGEST_SMALL = 2**24
"""XML of more than 16 MiB has at most 200 times the size of its file: that of sheets has ten."""

_LARGEST_PICTURE = 2**26
"""64 MiB: a part that lies among the pictures, and is larger, counts as XML: it may be some."""

_READ_WHOLE = re.compile(
    r"(xl/)?(styles|workbook)\.xml|\[Content_Types\]\.xml|docProps/.*|.*\.rels"
)
"""Parts that are read into memory at once, where they take twenty times their size and more."""

_LARGEST_WHOLE = 2**23
"""8 MiB: of such a part; tens of thousands of styles have as much."""

_MOST_MEMBERS = 10_000
_MOST_HELD = 200_000
"""Elements of one row, with all that lies in it."""

_MOST_ELEMENTS = 2_000_000
"""Rows and the like."""

_FOREIGN = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(ArithmeticError, OSError, EOFError, ParseError, zipfile.BadZipFile, zlib.error),
)
"""What is raised over a workbook that its readers do not foresee."""


_SIZE = re.compile("(.+ has|its merged cells cover) (more than )?[0-9]")
"""How the limits of this package begin, such as "it has more than 1,000 columns"."""


@contextmanager
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yields an archive whose XML is not too large; what damage raises becomes a message.

    Raises:
        DataError: it is none, is damaged where it is read, or holds too much.
    """
    try:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty, of 0 bytes. Give the workbook as it was saved.")
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive.infolist())
            yield archive
    except MedrmError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path} needs {error.name}, which is not installed. Run "
            '`pip install "medrm[sheets]"`, or save the sheet as CSV.'
        ) from error
    except MemoryError as error:
        raise DataError(f"{path} takes too much memory. Save the sheet as CSV.") from error
    except _FOREIGN as error:
        if type(error) is ValueError and _SIZE.match(str(error)):
            raise DataError(
                f"{path} cannot be read: {error}. Split it, or delete what is no part of the table."
            ) from error
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        raise DataError(
            f"{path} is no readable workbook ({reason}). A password must be taken off; else open "
            "it in a spreadsheet program and save it again."
        ) from error


def _check_sizes(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Looks at what an archive says of its parts.

    Raises:
        DataError: it has too many, or they are too large.
    """
    size = sum(
        member.file_size
        for member in members
        if not member.filename.startswith("xl/media/") or member.file_size > _LARGEST_PICTURE
    )
    if size > MOST_XML or len(members) > _MOST_MEMBERS:
        raise DataError(
            f"{path} holds {size:,} bytes in {len(members):,} parts, unpacked; accepted "
            f"are at most {MOST_XML:,} in {_MOST_MEMBERS:,}. Save the sheet as CSV, or "
            "split it."
        )
    if size > max(_MOST_TIMES * path.stat().st_size, _LARGEST_SMALL):
        raise DataError(
            f"{path} holds {size:,} bytes, unpacked, of its {path.stat().st_size:,}; "
            f"accepted are at most {_MOST_TIMES} times as many. Save the sheet as CSV."
        )
    for member in members:
        if member.file_size > _LARGEST_WHOLE and _READ_WHOLE.fullmatch(member.filename):
            raise DataError(
                f"{path}: its {shortened(member.filename)} has {member.file_size:,} bytes, "
                f"unpacked; accepted are at most {_LARGEST_WHOLE:,}. Save the sheet as CSV."
            )


def elements(archive: zipfile.ZipFile, member: str, of_interest: set[str]) -> Iterator[Any]:
    """Yields the elements of an XML file that have certain names, each when it is complete.

    Elements are emptied once they were used. Entities are refused.

    Args:
        archive: that holds it.
        member: its name there.
        of_interest: names of elements, without a namespace; none of them lies in another.

    Raises:
        ValueError: there are too many, or one holds too much.
    """
    from defusedxml.ElementTree import iterparse

    inside, held, count = False, 0, 0
    with archive.open(member) as file:
        for event, element in iterparse(file, ("start", "end"), forbid_dtd=True):
            is_of_interest = local_name(element.tag) in of_interest
            if event == "start":
                inside, held = inside or is_of_interest, held + 1
                if held > _MOST_HELD:
                    raise ValueError(f"a part of {member} has more than {_MOST_HELD:,} elements")
                continue
            if is_of_interest:
                yield element
                count, inside = count + 1, False
                if count > _MOST_ELEMENTS:
                    raise ValueError(f"{member} has more than {_MOST_ELEMENTS:,} rows")
            if not inside:
                held = 0
                element.clear()


def chosen_sheet(
    path: Path,
    sheet: str | None,
    names: Sequence[str],
    shown: Sequence[str],
    has_rows: Callable[[str], bool],
) -> tuple[str, list[str]]:
    """Returns the name of the sheet to read, and what to say of it and of the others.

    Args:
        path: of the workbook.
        sheet: that the user names; None: the only one with rows, or the first shown where none has.
        names: of all sheets.
        shown: of those that are not hidden.
        has_rows: returns whether a sheet has a row below its first.

    Raises:
        ConfigError: there is none of that name, or several have rows and none is named.
    """
    with_rows = [name for name in shown if has_rows(name)] if sheet is None else []
    if len(with_rows) > 1:
        raise ConfigError(
            f"{path} has {len(with_rows)} sheets with rows: {_quoted(with_rows)}. Name one by "
            "--sheet, or by `sheet` in the mapping."
        )
    name = sheet if sheet is not None else next(iter([*with_rows, *shown]), None)
    if name is None or name not in names:
        raise ConfigError(
            f"{path} has no sheet {name!r}; given: {_quoted(names)}.{nearest(str(name), names)} "
            "Name one by --sheet, or by `sheet` in the mapping."
        )
    others = "; ".join(shortened(other) for other in names if other != name)
    notes = [f"Sheet {name!r} is read."]
    return name, notes + ([f"Not read: {others} (name one by --sheet)."] if others else [])


def _quoted(names: Sequence[str]) -> str:
    return shortened(", ".join(map(repr, names)), 400) or "none"


def hidden_rows(rows: Sequence[str]) -> str:
    """Returns what is said of rows that are not shown, by their numbers."""
    several, are = ("s", "are") if len(rows) > 1 else ("", "is")
    return (
        f"{len(rows):,} hidden row{several} ({some_of(rows)}), as where a filter is set, {are} "
        "read as any other; delete what does not count."
    )


def some_of(names: Sequence[str]) -> str:
    """Returns the first of several names."""
    return ", ".join(map(shortened, names[:5])) + (", ..." if len(names) > 5 else "")


def local_name(tag: str) -> str:
    """Returns the name of an element or attribute without its namespace."""
    return tag.rpartition("}")[2]
