"""What a column of a sheet holds, as far as a suggestion of its meaning needs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import yaml

from medrm.data.row_tables import LocatedRow
from medrm.errors import shortened
from medrm.exchange.tables.grid import number_of, text_of
from medrm.exchange.vote_words import meaning_of

MOST_VALUES = 60
"""Different values of a column that are counted; a vote's column has fewer."""

IMAGE_NAME = re.compile(
    r"data:image/.*|.+\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|nii|nii\.gz|jp2)", re.DOTALL
)
"""How a cell with an image is written, in small letters."""

_SHOWN = 50
"""Characters of a value that are shown."""

_MOSTLY = 0.8
"""The share of cells from which a column holds votes; what the others mean is asked for."""

_LARGEST_STEP = 10
"""The largest number of a scale that is recognised as one."""


@dataclass
class SheetColumn:
    """What a column holds.

    Attributes:
        name: of the column.
        values: each different one and how often it stands, as far as they are counted.
        has_more: whether there are more of them.
        images: how many cells name image files.
    """

    name: str
    values: Counter[str] = field(default_factory=Counter)
    has_more: bool = False
    images: int = 0

    def add(self, text: str) -> None:
        """Counts a cell that is not empty."""
        text = shortened(text)
        first = text.lower().partition(";")[0].strip()
        self.images += IMAGE_NAME.fullmatch(first) is not None
        if len(self.values) < MOST_VALUES or text in self.values:
            self.values[text] += 1
        else:
            self.has_more = True

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers alone."""
        return None not in map(number_of, self.values)

    @property
    def is_short_scale(self) -> bool:
        """Whether it holds numbers, mostly small whole ones, some of them repeatedly."""
        if not self.is_numeric or self.has_more or len(self.values) < 2:
            return False
        return self._is_mostly(_is_step) and len(self.values) < sum(self.values.values())

    @property
    def is_vote_like(self) -> bool:
        """Whether its values can be votes, all or most of them, and not all are numbers."""
        if self.is_numeric or self.has_more:
            return False
        known = all(meaning_of(value) or number_of(value) is not None for value in self.values)
        return known or self._is_mostly(lambda value: meaning_of(value) is not None)

    @property
    def names_answers(self) -> bool:
        """Whether its values, all or most of them, name one of the two answers."""
        return self._is_mostly(lambda value: meaning_of(value) in ("A", "B"))

    def _is_mostly(self, is_meant: Callable[[str], bool]) -> bool:
        cells = sum(self.values.values())
        meant = sum(count for value, count in self.values.items() if is_meant(value))
        return cells > 0 and meant >= _MOSTLY * cells

    @property
    def examples(self) -> str:
        """A few of its values."""
        shown = [quoted(cut(value)) for value, _ in self.values.most_common(3)]
        return ", ".join(shown) or "it is empty"


def _is_step(value: str) -> bool:
    number = number_of(value)
    return number is not None and number == int(number) and abs(number) <= _LARGEST_STEP


def same_within_cases(
    records: Iterable[LocatedRow], case: Sequence[str], reader: str, names: Sequence[str]
) -> set[str]:
    """Returns the columns that hold one value for a case, whoever read it, and so no votes.

    None does where fewer than two cases were read by several readers, or all columns do, since then
    readers may only have agreed.

    Args:
        records: of the sheet.
        case: columns that say which case a row is about.
        reader: the column of the reader.
        names: of columns that may hold votes.
    """
    first: dict[int, tuple[str, dict[str, str]]] = {}
    read_again: set[int] = set()
    varying: set[str] = set()
    for _, row in records:
        key = hash(tuple(text_of(row.get(name)) for name in case))
        by, stated = first.setdefault(key, (text_of(row.get(reader)), {}))
        if by != text_of(row.get(reader)):
            read_again.add(key)
        varying |= {
            name
            for name in names
            if (text := text_of(row.get(name))) and stated.setdefault(name, text) != text
        }
    return {*names} - varying if len(read_again) > 1 and varying else set()


def quoted(text: str) -> str:
    """Returns a text in quotes, as YAML reads it back."""
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6)
    return dumped.strip()


def cut(text: str) -> str:
    """Returns the start of a text that is too long to be shown."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
