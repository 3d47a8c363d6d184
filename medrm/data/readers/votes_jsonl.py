"""Votes in JSON lines, one line for each annotator and case -> drafts of cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from medrm.data.batched import batched
from medrm.data.drafts import CaseDraft, ReadResult, Vote
from medrm.data.images import file_images
from medrm.data.organs import canonical_organ
from medrm.data.row_tables import Row, RowTable, open_table
from medrm.data.sources import Description
from medrm.errors import DataError, nearest, report
from medrm.schema import DIMENSIONS, Choice, ImageRef, Ranking

VOTES_FILE = "votes.jsonl"
GROUPS = ("organ", "department", "modality", "source")
INDEPENDENT = ("patient", "study")
_REQUIRED = ("case_id", "question", "annotator", "votes")
_CONTENT = ("image", "images", "answer_a", "answer_b", "answers")
_ACCEPTED = (*_REQUIRED, *_CONTENT, *GROUPS, *INDEPENDENT)
_CHOICES: dict[str, Choice] = {"A": 0, "B": 1, "tie": "tie"}
_CASES_AT_ONCE = 256
_KEPT_REFERENCES = 2**14


@dataclass
class _Line:
    """One checked line, its images still paths."""

    row: int
    place: str
    case_id: str
    paths: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    annotator: str
    votes: dict[str, Choice | Ranking]
    groups: dict[str, str]
    independent: list[str]

    @property
    def case(self) -> dict[str, Any]:
        """What all lines of a case must have in common."""
        return {
            "images": self.paths,
            "question": self.question,
            "answers": self.answers,
            "groups": self.groups,
            "patient or study": self.independent,
        }


def read_votes_by_columns(
    table: RowTable, path: Path, _: Sequence[Description]
) -> ReadResult | None:
    """Reads a file that has the column `votes`."""
    return read_votes(table, path) if "votes" in table.columns else None


def read_votes_file(path: Path) -> ReadResult:
    """Reads a file that holds votes; see `read_votes`."""
    return read_votes(open_table(path), path)


def read_votes(table: RowTable, path: Path) -> ReadResult:
    """Returns the cases of a votes file, in the order in which they first appear.

    The file is read twice: first to find the lines of each case, which need not stand together.

    Raises:
        DataError: every wrong line, value and image path of the file, in one message.
    """
    return ReadResult(_drafts(table, path))


_Found = list[tuple[int, int, str]]
"""Problems: their rank in the message, the row, what is wrong."""


def _drafts(table: RowTable, path: Path) -> Iterator[CaseDraft]:
    found: _Found = []
    wrong_keys: dict[str, list[int]] = {}
    references: dict[str, ImageRef] = {}
    for chunk in batched(_by_case(table), _CASES_AT_ONCE):
        cases = [list(_lines(rows, found, wrong_keys)) for rows in chunk]
        paths = [name for lines in cases for line in lines for name in line.paths]
        if len(references) > _KEPT_REFERENCES:
            references.clear()
        new, outside = file_images(
            (name for name in paths if name not in references), table.folder, table.boundary
        )
        references |= new
        for lines in cases:
            for line in lines:
                wrong = (outside[name] for name in line.paths if name in outside)
                found += [(2, line.row, f"{line.place}: {problem}") for problem in wrong]
            if lines and not any(name in outside for line in lines for name in line.paths):
                yield _draft(lines, references, found)
    for problem, places in wrong_keys.items():
        first = table.rows[min(places)][0]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        found.append((1, min(places), f"{first}{more}: {problem}"))
    problems = [*table.problems, *(problem for _, _, problem in sorted(found, key=_rank))]
    if problems:
        raise DataError(report(f"{path} has {len(problems)} problems.", problems))


def _rank(problem: tuple[int, int, str]) -> tuple[int, int]:
    return problem[:2]


def _by_case(table: RowTable) -> Iterator[list[tuple[int, str, Row]]]:
    """Yields the rows of each case with their numbers, cases in the order of their first rows."""
    marks = np.fromiter((hash(str(row.get("case_id"))) for _, row in table.rows), dtype=np.int64)
    _, first, inverse = np.unique(marks, return_index=True, return_inverse=True)
    case_of = first[inverse]
    order = np.argsort(case_of, kind="stable")
    together = bool((np.diff(order) == 1).all())
    rows = enumerate(table.rows) if together else ((n, table.rows[n]) for n in order.tolist())
    for _, own in groupby(rows, key=lambda numbered: case_of[numbered[0]]):
        yield [(number, place, row) for number, (place, row) in own]


def _lines(
    rows: Iterable[tuple[int, str, Row]], found: _Found, wrong_keys: dict[str, list[int]]
) -> Iterator[_Line]:
    """Yields the lines with which nothing is wrong, and adds what is wrong with the others."""
    for number, place, row in rows:
        for problem in (keys := list(_key_problems(row))):
            wrong_keys.setdefault(problem, []).append(number)
        if keys:
            continue
        problems, line = _read_line(number, place, row)
        found += [(0, number, f"{place} (case {row['case_id']!r}): {text}") for text in problems]
        if line is not None:
            yield line


def _draft(lines: Sequence[_Line], references: Mapping[str, ImageRef], found: _Found) -> CaseDraft:
    """Returns the draft of a case's lines, and adds what does not fit together in them."""
    first = lines[0]
    draft = CaseDraft(
        first.case_id,
        tuple(references[name] for name in first.paths),
        first.question,
        first.answers,
        independent=first.independent,
        groups=first.groups,
    )
    for line in lines:
        problems = [*_conflicts(first, line), *_cast(draft, line)]
        found += [(3, line.row, problem) for problem in problems]
    return draft


def _conflicts(first: _Line, line: _Line) -> list[str]:
    if first is line:
        return []
    return [
        f"{line.place}: case {line.case_id!r} has other {name} than on {first.place}; lines of "
        f"one case "
        "must agree"
        for name, value in line.case.items()
        if value != first.case[name]
    ]


def _cast(draft: CaseDraft, line: _Line) -> list[str]:
    """Adds a line's votes to its case and returns those cast twice."""
    twice = []
    for dimension, value in line.votes.items():
        votes = draft.votes.setdefault(dimension, [])
        if any(vote.annotator == line.annotator for vote in votes):
            twice.append(
                f"{line.place}: annotator {line.annotator!r} votes twice on {dimension!r} of case "
                f"{line.case_id!r}; keep one"
            )
        votes.append(Vote(line.annotator, value))
    return twice


def _read_line(number: int, place: str, row: Row) -> tuple[list[str], _Line | None]:
    """Returns what is wrong with a line that has its keys, and the line where nothing is."""
    paths = row["images"] if "images" in row else [row["image"]]
    answers = row["answers"] if "answers" in row else [row["answer_a"], row["answer_b"]]
    problems = _shape_problems(row, paths, answers)
    if problems:
        return problems, None
    votes: dict[str, Choice | Ranking] = {}
    for dimension, value in row["votes"].items():
        problem = dimension_problem(dimension)
        if problem is None and value is not None:
            try:
                votes[dimension] = read_vote(value, len(answers))
            except DataError as error:
                problem = f"{dimension!r} is {value!r}; {error}"
        if problem is not None:
            problems.append(problem)
    if problems:
        return problems, None
    line = _Line(
        number,
        place,
        str(row["case_id"]),
        tuple(paths),
        row["question"],
        tuple(answers),
        str(row["annotator"]),
        votes,
        read_groups(row, GROUPS),
        [f"{name}:{row[name]}" for name in INDEPENDENT if row.get(name) not in (None, "")],
    )
    return [], line


def _key_problems(row: Row) -> Iterable[str]:
    """Yields missing keys, and keys that look like a slip of an accepted one."""
    unknown = [key for key in row if key not in _ACCEPTED]
    forms = (("image", ("image",), "images"), ("answer_a", ("answer_a", "answer_b"), "answers"))
    required = list(_REQUIRED)
    for name, single, several in forms:
        if several not in row:
            required += single
        elif name in row:
            yield f"columns {name!r} and {several!r} exclude each other; keep one"
    for key in required:
        if key not in row:
            yield f"column {key!r} is missing.{nearest(key, unknown)}"
    for key in unknown:
        if close := get_close_matches(key, _ACCEPTED, n=1, cutoff=0.8):
            yield f"column {key!r} is not known. Did you mean {close[0]!r}?"


def _shape_problems(row: Row, paths: Any, answers: Any) -> list[str]:
    problems = [
        f"{key!r} is {row[key]!r}; give text"
        for key in ("case_id", "annotator")
        if not isinstance(row[key], (str, int)) or isinstance(row[key], bool) or row[key] == ""
    ]
    if not isinstance(row["question"], str):
        problems.append(f"'question' is {row['question']!r}; give text")
    if not _texts(paths):
        problems.append("'image' must be a path, 'images' a list of paths")
    if not _texts(answers) or len(answers) < 2:
        problems.append("answers must be two texts or more")
    if not isinstance(row["votes"], dict):
        problems.append(
            f"'votes' is {row['votes']!r}; give an object, dimension to A, B, tie or null"
        )
    return problems


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def dimension_problem(dimension: str) -> str | None:
    """Returns what is wrong with a dimension's name: empty, or a canonical one spelt otherwise."""
    plain = dimension.strip().lower()
    if plain == "" or (plain in DIMENSIONS and dimension != plain):
        return f"dimension {dimension!r} is not accepted; write {plain or 'its name'!r}"
    return None


def read_vote(value: Any, answers: int) -> Choice | Ranking:
    """Returns a vote on a pair as a choice, on more answers as a ranking.

    Raises:
        DataError: what is accepted in place of this value.
    """
    if answers == 2:
        if isinstance(value, str) and value in _CHOICES:
            return _CHOICES[value]
        if not isinstance(value, list):
            raise DataError("accepted are 'A', 'B', 'tie' or null")
    ranking = _ranking(value)
    if ranking is None or sorted(index for tied in ranking for index in tied) != list(
        range(answers)
    ):
        raise DataError(
            f"accepted is a ranking that names each of 0 to {answers - 1} once, best first, such "
            f"as "
            "[[0, 2], 1]"
        )
    if answers > 2:
        return ranking
    return "tie" if len(ranking) == 1 else ranking[0][0]


def _ranking(value: Any) -> Ranking | None:
    """Returns a list of indices and lists of indices as a ranking."""
    if not isinstance(value, list):
        return None
    ranking = []
    for part in value:
        tied = part if isinstance(part, list) else [part]
        if not tied or not all(
            isinstance(index, int) and not isinstance(index, bool) for index in tied
        ):
            return None
        ranking.append(tuple(sorted(tied)))
    return tuple(ranking)


def read_groups(row: Row, columns: Iterable[str]) -> dict[str, str]:
    """Returns the non-empty group values of a row, organs by the benchmark's names."""
    groups = {key: str(row[key]) for key in columns if row.get(key) not in (None, "")}
    if "organ" in groups:
        groups["organ"] = canonical_organ(groups["organ"])
    return groups
