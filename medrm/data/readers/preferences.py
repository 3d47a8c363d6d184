"""Preference rows, `prompt`/`chosen`/`rejected`/`images` as TRL writes them -> drafts of cases."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrm.data.readers.messages import Place, implicit_prompt, read_conversation, read_turns
from medrm.data.readers.votes_jsonl import GROUPS, read_groups, read_independent
from medrm.data.row_tables import Row, RowTable, missing_columns, row_images
from medrm.data.sources import CaseDraft, Description, Excluded, ReadResult, Source, Vote, hub_table
from medrm.errors import DataError, raise_problems
from medrm.schema import ImageRef, Turn

_COLUMNS = {name: name for name in ("prompt", "chosen", "rejected", "images", "case_id")}
"""What is read of a row, and the column that TRL keeps it in. A `dataset.yaml` may name others; its
columns of anything else are groups."""
_TRL = Description("TRL", "preferences")


class _Compared(NamedTuple):
    """What a row says: images, the turns before the question, the question and both answers."""

    images: tuple[ImageRef, ...]
    context: tuple[Turn, ...]
    question: str
    chosen: str
    rejected: str


def read_preferences_by_columns(
    table: RowTable, path: Path, descriptions: Sequence[Description]
) -> ReadResult | None:
    """Reads a file that has TRL's columns, or all columns of a set described in `data/`."""
    stated = set(table.columns)
    has_answer = bool({"chosen", "rejected"} & stated)
    matching = (
        description
        for description in descriptions
        if description.form == "preferences" and set(description.columns.values()) <= stated
    )
    fallback = next(matching, _TRL if has_answer else None)
    description = _TRL if has_answer and "prompt" in stated else fallback
    return None if description is None else read_preferences(table, path, description)


def open_hub_preferences(description: Description) -> Source:
    """Returns the rows of one split of a hub data set."""
    table, commit = hub_table(description)
    read = partial(read_preferences, table, Path(description.hub_id), description)
    return Source(list(map(Path, table.files)), read, commit, hub_id=description.hub_id)


def read_preferences(table: RowTable, path: Path, description: Description) -> ReadResult:
    """Returns the cases of preference rows; rows that are no comparison are set aside with the
    reason.

    A preference is one vote on the description's dimension. Which answer is stored first follows
    from a hash of the case id, so that its position tells nothing.

    Raises:
        DataError: every missing column, wrong row and image path, in one message.
    """
    excluded: list[Excluded] = []
    return ReadResult(_drafts(table, path, description, excluded), excluded)


def _drafts(
    table: RowTable, path: Path, description: Description, excluded: list[Excluded]
) -> Iterator[CaseDraft]:
    columns = _COLUMNS | dict(description.columns)
    problems = missing_columns(table.columns, (columns["chosen"], columns["rejected"]))
    ids = array("q")
    for index, (location, row) in enumerate(table.rows if not problems else ()):
        case_id = _case_id(row, index, columns)
        ids.append(hash(case_id))
        try:
            # TRL accepts `image` as well.
            image_column = columns["images"] if columns["images"] in row else "image"
            images = row_images(table, index, row, image_column)
            compared = _compared(row, columns, images, Place(table, location))
        except DataError as error:
            problems.append(f"{location}: {error}")
            continue
        if isinstance(compared, str):
            excluded.append(Excluded(case_id, compared))
        else:
            yield _draft(case_id, compared, row, description)
    _, first = np.unique(np.array(ids), return_index=True)
    for index in np.setdiff1d(np.arange(len(ids)), first).tolist():
        location, row = table.rows[index]
        case_id = _case_id(row, index, columns)
        problems.append(f"{location}: {columns['case_id']} {case_id!r} occurs twice")
    problems[:0] = table.problems
    raise_problems(DataError, path, problems)


def _case_id(row: Row, index: int, columns: Mapping[str, str]) -> str:
    """Returns a row's id, which may be the number 0; of a row that states none its number."""
    stated = row.get(columns["case_id"])
    return f"row-{index + 1:06d}" if stated in (None, "") else str(stated)


def _draft(case_id: str, compared: _Compared, row: Row, description: Description) -> CaseDraft:
    images, context, question, chosen, rejected = compared
    second = hashlib.sha256(case_id.encode()).digest()[0] % 2
    named = {
        group: row[column]
        for group, column in description.columns.items()
        if group not in _COLUMNS and column in row
    }
    return CaseDraft(
        case_id,
        images,
        question,
        (rejected, chosen) if second else (chosen, rejected),
        {description.dimension: [Vote("preference", second)]},
        read_independent(row),
        read_groups(row | named, (*GROUPS, *named)),
        context,
    )


def _compared(
    row: Row, columns: Mapping[str, str], images: tuple[ImageRef, ...], place: Place
) -> _Compared | str:
    """Returns conversation and answers of a row, or why the row is set aside.

    What is not understood stands among the images as one that cannot be read: so its case is set
    aside in training and stays unread, with the reason, in a benchmark.

    Raises:
        DataError: values of a wrong type, or more image marks than images.
    """
    prompt = read_turns(row, columns["prompt"], "user", place)
    chosen = read_turns(row, columns["chosen"], "assistant", place)
    rejected = read_turns(row, columns["rejected"], "assistant", place)
    if not prompt:
        prompt, chosen, rejected = implicit_prompt(chosen, rejected)
    if [turn.role for turn in (*chosen, *rejected)] != ["assistant"] * 2:
        return "chosen and rejected are not one answer each"
    if chosen == rejected:
        return "chosen and rejected are the same"
    answers = chosen[0], rejected[0]
    asked = read_conversation(prompt, answers, images, columns["images"])
    shown = asked.images + tuple(map(place.unreadable, asked.problems))
    return _Compared(shown, asked.context, asked.question, answers[0].text, answers[1].text)
