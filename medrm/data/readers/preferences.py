"""Preference rows, `prompt`/`chosen`/`rejected`/`images` as TRL writes them -> drafts of cases."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medrm.data.readers.votes_jsonl import GROUPS, read_groups, read_independent
from medrm.data.row_tables import Row, RowTable, missing_columns, row_images
from medrm.data.sources import CaseDraft, Description, Excluded, ReadResult, Source, Vote, hub_table
from medrm.errors import DataError, raise_problems
from medrm.files import fits
from medrm.schema import ImageRef

_IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "gpt": "assistant"}

_COLUMNS = {name: name for name in ("prompt", "chosen", "rejected", "images", "case_id")}
"""What is read of a row, and the column that TRL keeps it in. A `dataset.yaml` may name others; its
columns of anything else are groups."""
_TRL = Description("TRL", "preferences")


class _Turn(NamedTuple):
    role: str
    text: str


_Texts = tuple[str, str, str]
"""Question, chosen and rejected answer."""


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
            texts = _texts(row, columns, len(images))
        except DataError as error:
            problems.append(f"{location}: {error}")
            continue
        if isinstance(texts, str):
            excluded.append(Excluded(case_id, texts))
        else:
            yield _draft(case_id, images, texts, row, description)
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


def _draft(
    case_id: str, images: tuple[ImageRef, ...], texts: _Texts, row: Row, description: Description
) -> CaseDraft:
    question, chosen, rejected = texts
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
    )


def _texts(row: Row, columns: Mapping[str, str], images: int) -> _Texts | str:
    """Returns question and answers of a row, or why the row is set aside.

    Raises:
        DataError: values of a wrong type, or more image marks than images.
    """
    prompt = _turns(row, columns["prompt"], "user")
    chosen = _turns(row, columns["chosen"], "assistant")
    rejected = _turns(row, columns["rejected"], "assistant")
    if not prompt:
        prompt, chosen, rejected = _implicit_prompt(chosen, rejected)
    marks = sum(turn.text.count(_IMAGE_MARK) for turn in prompt)
    if marks > images:
        raise DataError(
            f"the prompt refers to {marks} images, {columns['images']!r} holds {images}"
        )
    if [turn.role for turn in prompt] not in (["user"], ["system", "user"]):
        return f"the prompt is a conversation of {len(prompt)} turns, not one question"
    if [turn.role for turn in (*chosen, *rejected)] != ["assistant"] * 2:
        return "chosen and rejected are not one answer each"
    if chosen == rejected:
        return "chosen and rejected are the same"
    question = "\n\n".join(turn.text.replace(_IMAGE_MARK, "").strip() for turn in prompt)
    return question, chosen[0].text, rejected[0].text


def _turns(row: Row, column: str, role: str) -> list[_Turn]:
    """Returns the text in a column, which is one turn of `role`, or its messages as turns."""
    value = row.get(column)
    if value is None:
        return []
    if isinstance(value, str):
        return [_Turn(role, value)]
    if not fits(value, list[Row]):
        raise DataError(
            f"{column!r} is {type(value).__name__}; accepted are text or a list of messages"
        )
    return [_turn(message, column) for message in value]


def _turn(message: Row, column: str) -> _Turn:
    """Reads `{"role", "content"}`, or `{"from", "value"}` as ShareGPT writes it."""
    role = message.get("role", message.get("from"))
    text = message.get("content", message.get("value"))
    if isinstance(text, list):
        text = "".join(
            _IMAGE_MARK if block.get("type") == "image" else str(block.get("text") or "")
            for block in text
        )
    if not isinstance(role, str) or not isinstance(text, str):
        raise DataError(
            f"{column!r} has a message with keys {', '.join(message)}; accepted are role and "
            "content"
        )
    return _Turn(_ROLES.get(role, role), text)


def _implicit_prompt(
    chosen: list[_Turn], rejected: list[_Turn]
) -> tuple[list[_Turn], list[_Turn], list[_Turn]]:
    """Returns what chosen and rejected begin with in common, and the rest of each.

    Of two texts the common beginning is cut back to a word's end.
    """
    if len(chosen) == len(rejected) == 1:
        first, second = chosen[0].text, rejected[0].text
        length = _common_length(first, second)
        while length and not first[length - 1].isspace():
            length -= 1
        question = [_Turn("user", first[:length].strip())]
        return question, [_Turn("assistant", first[length:])], [_Turn("assistant", second[length:])]
    # One turn at least remains of each, for an answer.
    shared = min(_common_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    return chosen[: max(0, shared)], chosen[max(0, shared) :], rejected[max(0, shared) :]


def _common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Returns how many characters, or turns, both begin with."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
