"""Votes in JSON lines, one line for each annotator and case -> drafts of cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medrm.data.batched import batched
from medrm.data.image_references import all_file_images, picture_counts
from medrm.data.organs import canonical_organ
from medrm.data.pseudonyms import shared_keys, shown_reader
from medrm.data.readers.messages import IMAGE_MARK, conversation_problems, read_turns, with_pictures
from medrm.data.readers.vote_values import DETAILS, read_votes_cast
from medrm.data.row_tables import Row, RowTable, open_table
from medrm.data.sources import (
    CaseDraft,
    Description,
    ReadResult,
    Remark,
    Source,
    read_about,
    size_problem,
)
from medrm.errors import DataError, nearest, raise_problems, shortened
from medrm.files import cache_dir, fits
from medrm.integrity import fill_cache_folder
from medrm.schema import DIMENSIONS, ImageRef, Turn

VOTES_FILE = "votes.jsonl"
GROUPS = ("organ", "department", "modality", "source")
INDEPENDENT = ("patient", "study")
_REQUIRED = ("case_id", "question", "annotator", "votes")
_CONTENT = ("image", "images", "answer_a", "answer_b", "answers")
_REMARKS = ("comment", "extra")
_ACCEPTED = (
    *(*_REQUIRED, *_CONTENT, "context"),
    *(*DETAILS, *_REMARKS, *GROUPS, *INDEPENDENT),
)
_SHARED = {name: name for name in ("images", "question", "answers", "groups", "context")}
_SHARED["independent"] = "patient or study"
"""What all lines of a case must have in common: a field of their drafts, to its name."""

_CASES_AT_ONCE = 256
_KEPT_REFERENCES = 2**14


class _Line(NamedTuple):
    """One checked line: a draft with its annotator's votes alone, the images still paths."""

    number: int
    location: str
    paths: tuple[str, ...]
    draft: CaseDraft


_Problems = list[tuple[int, int, str]]
"""Each with its rank in the message and the number of its row, by which they are sorted."""


def read_votes_by_columns(
    table: RowTable, path: Path, _: Sequence[Description]
) -> ReadResult | None:
    """Reads a file that has the column `votes`."""
    return read_votes(table, path) if "votes" in table.columns else None


def open_phantom(description: Description) -> Source:
    """Returns the drawn set of `description.cases` cases and `description.seed`, read as votes."""
    folder = phantom_folder(description.cases, description.seed)
    votes = folder / VOTES_FILE
    return Source(
        [votes], lambda: read_votes(open_table(votes), votes), folder.name, read_about(folder)
    )


def phantom_folder(cases: int, seed: int) -> Path:
    """Returns the folder of a phantom set, drawn once and kept in the cache.

    Raises:
        ConfigError: the cache cannot be written.
    """
    from medrm.data.phantom.phantom_set import VERSION, write_phantom

    folder = cache_dir() / "phantom" / f"version{VERSION}-seed{seed}-cases{cases}"
    fill_cache_folder(folder, lambda draft: write_phantom(draft, cases=cases, seed=seed))
    return folder


def read_votes(table: RowTable, path: Path) -> ReadResult:
    """Returns the cases of a votes file, in the order in which they first appear.

    The file is read twice: first to find the lines of each case, which need not stand together.

    Raises:
        DataError: every wrong line, value and image path of the file, in one message.
    """
    return ReadResult(_drafts(table, path))


def _drafts(table: RowTable, path: Path) -> Iterator[CaseDraft]:
    problems: _Problems = []
    wrong_keys: dict[str, list[int]] = defaultdict(list)
    references: dict[str, tuple[ImageRef, ...] | DataError] = {}
    for chunk in batched(_by_case(table), _CASES_AT_ONCE):
        cases = [list(_lines(rows, problems, wrong_keys)) for rows in chunk]
        if len(references) > _KEPT_REFERENCES:
            references.clear()
        paths = {path for lines in cases for line in lines for path in line.paths}
        where = (table.folder, table.boundary, table.image_options)
        references |= all_file_images(paths - references.keys(), *where)
        for lines in cases:
            refused = []
            for line in lines:
                images = [references[path] for path in line.paths]
                usable = (refs for refs in images if isinstance(refs, tuple))
                line.draft.images = tuple(chain.from_iterable(usable))
                counts = picture_counts(line.draft.images)
                line.draft.context = with_pictures(line.draft.context, counts)
                errors = (error for error in images if isinstance(error, DataError))
                refused += [(2, line.number, f"{line.location}: {error}") for error in errors]
            problems += refused
            if lines and not refused:
                yield _draft(lines, problems)
    for problem, numbers in wrong_keys.items():
        first, _ = table.rows[min(numbers)]
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        problems.append((1, min(numbers), f"{first}{more}: {problem}"))
    texts = [text for _, _, text in sorted(problems, key=lambda problem: problem[:2])]
    raise_problems(DataError, path, [*table.problems, *texts])


def _by_case(table: RowTable) -> Iterator[list[tuple[int, str, Row]]]:
    """Yields the rows of each case with their numbers, cases in the order of their first rows."""
    hashes = np.fromiter((hash(str(row.get("case_id"))) for _, row in table.rows), dtype=np.int64)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    case_of = first[inverse]  # a case is named by the number of its first row
    order = np.argsort(case_of, kind="stable")
    contiguous = bool((np.diff(order) == 1).all())
    rows = enumerate(table.rows) if contiguous else ((n, table.rows[n]) for n in order.tolist())
    for _, numbered_rows in groupby(rows, key=lambda numbered: case_of[numbered[0]]):
        yield [(number, location, row) for number, (location, row) in numbered_rows]


def _lines(
    rows: Iterable[tuple[int, str, Row]], problems: _Problems, wrong_keys: dict[str, list[int]]
) -> Iterator[_Line]:
    """Yields the lines with which nothing is wrong, and adds what is wrong with the others."""
    for number, location, row in rows:
        if key_problems := list(_key_problems(row)):
            for problem in key_problems:
                wrong_keys[problem].append(number)
            continue
        line = _read_line(number, location, row)
        if isinstance(line, _Line):
            yield line
        else:
            title = f"{location} (case {shortened(repr(row['case_id']))})"
            problems += [(0, number, f"{title}: {problem}") for problem in line]


def line_problems(row: Row) -> list[str]:
    """Returns what is wrong with one line, apart from its images."""
    line = list(_key_problems(row)) or _read_line(0, "", row)
    return line if isinstance(line, list) else []


def _draft(lines: Sequence[_Line], problems: _Problems) -> CaseDraft:
    """Returns the draft of a case's lines, and adds what does not fit together in them."""
    first = lines[0]
    draft, case = first.draft, f"case {first.draft.case_id!r}"
    for line in lines[1:]:
        conflicts = [
            f"{line.location}: {case} has other {name} than on {first.location}; lines of one case "
            "must agree"
            for field, name in _SHARED.items()
            if getattr(line.draft, field) != getattr(draft, field)  # which is seldom
            and _shared(line.draft, field) != _shared(draft, field)
        ]
        for dimension, (vote,) in line.draft.votes.items():
            votes = draft.votes.setdefault(dimension, [])
            if any(other.annotator == vote.annotator for other in votes):
                conflicts.append(
                    f"{line.location}: annotator {shown_reader(vote.annotator)!r} votes twice on "
                    f"{dimension!r} of {case}; keep one"
                )
            votes.append(vote)
        draft.remarks += line.draft.remarks
        problems += [(3, line.number, conflict) for conflict in conflicts]
    return draft


def _shared(draft: CaseDraft, field: str) -> Any:
    """Returns what a field says: images however their files are called, ids or their hashes."""
    value = getattr(draft, field)
    if field == "independent":
        return sorted(shared_keys(value))
    return [ref.digest or ref.name for ref in value] if field == "images" else value


def _read_line(number: int, location: str, row: Row) -> _Line | list[str]:
    """Returns a line that has its keys, or what is wrong with it."""
    votes_cast = row["votes"]
    problem = size_problem(row["case_id"], votes_cast if isinstance(votes_cast, dict) else ())
    if problem is not None:
        return [problem]
    paths = row["images"] if "images" in row else [row["image"]]
    answers = row["answers"] if "answers" in row else [row["answer_a"], row["answer_b"]]
    problems = _shape_problems(row, paths, answers)
    if problems:
        return problems
    problems = list(filter(None, map(dimension_problem, votes_cast)))
    votes, vote_problems = read_votes_cast(row, len(answers))
    context: tuple[Turn, ...] = ()
    try:
        context = _read_context(row.get("context"), len(paths))
    except DataError as error:
        problems.append(str(error))
    problems += vote_problems
    if problems:
        return problems
    remark = Remark(str(row["annotator"]), row.get("comment"), row.get("extra") or {})
    draft = CaseDraft(
        str(row["case_id"]),
        (),
        row["question"],
        tuple(answers),
        {dimension: [vote] for dimension, vote in votes.items()},
        read_independent(row),
        read_groups(row, GROUPS),
        context,
        [remark] if remark.comment or remark.extra else [],
    )
    return _Line(number, location, tuple(paths), draft)


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
        f"{key!r} is {shortened(repr(row[key]))}; give text"
        for key in ("case_id", "annotator")
        if not isinstance(row[key], (str, int)) or isinstance(row[key], bool) or row[key] == ""
    ]
    if not isinstance(row["question"], str):
        problems.append(f"'question' is {shortened(repr(row['question']))}; give text")
    if not fits(paths, list[str]):
        problems.append("'image' must be a path, 'images' a list of paths")
    if not fits(answers, list[str]) or len(answers) < 2:
        problems.append("answers must be two texts or more")
    if not isinstance(row["votes"], dict):
        problems.append(
            f"'votes' is {shortened(repr(row['votes']))}; give an object, dimension to A, B, tie "
            "or null"
        )
    for key, kind, words in (("comment", str, "text"), ("extra", dict, "an object")):
        if row.get(key) is not None and not isinstance(row[key], kind):
            problems.append(f"{key!r} is {shortened(repr(row[key]))}; give {words}")
    return problems


class _ImagesBeside:
    """Refuses images in messages: those of a votes file stand in `images`."""

    def images(self, held: object) -> list[ImageRef]:
        raise DataError(
            f"'context' holds the image {shortened(repr(held))}; name it in 'images', and write "
            '{"type": "image"} in its place'
        )


def _read_context(context: Any, images: int) -> tuple[Turn, ...]:
    """Returns the turns before the question.

    Raises:
        DataError: they are no turns of a conversation, or show more images than the case has.
    """
    if context is None:
        return ()
    if not isinstance(context, list):
        raise DataError(f"'context' is {shortened(repr(context))}; give a list of messages")
    turns = read_turns({"context": context}, "context", "user", _ImagesBeside())
    asked = [turn.role for turn in turns]
    problems = [problem for turn in turns for problem in turn.problems]
    problems += conversation_problems([*asked, "user"])
    marks = [turn.text.count(IMAGE_MARK) for turn in turns]
    if sum(marks) > images:
        problems.append(f"it refers to {sum(marks)} images, the case has {images}")
    if problems:
        raise DataError(f"'context': {'; '.join(problems)}")
    return tuple(
        Turn(turn.role, turn.text.replace(IMAGE_MARK, "").strip(), count)
        for turn, count in zip(turns, marks, strict=True)
    )


def dimension_problem(dimension: str) -> str | None:
    """Returns what is wrong with a dimension's name: empty, or a canonical one spelt otherwise."""
    plain = dimension.strip().lower()
    if plain == "" or (plain in DIMENSIONS and dimension != plain):
        return f"dimension {dimension!r} is not accepted; write {plain or 'its name'!r}"
    return None


def read_independent(row: Row) -> list[str]:
    """Returns the keys of what a row shares with other cases: its patients and studies."""
    return [f"{name}:{stated}" for name in INDEPENDENT for stated in listed(row.get(name))]


def listed(stated: Any) -> list[Any]:
    """Returns what a row states of one or several, such as patients, as a list."""
    several = stated if isinstance(stated, list) else [stated]
    return [single for single in several if single not in (None, "")]


def read_groups(row: Row, columns: Iterable[str]) -> dict[str, str]:
    """Returns the non-empty group values of a row, organs by the benchmark's names."""
    groups = {key: str(row[key]) for key in columns if row.get(key) not in (None, "")}
    if "organ" in groups:
        groups["organ"] = canonical_organ(groups["organ"])
    return groups
