"""Answers of several systems in one table, and ratings of pairs of them, axis by axis, in another.

Real-POCQi is released so: `questions`, `answers` and `ratings`, one parquet table each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from medrm.data.readers.vote_values import read_vote
from medrm.data.row_tables import Row, missing_columns, parquet_table
from medrm.data.sources import (
    CaseDraft,
    DataFormat,
    Description,
    ReadResult,
    Source,
    Vote,
    hub_files,
    size_problem,
)
from medrm.errors import DataError, raise_problems, shortened
from medrm.schema import Choice

_COLUMNS = {
    "questions": ("question_id", "question_text"),
    "answers": ("question_id", "provider_key", "answer_markdown"),
    "ratings": ("question_id", "axis", "choice", "slot_a_provider", "slot_b_provider"),
}
"""The tables, and the columns that each must have."""

_MODE = "render_mode"
"""Column of how the answers were shown, where it is stated: as text alone, or with citations."""

_PATTERNS = ("{}.parquet", "{}-*.parquet", "*/{}.parquet", "*/{}-*.parquet", "{}/*.parquet")


class _RatedPair(NamedTuple):
    """What a rating is about: a question, two systems in any order, and how they were shown."""

    question: str
    systems: frozenset[str]
    mode: str


@dataclass
class _Ratings:
    """The votes on one comparison, as votes on its systems in the order in which they are stored.

    Attributes:
        stored: the two systems.
        votes: dimension to votes.
    """

    stored: tuple[str, ...]
    votes: dict[str, list[Vote]] = field(default_factory=dict)


def rated_axes_format() -> DataFormat:
    """Returns the format of a folder that holds the three tables."""
    return DataFormat(
        marker="ratings.parquet",
        open_folder=lambda folder, image_root: _source(folder, folder),
        open_described=_open_hub,
    )


def _open_hub(description: Description) -> Source:
    folder = hub_files(description, [f"*{name}*.parquet" for name in _COLUMNS])
    source = _source(folder, folder.parent.parent)
    return replace(source, revision=folder.name, hub_id=description.hub_id)


def _source(folder: Path, boundary: Path) -> Source:
    tables = {}
    for name in _COLUMNS:
        found = {path for pattern in _PATTERNS for path in folder.glob(pattern.format(name))}
        if len(found) != 1:
            raise DataError(
                f"{folder} holds {len(found)} tables of {name}; accepted is one each of "
                f"{', '.join(f'{table}.parquet' for table in _COLUMNS)}."
            )
        tables[name] = found.pop()
    drafts = partial(_drafts, tables, folder, boundary)
    return Source([*tables.values()], lambda: ReadResult(drafts()))


def _drafts(tables: Mapping[str, Path], folder: Path, boundary: Path) -> Iterator[CaseDraft]:
    """Yields a case for each question and two systems that were compared on it.

    In which order the answers of a case are stored follows from a hash, whichever stood first when
    it was rated. The tables do not say who rated: the n-th rating of a comparison on an axis counts
    as one of an n-th rater.

    Raises:
        DataError: all missing columns and wrong rows in one message.
    """
    problems: list[str] = []
    questions = {
        str(row["question_id"]): row
        for _, row in _rows(tables, "questions", boundary, problems, ("question_id",))
    }
    answers = {
        (str(row["question_id"]), str(row["provider_key"])): row["answer_markdown"]
        for _, row in _rows(tables, "answers", boundary, problems)
    }
    compared: dict[_RatedPair, _Ratings] = {}
    for location, row in _rows(tables, "ratings", boundary, problems):
        try:
            _add(row, compared)
        except DataError as error:
            problems.append(f"ratings {location}: {error}")
    for key, ratings in compared.items():
        texts = [answers.get((key.question, system)) for system in ratings.stored]
        asked = questions.get(key.question, {}).get("question_text")
        if not all(isinstance(text, str) for text in (asked, *texts)):
            problems.append(
                f"question {shortened(key.question)!r}: its text or the answer of "
                f"{' or '.join(map(shortened, ratings.stored))} is missing"
            )
            continue
        specialty = questions[key.question].get("specialty")
        groups = {
            "department": specialty,
            _MODE: key.mode,
            "systems": " | ".join(sorted(key.systems)),
        }
        case_id = ":".join(filter(None, (key.question, *ratings.stored, key.mode)))
        if too_long := size_problem(case_id, ratings.votes):
            problems.append(f"question {shortened(key.question)!r}: {too_long}")
            continue
        yield CaseDraft(
            case_id,
            (),
            str(asked),
            tuple(map(str, texts)),
            ratings.votes,
            [f"prompt:{key.question}"],
            {name: str(value) for name, value in groups.items() if value},
        )
    raise_problems(DataError, folder, problems)


def _rows(
    tables: Mapping[str, Path],
    name: str,
    boundary: Path,
    problems: list[str],
    unique: tuple[str, ...] = (),
) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a table that has its columns; a value of `unique` stands once."""
    table = parquet_table(tables[name], boundary)
    missing = missing_columns(table.columns, _COLUMNS[name])
    problems += [f"{name}: {problem}" for problem in missing]
    seen: Counter[tuple[str, ...]] = Counter()
    for location, row in table.rows if not missing else ():
        key = tuple(str(row[column]) for column in unique)
        seen[key] += 1
        if unique and seen[key] == 2:
            problems.append(f"{name} {location}: {shortened(', '.join(key))!r} occurs twice")
        yield location, row


def _add(row: Row, compared: dict[_RatedPair, _Ratings]) -> None:
    """Adds a rating to those of its comparison.

    Raises:
        DataError: it names one system twice, no axis, or a choice that there is not.
    """
    slots = [row["slot_a_provider"], row["slot_b_provider"]]
    axis = row["axis"]
    if not all(isinstance(name, str) and name for name in (*slots, axis)) or len({*slots}) < 2:
        raise DataError("it does not name two systems and an axis")
    value, strength = read_vote(row["choice"], 2)
    key = _RatedPair(str(row["question_id"]), frozenset(slots), str(row.get(_MODE) or ""))
    by_hash = sorted(slots, key=lambda name: sha256(f"{key.question}\0{name}".encode()).digest())
    ratings = compared.setdefault(key, _Ratings(tuple(by_hash)))
    if isinstance(value, int) and slots != by_hash:
        turned: Choice = 1 - value
        value = turned
    votes = ratings.votes.setdefault(axis, [])
    votes.append(Vote(f"rater {len(votes) + 1}", value, strength))
