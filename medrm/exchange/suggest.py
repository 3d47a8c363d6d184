"""What columns and values of a sheet probably mean: a mapping with comments, to be corrected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from medrm.errors import printable, shortened
from medrm.exchange.imported import Opened, Suggestion
from medrm.exchange.mapping import MEANINGS, PAIR, ROLES, SEVERAL, SIDES, UNKNOWN
from medrm.exchange.sheet_words import (
    NumberName,
    answer_side,
    is_identifying,
    is_number,
    meaning_of,
    number_name,
    role_of,
    says_left,
    vote_name,
)
from medrm.exchange.tables.grid import text_of

_MOST_VALUES = 60
"""Different values of a column that are counted; a vote's column has fewer."""

_LONGEST_VALUE = 100
IMAGE_NAME = re.compile(
    r"data:image/.*|.+\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|nii|nii\.gz|jp2)", re.DOTALL
)
"""How a cell with an image is written, in small letters."""

_SHOWN = 50
"""Characters of a value that are shown."""

_BEST = {"ratings": "the highest number is best", "ranks": "the lowest number is best"}
_SIDE_ROLE = dict(zip(("a", "b", "left", "right"), (*PAIR, *SIDES), strict=True))


@dataclass
class _Column:
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
        first = shortened(text).lower().partition(";")[0].strip()
        self.images += IMAGE_NAME.fullmatch(first) is not None
        if len(self.values) < _MOST_VALUES or text in self.values:
            self.values[shortened(text)] += 1
        else:
            self.has_more = True

    @property
    def is_scale(self) -> bool:
        """Whether it holds numbers that are no names of two answers."""
        return any(is_number(value) and meaning_of(value) is None for value in self.values)

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers alone."""
        return all(map(is_number, self.values))

    @property
    def is_vote_like(self) -> bool:
        """Whether all its values can be votes, and not all are numbers."""
        known = all(meaning_of(value) or is_number(value) for value in self.values)
        return known and not self.is_numeric and not self.has_more

    @property
    def names_answers(self) -> bool:
        """Whether all its values name one of the two answers."""
        return {*map(meaning_of, self.values)} in ({"A"}, {"B"}, {"A", "B"})

    @property
    def examples(self) -> str:
        """A few of its values."""
        shown = [_quoted(_cut(value)) for value, _ in self.values.most_common(3)]
        return ", ".join(shown) or "it is empty"


def suggest(opened: Opened) -> Suggestion:
    """Returns what the columns and values of a sheet probably mean; all its rows are read."""
    columns = {name: _Column(name) for name in opened.columns}
    for _, row in opened.records:
        for name, cell in row.items():
            if text := text_of(cell):
                columns.setdefault(name, _Column(name)).add(text)
    return _Suggester(opened, columns).suggestion()


class _Suggester:
    """Decides what each column means, and writes it down.

    Args:
        opened: the sheet.
        columns: what each of its columns holds.
    """

    def __init__(self, opened: Opened, columns: Mapping[str, _Column]) -> None:
        self._opened = opened
        self._free = dict(columns)
        self._open_points: list[str] = []
        self._columns = self._roles()
        self._order = self._columns.pop("order", [])
        self._numbers = self._number_columns()
        self._votes = self._vote_columns()
        self._ignored = [name for name in [*self._free] if is_identifying(name)]
        for name in self._ignored:
            del self._free[name]

    def suggestion(self) -> Suggestion:
        """Returns the mapping."""
        lines = [*self._head(), *self._column_lines(), *self._vote_lines()]
        lines += [*self._order_lines(), *self._dimension_lines(), *self._rest_lines()]
        return Suggestion("\n".join(lines) + "\n", self._open_points)

    def _roles(self) -> dict[str, list[_Column]]:
        """Takes the columns whose names say what they hold."""
        roles: dict[str, list[_Column]] = {}
        for column in [*self._free.values()]:
            side = answer_side(column.name)
            votes = column.is_vote_like or column.is_numeric
            if side and not votes and column.values and _SIDE_ROLE[side] not in roles:
                roles[_SIDE_ROLE[side]] = [self._free.pop(column.name)]
        for column in [*self._free.values()]:
            role = role_of(column.name)
            if says_left(column.name) and column.names_answers:
                role = "order"
            if role is None and column.images and column.images >= sum(column.values.values()) / 2:
                role = "image"
            if role and (role not in roles or role in SEVERAL):
                roles.setdefault(role, []).append(self._free.pop(column.name))
        return roles

    def _number_columns(self) -> list[tuple[NumberName, list[_Column]]]:
        """Takes the columns that hold a number for each answer, in the order of the answers."""
        sides = ("left", "right") if SIDES[0] in self._columns else ("a", "b")
        named = {
            what: column
            for column in self._free.values()
            if column.is_numeric and (what := number_name(column.name))
        }
        taken = []
        for what, column in named.items():
            second = named.get(what._replace(side=sides[1]))
            if what.side == sides[0] and second is not None:
                taken.append((what, [self._free.pop(c.name) for c in (column, second)]))
        return taken

    def _vote_columns(self) -> list[tuple[_Column, str, str]]:
        """Takes the columns that hold votes, with the dimension and the annotator of each."""
        votes = []
        by_reader = "annotator" not in self._columns
        for column in [*self._free.values()]:
            dimension, remainder = vote_name(column.name)
            is_named = dimension is not None and (not remainder or by_reader)
            if is_identifying(column.name) or not (column.is_vote_like or is_named):
                continue
            annotator = remainder if by_reader else ""
            if dimension is None or (remainder and not by_reader):
                dimension = "overall" if by_reader else UNKNOWN
            if "dimension" in self._columns:
                dimension = ""
            votes.append((self._free.pop(column.name), dimension, annotator))
        if by_reader and sum(bool(annotator) for *_, annotator in votes) < 2:
            return [(column, dimension, UNKNOWN) for column, dimension, _ in votes]
        return votes

    def _open(self, point: str) -> str:
        """Notes what is left open, and returns what stands in its place."""
        self._open_points.append(point)
        return _quoted(UNKNOWN)

    def _head(self) -> Iterator[str]:
        yield f"# What is understood of {_shown(self._opened.path.name)}: correct it, then import"
        yield "# the sheet with `--mapping` and this file. Each ? must be replaced."
        yield from (f"# {_shown(note)}" for note in self._opened.notes)

    def _column_lines(self) -> Iterator[str]:
        found = self._columns
        yield "columns:"
        if "case_id" not in found:
            yield "  # case_id: none is recognised; ids are made of question, images and answers"
        if "image" not in found:
            yield "  # image: none is recognised; the cases are text"
        for role, columns in sorted(found.items(), key=lambda held: ROLES.index(held[0])):
            names = [_quoted(column.name) for column in columns]
            stated = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
            yield f"  {role}: {stated}  # {columns[0].examples}"
        pair = SIDES if {*SIDES} <= {*found} else PAIR
        for role in pair:
            if role not in found:
                yield f"  {role}: {self._open(f'no column is recognised as {role}')}"
        if "question" not in found:
            point = self._open("no column is recognised as question")
            yield "fixed:"
            yield f"  question: {point}  # one for all cases; or name its column above"

    def _vote_lines(self) -> Iterator[str]:
        yield "votes:  # each column with votes, what they are about, and whose they are"
        yield from self._number_lines()
        if not self._votes and not self._numbers:
            point = self._open("no column is recognised as votes")
            yield f"  - column: {point}"
            yield "    dimension: overall"
        for column, dimension, annotator in self._votes:
            yield f"  - column: {_quoted(column.name)}"
            if dimension == UNKNOWN:
                self._open(f"column {column.name!r} may hold votes: about which dimension?")
            if annotator == UNKNOWN:
                self._open(f"nothing says whose the votes in {column.name!r} are")
            if dimension:
                yield f"    dimension: {_quoted(dimension)}"
            if annotator:
                yield f"    annotator: {_quoted(annotator)}"
        if self._votes or not self._numbers:
            yield f"values:  # what they mean: {', '.join(MEANINGS[:8])},"
            yield f"  # {', '.join(MEANINGS[8:])} (no vote)"
            yield from self._value_lines()

    def _number_lines(self) -> Iterator[str]:
        for what, columns in self._numbers:
            names = ", ".join(_quoted(column.name) for column in columns)
            yield f"  - {what.numbers}: [{names}]  # {_BEST[what.numbers]}"
            dimension = _quoted(what.dimension)
            if not what.is_clear:
                shown = " and ".join(repr(column.name) for column in columns)
                dimension = self._open(f"whether the highest number in {shown} is best")
                dimension += "  # write it when ratings, or ranks in its place, is right above"
            yield f"    dimension: {dimension}"
            if "annotator" not in self._columns:
                annotator = self._open(f"nothing says whose the numbers in {names} are")
                yield f"    annotator: {annotator}"

    def _value_lines(self) -> Iterator[str]:
        counts: Counter[str] = Counter()
        for column, *_ in self._votes:
            if column.has_more:
                self._open(f"column {column.name!r} has more than {_MOST_VALUES} different values")
            counts.update(column.values)
        is_scale = any(column.is_scale for column, *_ in self._votes)
        for value, count in sorted(counts.items()):
            meaning, doubt = self._meaning(value, is_scale)
            if meaning == UNKNOWN:
                meaning = self._open(f"what {_cut(value)!r} means as a vote{doubt}")
            yield f"  {_quoted(value)}: {meaning}  # {count} times{doubt}"
        if not counts:
            yield f'  "1": {self._open("no vote is recognised")}'

    def _meaning(self, value: str, is_scale: bool) -> tuple[str, str]:
        """Returns what a vote means, and why that is not known."""
        if is_number(value) and is_scale:
            return UNKNOWN, "; it may be a scale: which end is for which answer?"
        meaning = meaning_of(value)
        if meaning is None or len(value) > _LONGEST_VALUE:
            return UNKNOWN, ""
        by_side = meaning.endswith(("left", "right"))
        has_sides = {*SIDES} <= {*self._columns}
        if by_side and not has_sides and not self._order:
            return UNKNOWN, f"; {meaning}, but nothing says which answer stood there"
        if meaning[-1] in "ABab" and has_sides and not self._order:
            return UNKNOWN, "; the answers are named by side: which one is it?"
        return meaning, ""

    def _order_lines(self) -> Iterator[str]:
        if not self._order:
            return
        column = self._order[0]
        yield "order:  # which answer stood on the left in a row, A or B"
        yield f"  column: {_quoted(column.name)}"
        yield "  values:"
        for value, count in sorted(column.values.items()):
            meaning = meaning_of(value)
            if meaning not in ("A", "B"):
                meaning = self._open(f"which answer {_cut(value)!r} is, on the left")
            yield f"    {_quoted(value)}: {meaning}  # {count} times"
        if column.has_more:
            self._open(f"column {column.name!r} has more than {_MOST_VALUES} different values")

    def _dimension_lines(self) -> Iterator[str]:
        for column in self._columns.get("dimension", ()):
            yield "dimensions:  # what the sheet calls them: the name of the dimension"
            for value, count in sorted(column.values.items()):
                name, remainder = vote_name(value)
                known = name if name and not remainder else _quoted(value)
                yield f"  {_quoted(value)}: {known}  # {count} times"

    def _rest_lines(self) -> Iterator[str]:
        if self._ignored:
            yield f"ignore: [{', '.join(map(_quoted, self._ignored))}]  # they may say who it is"
        for column in self._free.values():
            yield f"# kept in extra: {_quoted(column.name)}  ({column.examples})"


def _quoted(text: str) -> str:
    """Returns a text in quotes, as YAML reads it back."""
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6)
    return dumped.strip()


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shown(text: str) -> str:
    return " ".join(printable(text).split())
