"""What the columns of a tool's table hold: a mapping of sheets, made by the tool's own rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import yaml

from medrm.data.readers.vote_values import DETAILS
from medrm.data.row_tables import LocatedRow
from medrm.errors import DataError, alike_together, printable, report, shortened
from medrm.exchange.imported import (
    Imported,
    Importer,
    Opened,
    Records,
    Suggestion,
    Unread,
    unread,
)
from medrm.exchange.importers.sheet import read_sheet
from medrm.exchange.importers.tool_rows import (
    RANK,
    SHOWN_FIRST,
    Rows,
    Tally,
    all_numbers,
    answer_columns,
    in_stored_order,
    numbered,
)
from medrm.exchange.mapping import PAIR, ROLES, SEVERAL, SIDES, UNKNOWN
from medrm.exchange.sheet_columns import IMAGE_NAME, MOST_VALUES
from medrm.exchange.sheet_words import (
    answer_side,
    is_identifying,
    names_other_kind,
    role_of,
    vote_name,
)
from medrm.exchange.tables.grid import MOST_COLUMNS, text_of
from medrm.exchange.vote_words import meaning_of, meanings_of
from medrm.schema import DIMENSIONS

_OWN = ("case_id", "annotator", SHOWN_FIRST)
"""Columns that every tool's table has."""

_LIST = "(list)"
"""Stands for several things in one cell, such as labels of which any number may be chosen."""

_PLACES = {"A": "left", "a": "left", "B": "right", "b": "right"}
_NO_VOTE = ("question", "image", "patient", "study", "comment", *DETAILS)
_HEAD = (
    "What is understood of this export: correct it, then import it with --mapping and this file.",
    f"Each {UNKNOWN} must be replaced. `{SHOWN_FIRST}` says which stored answer was shown first.",
)


class ToolTable:
    """The table of a tool's export, and what its columns hold.

    Args:
        opened: the export.
        rows: reads it.

    Attributes:
        opened: the table.
        tally: what else the export holds; complete once the table's rows were all read.
        kept: what raters said that is taken for no vote, once a mapping is suggested; sentences.

    Raises:
        DataError: it has no row, or too many columns to be meant.
    """

    def __init__(self, opened: Opened, rows: Rows) -> None:
        self._rows, self._source = rows, opened
        self.tally = Tally()
        self._values: dict[str, Counter[str]] = {}
        records = Records(self._read)
        for _, row in records:
            for name, cell in row.items():
                counts = self._values.setdefault(name, Counter())
                text = _value(cell)
                if text and (text in counts or len(counts) <= MOST_VALUES):
                    counts[text] += 1
            if len(self._values) > MOST_COLUMNS:
                raise DataError(f"{opened.path} has more than {MOST_COLUMNS:,} columns.")
        if not self._values:
            reasons = [f"{row.place}: {row.reason}" for row in self.tally.unread]
            problems = [*alike_together(reasons), *self.tally.notes] or ["It is empty."]
            raise DataError(report(f"{opened.path}: no annotation in it counts.", problems))
        self.opened = replace(opened, records=records, columns=tuple(self._values))
        self._points: list[str] = []
        self.kept: list[str] = []

    def _read(self, no_rows: list[Unread]) -> Iterator[LocatedRow]:
        self.tally = Tally(no_rows)
        for place, row in self._rows(self._source, self.tally):
            try:
                yield place, in_stored_order(row)
            except ValueError as error:
                no_rows.append(unread(place, str(error), row))

    def suggest(self, _: Opened) -> Suggestion:
        """Returns a mapping of the table, and what the export does not say."""
        self._points, self.kept = [], []
        votes = [*self._vote_numbers()]
        votes += self._vote_columns(_columns_of(votes))
        columns = self._roles(_columns_of(votes))
        self._say_what_is_kept({*_columns_of(votes), *_names(columns.values())})
        content: dict[str, Any] = {"columns": columns, "fixed": {}}
        if "question" not in columns:
            content["fixed"]["question"] = self._open("no column is recognised as question")
        if not votes:
            said = self._candidates(self._answers())
            held = ", ".join(f"{name!r} ({self._examples(name)})" for name in said[:20])
            unknown = self._open(f"no column is recognised as votes; there are {held or 'none'}")
            votes = [{"column": unknown, "dimension": UNKNOWN}]
        content["votes"] = [{key: vote[key] for key in vote if vote[key]} for vote in votes]
        content["values"] = self._meanings(votes)
        if "answers" not in columns:
            content["order"] = {"column": SHOWN_FIRST, "values": {"A": "A", "B": "B"}}
        content["ignore"] = [name for name in self._values if is_identifying(name)]
        stated = {key: value for key, value in content.items() if value}
        head = (*_HEAD, *self._points, *self.kept)
        text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=100)
        comments = (f"# {' '.join(printable(line).split())}\n" for line in head)
        return Suggestion("".join(comments) + text, self._points)

    def _say_what_is_kept(self, used: set[str]) -> None:
        """Names what raters said that has no meaning in the mapping."""
        for name in sorted(self.tally.controls):
            if name in self._values and name not in used:
                said = self._examples(name)
                self.kept.append(f"What raters said to {name!r} ({said}) is no vote, and kept.")

    def _examples(self, name: str) -> str:
        return ", ".join(map(repr, [*self._values[name]][:3])) or "nothing"

    def _open(self, point: str) -> str:
        self._points.append(point)
        return UNKNOWN

    def _vote_numbers(self) -> Iterator[dict[str, Any]]:
        """Yields the votes that are a rating or a rank of each answer."""
        answers = self._answers()
        for stem, names in numbered(self._candidates(answers)).items():
            numbers = {text for name in names for text in self._values[name]}
            if len(names) == len(answers) and numbers and all_numbers(numbers):
                name = stem.rstrip("_ .-")
                control = name.removesuffix(RANK)
                if all(name in self.tally.dimensions for name in names):
                    self.tally.dimensions.setdefault(control, control)
                kind = "ratings" if control == name else "ranks"
                yield {kind: names, "dimension": self._dimension(control)}

    def _vote_columns(self, numbers: set[str]) -> Iterator[dict[str, Any]]:
        """Yields the columns whose values are votes on two answers.

        Args:
            numbers: the columns of ratings and ranks.
        """
        tally, answers = self.tally, self._answers()
        for name in self._candidates(answers) if len(answers) < 3 else ():
            counts = self._values[name]
            known = sum(count for text, count in counts.items() if meaning_of(text))
            said = counts.total() - counts[_LIST]
            is_control, has_numbers = name in tally.controls, all_numbers(counts)
            is_other = name in {*_OWN, *tally.rated, *numbers} or role_of(name) in _NO_VOTE
            if is_asked := names_other_kind(name):
                holds_votes = is_control and known == said and not has_numbers
            else:
                is_like = known == counts.total() and not has_numbers
                holds_votes = (is_control and 2 * known >= said) or is_like
            if known and holds_votes and not is_other:
                dimension = self._asked(name) if is_asked else self._dimension(name)
                vote = {"column": name, "dimension": dimension}
                details = {key: f"{name}_{key}" for key in DETAILS}
                yield vote | {
                    key: column for key, column in details.items() if column in self._values
                }

    def _candidates(self, answers: list[str]) -> list[str]:
        """Returns the columns that may hold what raters said."""
        controls = self.tally.controls if self.tally.knows_controls else {*self._values}
        return [name for name in self._values if name in controls and name not in answers]

    def _answers(self) -> list[str]:
        """Returns the columns of the answers, as far as they are recognised."""
        if answers := answer_columns(self._values):
            return answers
        shown = [name for name in self._values if name not in self.tally.controls]
        sides = {side: name for name in shown if (side := answer_side(name))}
        pair = ("left", "right") if {"left", "right"} <= {*sides} else ("a", "b")
        return [sides[side] for side in pair if side in sides]

    def _asked(self, control: str) -> str:
        return self._open(f"{control!r} may hold votes: about which dimension?")

    def _dimension(self, control: str) -> str:
        dimension = self.tally.dimensions.get(control) or _named_dimension(control)
        if dimension is None:
            if "dimension" in self._values:
                return ""
            return self._asked(control)
        plain = dimension.strip().lower()
        return plain if plain in DIMENSIONS else dimension

    def _roles(self, voted: set[str]) -> dict[str, Any]:
        """Returns what the columns hold that are no votes, as their names say."""
        answers = self._answers()
        free = [name for name in self._values if name not in voted and name not in answers]
        columns: dict[str, Any] = {"answers": answers}
        if len(answers) < 3:
            pair = SIDES if answers and answer_side(answers[0]) == "left" else PAIR
            columns = dict(zip(pair, answers, strict=False))
            for missing in pair[len(answers) :]:
                columns[missing] = self._open(f"no column is recognised as {missing}")
        for name in free:
            role = name if name in _OWN else role_of(name)
            values = map(str.lower, self._values[name])
            if role is None and self._values[name] and all(map(IMAGE_NAME.fullmatch, values)):
                role = "image"
            if role not in ROLES or (role in _OWN and role != name):
                continue
            if role in SEVERAL:
                columns.setdefault(role, []).append(name)
            else:
                columns.setdefault(role, name)
        return columns

    def _meanings(self, votes: list[dict[str, Any]]) -> dict[str, str]:
        """Returns what the values of votes mean, letters as the place where an answer stood."""
        meanings: dict[str, str] = {}
        columns = [vote["column"] for vote in votes if vote.get("column") in self._values]
        said = meanings_of(text for name in columns for text in self._values[name])
        for column in columns:
            counts = self._values[column]
            if len(counts) > MOST_VALUES:
                self._open(f"{column!r} has more than {MOST_VALUES} different values")
            for text in sorted(text for text in counts if text != _LIST and text not in meanings):
                meaning = said[text] or self._open(f"what {text!r} means in {column!r}")
                strength, _, side = meaning.rpartition("_")
                place = _PLACES.get(side, side)
                meanings[text] = f"{strength}_{place}" if strength else place
        return meanings


def _named_dimension(column: str) -> str | None:
    dimension, remainder = vote_name(column)
    return None if remainder else dimension


def _value(cell: Any) -> str:
    """Returns what a cell says, in short; of what is no text or number, what it is."""
    if isinstance(cell, bytes) or (isinstance(cell, dict) and "bytes" in cell):
        return "data:image/"
    return f"({type(cell).__name__})" if isinstance(cell, dict | list) else shortened(text_of(cell))


def _columns_of(votes: list[dict[str, Any]]) -> set[str]:
    """Returns the columns in which votes stand, and what belongs to them."""
    return {*_names(vote[key] for vote in votes for key in vote if key != "dimension")}


def _names(held: Iterable[str | list[str]]) -> Iterator[str]:
    for names in held:
        yield from [names] if isinstance(names, str) else names


def read_tool(rows: Rows, opened: Opened) -> Imported:
    """Returns the lines of a tool's export.

    Args:
        rows: reads it.
        opened: the export.

    Raises:
        ConfigError: what the export does not say, and no mapping does.
    """
    table = ToolTable(opened, rows)
    imported = read_sheet(table.opened, table.suggest)
    lines, imported.addresses = imported.lines, table.tally.addresses

    def finished() -> Iterator[LocatedRow]:
        for place, line in lines:
            extra = line.get("extra", {})
            if isinstance(extra.get("context"), list):
                line["context"] = extra.pop("context")
            yield place, line
        imported.unread += table.tally.unread
        imported.notes += [*table.kept, *table.tally.notes]

    imported.lines = finished()
    return imported


def tool(name: str, recognises: Callable[[Opened], bool], rows: Rows) -> Importer:
    """Returns the importer of a tool's exports."""
    return Importer(
        name,
        recognises,
        partial(read_tool, rows),
        lambda opened: ToolTable(opened, rows).suggest(opened),
    )
