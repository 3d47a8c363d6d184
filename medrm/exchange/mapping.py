"""What the columns and values of a sheet mean, as the mapping says that people correct."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medrm.data.readers.vote_values import CHOICE_OF, DETAILS, GRADED
from medrm.data.readers.votes_jsonl import GROUPS, INDEPENDENT, dimension_problem
from medrm.errors import ConfigError, brief, nearest, raise_problems, shortened, unknown_keys
from medrm.exchange.imported import name_key
from medrm.exchange.tables.grid import number_of, text_of
from medrm.files import fits

UNKNOWN = "?"
"""What a suggestion writes where it does not know; a mapping that still holds one is refused."""

NO_VOTE = "none"

BY_PLACE = ("left", "right", "strongly_left", "slightly_left", "slightly_right", "strongly_right")
"""Votes for the answer that stood on a side."""

MEANINGS = (*CHOICE_OF, *GRADED, *BY_PLACE, NO_VOTE)
"""What a value of a vote's column may mean."""

PAIR = ("answer_a", "answer_b")
SIDES = ("answer_left", "answer_right")
SEVERAL = ("case_id", "image", "answers", "comment")
"""What may stand in several columns."""

ROLES = (
    *("case_id", "image", "question", *PAIR, *SIDES, "answers", "annotator", "dimension"),
    *(*INDEPENDENT, *GROUPS, "comment", *DETAILS),
)
"""What a column of a sheet may hold, besides votes."""

_FIXED = ("question", "annotator", *INDEPENDENT, *GROUPS)
_KEYS = (
    *("sheet", "header_row", "columns", "fixed", "votes", "values", "order", "dimensions"),
    "ignore",
)
_VOTE_KEYS = ("column", "ratings", "ranks", "dimension", "annotator", "values", *DETAILS)
_Key = Callable[[str], str]


@dataclass(frozen=True)
class VoteColumn:
    """Where votes stand: in one column, or as a number for each answer.

    Attributes:
        column: whose values are votes; empty: there are numbers.
        ratings: columns of numbers, one for each answer, the highest for the best.
        ranks: likewise, the lowest for the best.
        dimension: that the votes are about; empty: a column of the sheet says so.
        annotator: who votes; empty: a column of the sheet says so.
        values: what the column's values mean, in place of the values of the whole sheet.
        details: columns of `DETAILS` that belong to these votes alone.
    """

    column: str = ""
    ratings: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    dimension: str = ""
    annotator: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> Iterator[str]:
        """The names of all columns that it reads."""
        yield from filter(None, (self.column, *self.ratings, *self.ranks, *self.details.values()))


@dataclass(frozen=True)
class SheetMapping:
    """What the columns and values of a sheet mean.

    Attributes:
        columns: what is held (`ROLES`), to the columns that hold it.
        votes: where the votes stand.
        values: what votes mean, by `value_key` of what stands in the sheet.
        sheet: of a workbook; None: the only one with rows.
        header_row: the number of the row that names the columns; None: it is looked for.
        fixed: what holds for all rows.
        order_column: says which answer stood on the left; empty: `answer_a`, or no side matters.
        order: what its values mean, `A` or `B`, by `name_key`.
        dimensions: names of the sheet to names of dimensions, by `name_key`.
        ignore: columns that are left out, also of `extra`.
    """

    columns: Mapping[str, tuple[str, ...]]
    votes: tuple[VoteColumn, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    sheet: str | None = None
    header_row: int | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    order_column: str = ""
    order: Mapping[str, str] = field(default_factory=dict)
    dimensions: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    @property
    def used(self) -> Iterator[str]:
        """The names of all columns that it names."""
        for names in self.columns.values():
            yield from names
        for vote in self.votes:
            yield from vote.columns
        if self.order_column:
            yield self.order_column
        yield from self.ignore


def value_key(text: str) -> str:
    """Returns a value as it is compared: without capitals, a number as it is usually written.

    >>> [value_key(text) for text in (" Modell  1", "+2", "\u22121,0", "1,50")]
    ['modell 1', '2', '-1', '1.5']
    """
    number = number_of(text)
    return name_key(text) if number is None else text_of(float(number))


def sheet_mapping(
    content: Mapping[str, Any], columns: Sequence[str], name: str = "the mapping"
) -> SheetMapping:
    """Returns a mapping that fits a sheet.

    Args:
        content: of the mapping file.
        columns: of the sheet.
        name: of the mapping, for messages.

    Raises:
        ConfigError: all that is wrong with it, in one message.
    """
    problems = unknown_keys(content, _KEYS)
    problems += _shape_problems(content)
    raise_problems(ConfigError, name, problems)
    mapping = _mapping_of(content)
    problems = [
        f"{place} is still {UNKNOWN!r}; write what it means" for place in _unknowns(content, "")
    ]
    problems += _column_problems(mapping, columns) + _missing(mapping) + _value_problems(mapping)
    raise_problems(ConfigError, name, problems)
    return mapping


_SHAPES: dict[str, tuple[Any, str]] = {
    "sheet": (str, "the name of a sheet"),
    "header_row": (str, "the number of a row"),
    "columns": (dict[str, str | list[str]], "what is held, to a column or a list of columns"),
    "fixed": (dict[str, str], "what is held, to a text"),
    "votes": (list[dict[str, Any]], "a list with `column` and `dimension` for each column"),
    "values": (dict[str, str], "each value of the sheet, to what it means"),
    "order": (dict[str, Any], "`column` and `values`"),
    "dimensions": (dict[str, str], "names of the sheet to dimensions"),
    "ignore": (list[str], "a list of columns"),
}
_VOTE_SHAPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(_VOTE_KEYS, (str, "a text")),
    "ratings": (list[str], "a list of columns, one for each answer"),
    "ranks": (list[str], "a list of columns, one for each answer"),
    "values": _SHAPES["values"],
}
_ORDER_SHAPES: dict[str, tuple[Any, str]] = {
    "column": (str, "the name of a column"),
    "values": (dict[str, str], "each value of the column, to A or B"),
}


def _shape_problems(content: Mapping[str, Any]) -> list[str]:
    """Returns what is of another form than a mapping's keys have."""
    problems = _wrong_shapes(content, _SHAPES, "")
    number = content.get("header_row", "1")
    if not isinstance(number, str) or not number.isdecimal() or not 0 < len(number) < 7:
        problems.append(f"header_row is {brief(number)}; give the number of a row")
    if problems:
        return problems
    for role, names in content.get("columns", {}).items():
        if role in ROLES and role not in SEVERAL and not isinstance(names, str):
            problems.append(f"columns.{role} names several columns; give one")
    problems += [f"columns: {p}" for p in unknown_keys(content.get("columns", {}), ROLES)]
    problems += [f"fixed: {p}" for p in unknown_keys(content.get("fixed", {}), _FIXED)]
    problems += [f"order: {p}" for p in unknown_keys(content.get("order", {}), _ORDER_SHAPES)]
    problems += _wrong_shapes(content.get("order", {}), _ORDER_SHAPES, "order.")
    problems += _doubled(content.get("order", {}).get("values"), "order.values", name_key)
    problems += _doubled(content.get("dimensions", {}), "dimensions", name_key)
    problems += _doubled(content.get("values", {}), "values")
    for number, vote in enumerate(content.get("votes", ()), start=1):
        place = f"votes[{number}]"
        problems += [f"{place}: {p}" for p in unknown_keys(vote, _VOTE_KEYS)]
        problems += _wrong_shapes(vote, _VOTE_SHAPES, f"{place}.")
        problems += _doubled(vote.get("values"), f"{place}.values")
        if sum(key in vote for key in ("column", "ratings", "ranks")) != 1:
            problems.append(f"{place}: give one of column, ratings and ranks")
    return problems


def _doubled(meanings: Any, place: str, key: _Key = value_key) -> Iterator[str]:
    """Yields values that are compared as one and are said to mean two things."""
    stated: dict[str, tuple[str, str]] = {}
    for value, meaning in meanings.items() if isinstance(meanings, dict) else ():
        other, earlier = stated.setdefault(key(value), (value, meaning))
        if meaning != earlier:
            yield (
                f"{place}: {shortened(other)!r} and {shortened(value)!r} are the same value, and "
                "mean two things; keep one"
            )


def _wrong_shapes(
    content: Mapping[str, Any], shapes: Mapping[str, tuple[Any, str]], place: str
) -> list[str]:
    return [
        f"{place}{key} is {brief(content[key])}; give {words}"
        for key, (kind, words) in shapes.items()
        if key in content and not fits(content[key], kind)
    ]


def _mapping_of(content: Mapping[str, Any]) -> SheetMapping:
    order = content.get("order", {})
    number = content.get("header_row")
    return SheetMapping(
        {
            role: (names,) if isinstance(names, str) else tuple(names)
            for role, names in content.get("columns", {}).items()
        },
        tuple(map(_vote_column, content.get("votes", ()))),
        _by_key(content.get("values", {})),
        content.get("sheet"),
        None if number is None else int(number),
        content.get("fixed", {}),
        order.get("column", ""),
        _by_key(order.get("values", {}), name_key),
        _by_key(content.get("dimensions", {}), name_key),
        tuple(content.get("ignore", ())),
    )


def _vote_column(vote: Mapping[str, Any]) -> VoteColumn:
    return VoteColumn(
        vote.get("column", ""),
        tuple(vote.get("ratings", ())),
        tuple(vote.get("ranks", ())),
        vote.get("dimension", ""),
        vote.get("annotator", ""),
        _by_key(vote.get("values", {})),
        {name: vote[name] for name in DETAILS if name in vote},
    )


def _by_key(meanings: Mapping[str, str], key: _Key = value_key) -> dict[str, str]:
    return {key(value): meaning.strip() for value, meaning in meanings.items()}


def _unknowns(content: Any, place: str) -> Iterator[str]:
    """Yields the places that a suggestion has left open."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _unknowns(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, list):
        for number, value in enumerate(content, start=1):
            yield from _unknowns(value, f"{place}[{number}]")
    elif content == UNKNOWN:
        yield place


def _column_problems(mapping: SheetMapping, columns: Sequence[str]) -> list[str]:
    """Returns what names no column of the sheet, and columns that are named twice."""
    seen: set[str] = set()
    problems = []
    for name in filter(lambda name: name != UNKNOWN, mapping.used):
        if name not in columns:
            given = shortened(", ".join(map(repr, columns)))
            near = nearest(name, columns)
            problems.append(f"the sheet has no column {shortened(name)!r} (it has {given}).{near}")
        elif name in seen:
            problems.append(f"column {name!r} is named twice; a column has one meaning")
        seen.add(name)
    return problems


def _missing(mapping: SheetMapping) -> list[str]:
    """Returns what a sheet must say and the mapping does not name."""
    names = {*mapping.columns, *mapping.fixed}
    problems = []
    forms = [form for form in (PAIR, SIDES, ("answers",)) if {*form} & names]
    if len(forms) != 1 or not {*forms[0]} <= names:
        problems.append(
            "columns: give answer_a and answer_b, or answer_left and answer_right, or answers (a "
            "list of columns)"
        )
    if "question" not in names:
        problems.append("columns.question is missing; give it, or the question under `fixed`")
    if not mapping.votes:
        problems.append("votes is missing; give a list with the column and dimension of each")
    for number, vote in enumerate(mapping.votes, start=1):
        if not vote.annotator and "annotator" not in names:
            problems.append(
                f"votes[{number}]: nothing says who votes; give columns.annotator, or the "
                "annotator of this column"
            )
        if not vote.dimension and "dimension" not in names:
            problems.append(f"votes[{number}]: dimension is missing, such as overall")
    for name in DETAILS:
        if name in names and any(name in vote.details for vote in mapping.votes):
            problems.append(f"{name} stands in columns and in votes; keep one")
    doubled = {*mapping.fixed} & {*mapping.columns}
    problems += [f"{name} stands in columns and in fixed; keep one" for name in sorted(doubled)]
    return problems


def _value_problems(mapping: SheetMapping) -> list[str]:
    """Returns what values cannot mean, and votes that do not fit the answers."""
    problems: list[str] = []
    answers = len(mapping.columns.get("answers", ())) or 2
    for values, place in (
        (mapping.values, "values"),
        *((vote.values, f"votes[{n}].values") for n, vote in enumerate(mapping.votes, start=1)),
    ):
        problems += _no_meanings(values, MEANINGS, place)
    problems += _no_meanings(mapping.order, tuple("AB"), "order.values")
    if bool(mapping.order_column) != bool(mapping.order):
        problems.append("order: give the column and what its values mean")
    named = {*mapping.dimensions.values(), *(vote.dimension for vote in mapping.votes)}
    problems += filter(None, map(dimension_problem, sorted(filter(None, named))))
    for number, vote in enumerate(mapping.votes, start=1):
        numbers = vote.ratings or vote.ranks
        if numbers and len(numbers) != answers:
            problems.append(
                f"votes[{number}] names {len(numbers)} columns for {answers} answers; give one each"
            )
        if not numbers and answers > 2:
            problems.append(
                f"votes[{number}]: one column cannot rank {answers} answers; give ratings or ranks"
            )
        if not numbers and not (vote.values or mapping.values):
            problems.append(f"votes[{number}]: give what its values mean, under `values`")
    return problems


def _no_meanings(values: Mapping[str, str], meanings: Iterable[str], place: str) -> Iterator[str]:
    accepted = [*meanings]
    for value, meaning in values.items():
        if meaning not in (*accepted, UNKNOWN):
            yield (
                f"{place}: {shortened(value)!r} cannot mean {shortened(meaning)!r}; accepted: "
                f"{', '.join(accepted)}.{nearest(meaning, accepted)}"
            )
