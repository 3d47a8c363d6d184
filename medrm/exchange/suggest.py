"""What columns and values of a sheet probably mean: a mapping with comments, to be corrected."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from string import ascii_lowercase

from medrm.errors import printable
from medrm.exchange.imported import Opened, Suggestion
from medrm.exchange.mapping import MEANINGS, PAIR, ROLES, SEVERAL, SIDES, UNKNOWN
from medrm.exchange.sheet_columns import (
    MOST_VALUES,
    SheetColumn,
    cut,
    quoted,
    same_within_cases,
)
from medrm.exchange.sheet_words import (
    NumberName,
    answer_letter,
    answer_side,
    counts_something,
    holds_answers,
    is_identifying,
    names_other_kind,
    names_reader,
    number_name,
    role_of,
    says_left,
    vote_name,
)
from medrm.exchange.tables.grid import number_of, text_of
from medrm.exchange.vote_words import meaning_of, meanings_of

CHOOSES_SHEET = ("sheet", "header_row")
"""Keys of a mapping that say which table of a file is meant."""

_LONGEST_VALUE = 100

_NO_SCALES = (is_identifying, counts_something, names_other_kind)
_BEST = {"ratings": "the highest number is best", "ranks": "the lowest number is best"}
_SIDE_ROLE = dict(zip(("a", "b", "left", "right"), (*PAIR, *SIDES), strict=True))


def suggest(opened: Opened) -> Suggestion:
    """Returns what the columns and values of a sheet probably mean; all its rows are read."""
    columns = {name: SheetColumn(name) for name in opened.columns}
    for _, row in opened.records:
        for name, cell in row.items():
            if text := text_of(cell):
                columns.setdefault(name, SheetColumn(name)).add(text)
    return _Suggester(opened, columns).suggestion()


class _Suggester:
    """Decides what each column means, and writes it down.

    Args:
        opened: the sheet.
        columns: what each of its columns holds.
    """

    def __init__(self, opened: Opened, columns: Mapping[str, SheetColumn]) -> None:
        self._opened = opened
        self._free = dict(columns)
        self._open_points: list[str] = []
        self._further: list[str] = []
        self._columns = self._roles()
        self._order = self._columns.pop("order", [])
        self._of_cases = self._columns_of_cases()
        self._numbers = self._number_columns()
        self._votes = [] if "answers" in self._columns else self._vote_columns()
        self._scales = self._scale_columns()
        self._turned = self._turned_case()
        self._ignored = [name for name in [*self._free] if is_identifying(name)]
        for name in self._ignored:
            del self._free[name]

    def suggestion(self) -> Suggestion:
        """Returns the mapping."""
        lines = [*self._head(), *self._column_lines(), *self._vote_lines()]
        lines += [*self._order_lines(), *self._dimension_lines(), *self._rest_lines()]
        return Suggestion("\n".join(lines) + "\n", self._open_points)

    def _roles(self) -> dict[str, list[SheetColumn]]:
        """Takes the columns whose names say what they hold."""
        roles: dict[str, list[SheetColumn]] = {}
        if answers := self._several_answers():
            roles["answers"] = answers
        for column in [] if answers else self._answers_first():
            side = answer_side(column.name)
            votes = column.is_vote_like or column.is_numeric
            if side and not votes and column.values and _SIDE_ROLE[side] not in roles:
                roles[_SIDE_ROLE[side]] = [self._free.pop(column.name)]
        pairs = [pair for pair in (PAIR, SIDES) if {*pair} <= {*roles}]
        with_texts = [p for p in pairs if all(holds_answers(roles[role][0].name) for role in p)]
        if len(with_texts or pairs) == 1:  # the others may say which model stood where
            for unused in {*roles} & ({*PAIR, *SIDES} - {*(with_texts or pairs)[0]}):
                self._free |= {column.name: column for column in roles.pop(unused)}
        for column in [*self._free.values()]:
            role = role_of(column.name)
            if says_left(column.name) and column.names_answers:
                role = "order"
            if role is None and column.images and column.images >= sum(column.values.values()) / 2:
                role = "image"
            if role and (role not in roles or role in SEVERAL):
                roles.setdefault(role, []).append(self._free.pop(column.name))
        return roles

    def _answers_first(self) -> list[SheetColumn]:
        """Returns the columns, those with answers before those with the models that wrote them."""
        return sorted(self._free.values(), key=lambda column: not holds_answers(column.name))

    def _several_answers(self) -> list[SheetColumn]:
        """Takes the columns of more than two answers, in their order."""
        named: dict[str, SheetColumn] = {}
        for column in self._answers_first():
            letter = answer_letter(column.name)
            if letter and column.values and not (column.is_vote_like or column.is_numeric):
                named.setdefault(letter, column)
        is_complete = {*named} == {*ascii_lowercase[: len(named)]}
        if len(named) < 3 or not is_complete:
            self._further = [named[key].name for key in sorted(named) if key > "b"]
            return []
        return [self._free.pop(named[letter].name) for letter in sorted(named)]

    def _number_columns(self) -> list[tuple[NumberName, list[SheetColumn]]]:
        """Takes the columns that hold a number for each answer, in the order of the answers."""
        sides = ["left", "right"] if SIDES[0] in self._columns else ["a", "b"]
        if "answers" in self._columns:
            sides = list(ascii_lowercase[: len(self._columns["answers"])])
        named = {
            what: column
            for column in self._free.values()
            if column.is_numeric and (what := number_name(column.name))
        }
        taken = []
        for what in named:
            columns = [named.get(what._replace(side=side)) for side in sides]
            if what.side == sides[0] and None not in columns:
                taken.append((what, [self._free.pop(column.name) for column in columns if column]))
        return taken

    def _vote_columns(self) -> list[tuple[SheetColumn, str, str]]:
        """Takes the columns that hold votes, with the dimension and the annotator of each."""
        by_reader = "annotator" not in self._columns
        named: list[tuple[SheetColumn, str | None, str]] = []
        for column in [*self._free.values()]:
            dimension, remainder = vote_name(column.name)
            is_named = dimension is not None and (not remainder or by_reader)
            is_like = column.is_vote_like and column.name not in self._of_cases
            is_other = is_identifying(column.name) or names_other_kind(column.name)
            if not is_other and (is_like or is_named):
                named.append((self._free.pop(column.name), dimension, remainder))
        readers = _readers((dimension, remainder) for _, dimension, remainder in named)
        votes = []
        for column, dimension, remainder in named:
            is_reader = names_reader(remainder, dimension is not None)
            if remainder and not (by_reader and is_reader):
                dimension = UNKNOWN
            annotator = remainder if remainder in readers else UNKNOWN
            about = "" if "dimension" in self._columns else dimension or "overall"
            votes.append((column, about, annotator if by_reader else ""))
        return votes

    def _scale_columns(self) -> list[SheetColumn]:
        """Takes the columns of numbers that may be votes on a scale, though no name says so."""
        stated = [{*column.values} for column, *_ in self._votes if column.is_numeric]
        scales = []
        for column in [*self._free.values()]:
            values = {*column.values}
            is_alike = len(values) > 1 and any(values <= others for others in stated)
            is_scale = column.is_numeric and (column.is_short_scale or is_alike)
            is_scale = is_scale and column.name not in self._of_cases
            if is_scale and not any(says(column.name) for says in _NO_SCALES):
                scales.append(self._free.pop(column.name))
        return scales

    def _case_names(self) -> list[str]:
        """Returns the columns that say which case a row is about."""
        by = [role for role in ("case_id", "question", "image") if role in self._columns]
        return [column.name for role in by for column in self._columns[role]]

    def _columns_of_cases(self) -> set[str]:
        """Returns the columns whose values belong to the case, whoever reads it."""
        if "annotator" not in self._columns:
            return set()
        names = [
            column.name
            for column in self._free.values()
            if column.is_vote_like or column.is_short_scale
        ]
        reader = self._columns["annotator"][0].name
        return same_within_cases(self._opened.records, self._case_names(), reader, names)

    def _turned_case(self) -> str:
        """Returns a case whose answers left and right swap between rows; empty: there is none."""
        if self._order or not {*SIDES} <= {*self._columns}:
            return ""
        sides = [self._columns[role][0].name for role in SIDES]
        names = self._case_names()
        seen: dict[int, int] = {}
        for _, row in self._opened.records:
            case = [text_of(row.get(name)) for name in names]
            left, right = (text_of(row.get(name)) for name in sides)
            first = seen.setdefault(hash(tuple(case)), hash((left, right)))
            if left != right and first == hash((right, left)):
                return case[0]
        return ""

    def _open(self, point: str) -> str:
        """Notes what is left open, and returns what stands in its place."""
        self._open_points.append(point)
        return quoted(UNKNOWN)

    def _head(self) -> Iterator[str]:
        yield f"# What is understood of {_shown(self._opened.path.name)}: correct it, then import"
        yield "# the sheet with `--mapping` and this file. Each ? must be replaced."
        yield from (f"# {_shown(note)}" for note in self._opened.notes)
        chosen = self._opened.mapping or {}
        yield from (f"{key}: {quoted(chosen[key])}" for key in CHOOSES_SHEET if key in chosen)

    def _column_lines(self) -> Iterator[str]:
        found = self._columns
        yield "columns:"
        if "case_id" not in found:
            yield "  # case_id: none is recognised; ids are made of question, images and answers"
        if "image" not in found:
            yield "  # image: none is recognised; the cases are text"
        for role, columns in sorted(found.items(), key=lambda held: ROLES.index(held[0])):
            names = [quoted(column.name) for column in columns]
            stated = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
            yield f"  {role}: {stated}  # {columns[0].examples}"
        pair = SIDES if {*SIDES} <= {*found} else PAIR
        for role in pair:
            if role not in found and "answers" not in found:
                yield f"  {role}: {self._open(f'no column is recognised as {role}')}"
        if self._further:
            point = self._open(f"whether {', '.join(map(repr, self._further))} are answers too")
            yield f"  answers: {point}  # a list in place of the pair; or delete this line"
        if "question" not in found:
            point = self._open("no column is recognised as question")
            yield "fixed:"
            yield f"  question: {point}  # one for all cases; or name its column above"

    def _vote_lines(self) -> Iterator[str]:
        yield "votes:  # each column with votes, what they are about, and whose they are"
        yield from self._number_lines()
        if not (self._votes or self._numbers or self._scales):
            what = "column"
            point = self._open("no column is recognised as votes")
            if "answers" in self._columns:
                what, point = "ranks", f"[{point}]  # a column for each answer; or ratings"
            yield f"  - {what}: {point}"
            yield "    dimension: overall"
        for column, dimension, annotator in self._votes:
            yield f"  - column: {quoted(column.name)}"
            if dimension == UNKNOWN:
                self._open(f"column {column.name!r} may hold votes: about which dimension?")
            if annotator == UNKNOWN:
                self._open(f"nothing says whose the votes in {column.name!r} are")
            if dimension:
                yield f"    dimension: {quoted(dimension)}"
            if annotator:
                yield f"    annotator: {quoted(annotator)}"
        for column in self._scales:
            yield from self._scale_lines(column)
        if self._votes or not (self._numbers or self._scales or "answers" in self._columns):
            yield f"values:  # what they mean: {', '.join(MEANINGS[:8])},"
            yield f"  # {', '.join(MEANINGS[8:])} (no vote)"
            yield from self._value_lines()

    def _scale_lines(self, column: SheetColumn) -> Iterator[str]:
        yield f"  # delete this entry if the numbers ({column.examples}) are no votes"
        yield f"  - column: {quoted(column.name)}"
        point = self._open(f"column {column.name!r} may hold votes: about what, on which scale?")
        if "dimension" not in self._columns:
            yield f"    dimension: {point}"
        if "annotator" not in self._columns:
            yield f"    annotator: {quoted(UNKNOWN)}"
        shared = {value for voted, *_ in self._votes for value in voted.values}
        if not {*column.values} <= shared:
            means = (f"{quoted(value)}: {quoted(UNKNOWN)}" for value in sorted(column.values))
            yield f"    values: {{{', '.join(means)}}}"

    def _number_lines(self) -> Iterator[str]:
        for what, columns in self._numbers:
            names = ", ".join(quoted(column.name) for column in columns)
            yield f"  - {what.numbers}: [{names}]  # {_BEST[what.numbers]}"
            dimension = quoted(what.dimension)
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
                self._open(f"column {column.name!r} has more than {MOST_VALUES} different values")
            counts.update(column.values)
        meanings = meanings_of(counts)
        for value, count in sorted(counts.items()):
            meaning, doubt = self._meaning(value, meanings[value])
            if meaning == UNKNOWN:
                meaning = self._open(f"what {cut(value)!r} means as a vote{doubt}")
            yield f"  {quoted(value)}: {meaning}  # {count} times{doubt}"
        if not counts:
            yield f'  "1": {self._open("no vote is recognised")}'

    def _meaning(self, value: str, meaning: str | None) -> tuple[str, str]:
        """Returns what a vote means in this sheet, and why that is not known.

        Args:
            value: of the vote.
            meaning: by its words and signs; None: they do not say it.
        """
        if meaning is None and number_of(value) is not None:
            return UNKNOWN, "; it may be a scale: which end is for which answer?"
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
        if self._turned:
            held = [column for column in self._free.values() if len(column.values) == 2]
            shown = " or ".join(f"{quoted(column.name)} ({column.examples})" for column in held)
            yield "order:  # which answer stood on the left in a row, A or B: they swap"
            yield f"  # perhaps {shown or 'no column says so'}"
            where = f"left and right swap within case {cut(self._turned)!r}"
            yield f"  column: {self._open(f'which column says which answer is left: {where}')}"
            yield f"  values: {{{quoted(UNKNOWN)}: {quoted(UNKNOWN)}}}"
        if not self._order:
            return
        column = self._order[0]
        yield "order:  # which answer stood on the left in a row, A or B"
        yield f"  column: {quoted(column.name)}"
        yield "  values:"
        for value, count in sorted(column.values.items()):
            meaning = meaning_of(value)
            if meaning not in ("A", "B"):
                meaning = self._open(f"which answer {cut(value)!r} is, on the left")
            yield f"    {quoted(value)}: {meaning}  # {count} times"
        if column.has_more:
            self._open(f"column {column.name!r} has more than {MOST_VALUES} different values")

    def _dimension_lines(self) -> Iterator[str]:
        for column in self._columns.get("dimension", ()):
            yield "dimensions:  # what the sheet calls them: the name of the dimension"
            for value, count in sorted(column.values.items()):
                name, remainder = vote_name(value)
                known = name if name and not remainder else quoted(value)
                yield f"  {quoted(value)}: {known}  # {count} times"

    def _rest_lines(self) -> Iterator[str]:
        if self._ignored:
            yield f"ignore: [{', '.join(map(quoted, self._ignored))}]  # they may say who it is"
        for column in self._free.values():
            no_vote = "; no vote, for it is the same for all readers of a case"
            ending = no_vote if column.name in self._of_cases else ""
            yield f"# kept in extra: {quoted(column.name)}  ({column.examples}{ending})"


def _readers(named: Iterable[tuple[str | None, str]]) -> set[str]:
    """Returns the remainders of names that tell the columns of one dimension apart by reader.

    Args:
        named: the dimension of each column of votes, and what else its name says.
    """
    by_dimension: defaultdict[str | None, set[str]] = defaultdict(set)
    for dimension, remainder in named:
        by_dimension[dimension].add(remainder)
    readers: set[str] = set()
    for dimension, remainders in by_dimension.items():
        beside = dimension is not None
        if len(remainders) > 1 and all(names_reader(text, beside) for text in remainders):
            readers |= remainders
    return readers


def _shown(text: str) -> str:
    return " ".join(printable(text).split())
