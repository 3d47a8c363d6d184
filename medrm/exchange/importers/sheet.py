"""Tables with columns of any name, read by a mapping; their rows become lines of votes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, NamedTuple

from medrm.data.readers.row_forms import form_of
from medrm.data.readers.vote_values import DETAILS
from medrm.data.readers.votes_jsonl import GROUPS, INDEPENDENT
from medrm.data.row_tables import SUFFIXES as ROW_SUFFIXES
from medrm.data.row_tables import Row
from medrm.errors import ConfigError, shortened
from medrm.exchange.imported import WORKBOOKS, Imported, Opened, Suggestion, name_key, unread
from medrm.exchange.mapping import (
    BY_PLACE,
    NO_VOTE,
    PAIR,
    SIDES,
    SheetMapping,
    VoteColumn,
    sheet_mapping,
    value_key,
)
from medrm.exchange.mapping_file import load_mapping
from medrm.exchange.shown_order import stored_ranking, turned, with_strength
from medrm.exchange.suggest import suggest as suggest_by_words
from medrm.exchange.tables.grid import number_of, seconds_of, text_of
from medrm.schema import LETTERS, TIE


class _RefusedError(Exception):
    """A row, or a reader's votes in it, that is not taken."""


def is_sheet(opened: Opened) -> bool:
    """Returns whether a file holds a table."""
    return bool(opened.columns)


def read_sheet(
    opened: Opened, suggest: Callable[[Opened], Suggestion] = suggest_by_words
) -> Imported:
    """Returns the lines of a table, by the user's mapping or by one that leaves nothing open.

    Args:
        opened: the table.
        suggest: returns the mapping that is taken where the user gives none.

    Raises:
        ConfigError: the mapping does not fit; or there is none, and the table can be understood in
            several ways.
    """
    content = opened.mapping
    if content is None:
        suggestion = suggest(opened)
        if suggestion.open_points:
            raise ConfigError(_how_to_go_on(opened, suggestion.open_points))
        content = load_mapping(suggestion.text)
    mapping = sheet_mapping(content, opened.columns)
    imported = Imported(iter(()), settings={"mapping": content})
    imported.lines = _SheetReader(mapping, opened, imported).lines()
    return imported


def _how_to_go_on(opened: Opened, open_points: list[str]) -> str:
    points = "\n".join(f"- {point}" for point in open_points[:20])
    name, form = shlex.quote(str(opened.path)), form_of(opened.columns)
    is_set = form is not None and opened.suffix in ROW_SUFFIXES
    as_is = (
        f"Its rows look like {form}, which needs no import: name the file itself as the set, as in "
        f"--train_data {name}.\n"
    )
    return (
        f"{opened.path}: this is not clear:\n{points}\n{as_is if is_set else ''}"
        f"`medrm data import {name} --suggest --mapping MAP.yaml` writes what is understood and "
        "what is not. Correct that file, and import with --mapping MAP.yaml."
    )


class _RowAnswers(NamedTuple):
    """The answers of a row, as they are stored.

    Attributes:
        texts: of the answers.
        left: which one stood on the left, `A` or `B`; empty: nobody says so.
    """

    texts: list[str]
    left: str


class _SheetReader:
    """Reads the rows of a sheet.

    Args:
        mapping: that fits it.
        opened: the sheet.
        imported: what is not taken is added there.
    """

    def __init__(self, mapping: SheetMapping, opened: Opened, imported: Imported) -> None:
        self._mapping, self._opened, self._imported = mapping, opened, imported
        used = {*mapping.used}
        self._extra = [name for name in opened.columns if name not in used]
        self._remarks: Counter[str] = Counter()
        self._first_answers: dict[str, tuple[str, int]] = {}

    def lines(self) -> Iterator[tuple[str, Row]]:
        """Yields the lines of each row: one for each reader who votes in it."""
        for place, row in self._opened.records:
            try:
                yield from self._lines_of(place, row)
            except _RefusedError as error:
                self._refuse(place, str(error), row)
        self._imported.notes += [f"{text} ({count} rows)." for text, count in self._remarks.items()]
        if ignored := ", ".join(map(repr, self._mapping.ignore)):
            self._imported.notes.append(f"Left out, as the mapping says: {ignored}.")

    def _refuse(self, place: str, reason: str, row: Row) -> None:
        content = {
            name: text
            for name, cell in row.items()
            if name not in self._mapping.ignore and (text := text_of(cell))
        }
        self._imported.unread.append(unread(place, reason, content))

    def _lines_of(self, place: str, row: Row) -> Iterator[tuple[str, Row]]:
        answers = self._answers(row)
        case = self._case(row, answers)
        self._refuse_turned(place, case["case_id"], answers.texts)
        reads: dict[str, dict[str, Any]] = {}
        for vote in self._mapping.votes:
            if self._is_empty(vote, row):
                continue
            annotator = vote.annotator or self._text("annotator", row)
            try:
                self._add_vote(reads.setdefault(annotator, {"votes": {}}), vote, row, answers)
            except _RefusedError as error:
                of_reader = f"{annotator!r}: " if vote.annotator else ""
                self._refuse(place, f"{of_reader}{error}", row)
                reads[annotator]["votes"] = {"": None}
        if not reads:
            raise _RefusedError("it has no vote")
        for annotator, read in reads.items():
            if "" not in read["votes"]:
                yield place, {**case, "annotator": annotator, **read, **self._remainder(row)}

    def _refuse_turned(self, place: str, case_id: str, texts: list[str]) -> None:
        """Refuses a row whose answers are those of its case the other way round.

        Raises:
            _RefusedError: they are.
        """
        first, answers = self._first_answers.setdefault(case_id, (place, hash(tuple(texts))))
        if len(texts) != 2 or texts[0] == texts[1] or answers != hash(tuple(texts[::-1])):
            return
        swapped = (
            f"case {shortened(case_id)!r} has its two answers the other way round than {first}"
        )
        if self._mapping.order_column:
            raise _RefusedError(f"{swapped}, also by the `order:` of the mapping; correct it")
        raise _RefusedError(
            f"{swapped}, and nothing says which one stood on the left. Give the mapping "
            "answer_left and answer_right, and an `order:`, the column that says it"
        )

    def _is_empty(self, vote: VoteColumn, row: Row) -> bool:
        """Returns whether a row has nothing where a vote may stand."""
        names = (vote.column,) if vote.column else (*vote.ratings, *vote.ranks)
        return not any(text_of(row.get(name)) for name in names)

    def _case(self, row: Row, answers: _RowAnswers) -> Row:
        """Returns what a row says of its case."""
        case: Row = {"question": self._text("question", row), "images": self._images(row)}
        case |= {
            role: self._text(role, row, "") for role in (*INDEPENDENT, *GROUPS) if self._has(role)
        }
        case = {key: value for key, value in case.items() if value != ""}
        if len(answers.texts) == 2:
            case |= dict(zip(PAIR, answers.texts, strict=True))
        else:
            case["answers"] = answers.texts
        if self._has("case_id"):
            texts = [text_of(row.get(name)) for name in self._mapping.columns["case_id"]]
            if not all(texts):
                raise _RefusedError(f"it has no id in {self._named('case_id')}")
            cells: list[Any] = [row.get(name) for name in self._mapping.columns["case_id"]]
            if any(isinstance(cell, date) for cell in cells):
                self._remarks[
                    "An id is a date in the sheet, which Excel makes of texts as 3-4"
                ] += 1
            is_book = self._opened.suffix in WORKBOOKS
            if is_book and any(type(cell) in (int, float) and abs(cell) >= 1e15 for cell in cells):
                self._remarks[
                    "An id is a number of more than 15 digits, of which Excel keeps 15, so that "
                    "several may be one"
                ] += 1
            return {"case_id": " / ".join(texts), **case}
        content = json.dumps(case, sort_keys=True, default=str).encode()
        return {"case_id": hashlib.sha256(content).hexdigest()[:16], **case}

    def _answers(self, row: Row) -> _RowAnswers:
        """Returns the answers as they are stored: always the same one first."""
        columns = self._mapping.columns
        left = ""
        if self._mapping.order_column:
            stated = text_of(row.get(self._mapping.order_column))
            left = self._mapping.order.get(name_key(stated), "")
            if not left:
                raise _RefusedError(
                    f"{self._mapping.order_column!r} is {shortened(repr(stated))}, which the order "
                    "of the mapping does not name"
                )
        if "answers" in columns:
            return _RowAnswers([self._cell_text(name, row) for name in columns["answers"]], left)
        if PAIR[0] in columns:
            return _RowAnswers([self._text(role, row) for role in PAIR], left)
        texts = [self._text(role, row) for role in SIDES]
        return _RowAnswers(texts[::-1] if left == "B" else texts, left or "A")

    def _images(self, row: Row) -> list[Any]:
        images: list[Any] = []
        cells = [row.get(name) for name in self._mapping.columns.get("image", ())]
        for cell in cells:
            if isinstance(cell, str) and not cell.startswith("data:"):
                images += filter(None, (path.strip() for path in re.split(r"[;\r\n]", cell)))
            elif cell not in (None, ""):
                images += cell if isinstance(cell, list) else [cell]
        if cells and not images and [] not in cells:  # an empty list says that there is none
            raise _RefusedError(f"it has no image in {self._named('image')}")
        return images

    def _add_vote(
        self, read: dict[str, Any], vote: VoteColumn, row: Row, answers: _RowAnswers
    ) -> None:
        """Adds a vote and what belongs to it to what a reader says in a row."""
        dimension = vote.dimension or self._dimension(row)
        meaning = self._meaning(vote, row, answers)
        if dimension in read["votes"]:
            raise _RefusedError(f"it votes twice on {dimension!r}; keep one")
        read["votes"][dimension] = meaning
        for name in DETAILS:
            column = vote.details.get(name)
            stated = None if column is None else self._detail(name, column, row)
            if stated is not None:
                read.setdefault(name, {})[dimension] = stated

    def _dimension(self, row: Row) -> str:
        stated = self._text("dimension", row)
        if not self._mapping.dimensions:
            return stated
        dimension = self._mapping.dimensions.get(name_key(stated))
        if dimension is None:
            raise _RefusedError(
                f"{self._named('dimension')} is {shortened(repr(stated))}, which the mapping's "
                "dimensions do not name"
            )
        return dimension

    def _meaning(self, vote: VoteColumn, row: Row, answers: _RowAnswers) -> Any:
        """Returns the value of a vote, for the answers as they are stored."""
        if not vote.column:
            return self._ranking(vote, row, answers)
        cell = row.get(vote.column)
        several = [*dict.fromkeys(map(text_of, cell))] if isinstance(cell, list) else []
        if len(several) > 1:
            named = shortened(", ".join(several))
            raise _RefusedError(f"{vote.column!r} names several at once ({named}); a vote is one")
        stated = several[0] if several else text_of(cell)
        meaning = (vote.values or self._mapping.values).get(value_key(stated))
        if meaning is None:
            raise _RefusedError(
                f"{vote.column!r} is {shortened(repr(stated))}, which the mapping's values do not "
                "name"
            )
        if meaning == NO_VOTE:
            return None
        if meaning not in BY_PLACE:
            return meaning
        strength, _, side = meaning.rpartition("_")
        if not answers.left:
            raise _RefusedError(
                f"{vote.column!r} is {stated!r}, and nothing says which answer stood there; give "
                "the mapping an order, or answer_left and answer_right"
            )
        letter = answers.left if side == "left" else turned(answers.left, (1, 0))
        return with_strength(letter, strength)

    def _ranking(self, vote: VoteColumn, row: Row, answers: _RowAnswers) -> str | list[list[int]]:
        """Returns the stored answers by their numbers, best first; of two, which one is better."""
        names = vote.ratings or vote.ranks
        if answers.left == "B" and SIDES[0] in self._mapping.columns:
            names = names[::-1]
        numbers = [number_of(row.get(name)) for name in names]
        if None in numbers:
            stated = ", ".join(repr(text_of(row.get(name))) for name in names)
            raise _RefusedError(
                f"{', '.join(map(repr, names))} are {shortened(stated)}; give numbers"
            )
        sign = -1 if vote.ratings else 1  # the highest rating is the best, and the lowest rank
        ranks = {i: sign * number for i, number in enumerate(numbers) if number is not None}
        ranking = stored_ranking(ranks, range(len(numbers)))
        if len(numbers) > 2:
            return ranking
        return TIE if len(ranking) == 1 else LETTERS[ranking[0][0]]

    def _remainder(self, row: Row) -> Row:
        """Returns the remarks of a row, and its columns that the mapping does not name."""
        said: Row = {}
        extra = {name: _plain(row[name]) for name in self._extra if text_of(row.get(name))}
        comments = [text_of(row.get(name)) for name in self._mapping.columns.get("comment", ())]
        if comment := "\n".join(filter(None, comments)):
            said["comment"] = comment
        for name in DETAILS:
            if self._has(name):
                (column,) = self._mapping.columns[name]
                stated = self._detail(name, column, row)
                if stated is not None:
                    said[name] = stated
                elif text_of(row.get(column)):
                    extra[column] = text_of(row.get(column))
        return said | ({"extra": extra} if extra else {})

    def _detail(self, name: str, column: str, row: Row) -> Any:
        """Returns a time in seconds, a confidence or a reason; None where there is none."""
        cell = row.get(column)
        text = text_of(cell)
        if name == "reason" or not text:
            return text or None
        number = seconds_of(cell) if name == "seconds" else number_of(cell)
        if name == "seconds" and number is None:
            self._remarks[f"{column!r} is no time, which stays in `extra`"] += 1
        return text if number is None and name == "confidence" else number

    def _has(self, role: str) -> bool:
        return role in self._mapping.columns or role in self._mapping.fixed

    def _named(self, role: str) -> str:
        return ", ".join(map(repr, self._mapping.columns.get(role, ())))

    def _text(self, role: str, row: Row, default: str | None = None) -> str:
        """Returns what a row says, or what holds for all of them.

        Raises:
            _RefusedError: it is empty, and there is no default.
        """
        if role in self._mapping.fixed:
            return self._mapping.fixed[role]
        return self._cell_text(self._mapping.columns[role][0], row, default)

    def _cell_text(self, name: str, row: Row, default: str | None = None) -> str:
        text = text_of(row.get(name))
        if not text and default is None:
            raise _RefusedError(f"{name!r} is empty")
        return text or (default or "")


def _plain(cell: Any) -> Any:
    """Returns a cell as JSON can hold it."""
    if isinstance(cell, Mapping):
        return {str(key): _plain(value) for key, value in cell.items()}
    if isinstance(cell, list):
        return [_plain(value) for value in cell]
    if isinstance(cell, bytes):
        return f"{len(cell):,} bytes"
    is_plain = isinstance(cell, bool | int | str) or (
        isinstance(cell, float) and math.isfinite(cell)
    )
    return cell if is_plain or cell is None else text_of(cell)
