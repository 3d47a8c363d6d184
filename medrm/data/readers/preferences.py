"""Rows of comparisons as TRL and other tools write them -> drafts of cases."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrm.data.readers.dataset_info import ranking_info
from medrm.data.readers.messages import Place, read_conversation, read_turns, without_prompt
from medrm.data.readers.row_forms import (
    CONTENT_COLUMNS,
    IMAGE_COLUMNS,
    ROW_FORMS,
    TRL_COLUMNS,
    Exchange,
    RowForm,
    form_of,
    trl_exchange,
    unread_columns,
)
from medrm.data.readers.votes_jsonl import GROUPS, read_groups, read_independent
from medrm.data.row_tables import Row, RowTable, missing_columns, row_images
from medrm.data.sources import (
    CaseDraft,
    DataFormat,
    Description,
    Excluded,
    ReadResult,
    Source,
    Vote,
    hub_table,
)
from medrm.errors import DataError, raise_problems
from medrm.schema import ImageRef, Turn

_IN_PATH = re.compile(r"\{(\w+)\}")
"""The name of a column in the path of an image, such as `{id}.jpg`."""

_TRL = Description("TRL", "preferences")


class _Reading(NamedTuple):
    """How the rows of a table are read.

    Attributes:
        form: reads the exchange and the votes of a row.
        columns: what a column holds, to its name.
        description: of the set.
        renamed: returns a row with the names of columns that the form reads.
        is_strict: whether a row that cannot be read makes the file wrong, or is set aside.
    """

    form: RowForm
    columns: Mapping[str, str]
    description: Description
    renamed: Callable[[Row], Row] = dict
    is_strict: bool = False


class _Compared(NamedTuple):
    """What a row says: images, the turns before the question, the question and the answers."""

    images: tuple[ImageRef, ...]
    context: tuple[Turn, ...]
    question: str
    answers: tuple[str, ...]


def rows_format(name: str) -> DataFormat:
    """Returns the data format of a name in `ROW_FORMS`."""
    by_columns = partial(_read_by_columns, name) if ROW_FORMS[name].by_columns else None
    return DataFormat(
        read_table=by_columns,
        open_described=partial(_open_hub, name),
        read_described=lambda table, path, described: _read(table, path, _reading(name, described)),
    )


def _read_by_columns(
    name: str, table: RowTable, path: Path, descriptions: Sequence[Description]
) -> ReadResult | None:
    """Reads a file whose columns are of this form, by themselves or by a file beside it."""
    info = ranking_info(path)
    if info is not None:
        if info.form != name:
            return None
        columns = TRL_COLUMNS | info.columns
        reading = _Reading(ROW_FORMS[name], columns, _TRL, info.in_default_columns)
        return _read(table, path, reading)
    stated, recognised = set(table.columns), form_of(table.columns)
    if recognised == name == "preferences" and "prompt" in stated:
        return _read(table, path, _reading(name, _TRL))
    if recognised not in (name, None) or "votes" in stated:
        return None
    matching = (
        description
        for description in descriptions
        if description.form == name
        and description.columns
        and set(description.columns.values()) <= stated
    )
    described_as = next(matching, _TRL if recognised == name else None)
    return None if described_as is None else _read(table, path, _reading(name, described_as))


def _reading(name: str, description: Description) -> _Reading:
    form, columns = ROW_FORMS[name], TRL_COLUMNS | description.columns
    if name == "preferences":
        exchange = partial(trl_exchange, columns=columns)
        return _Reading(RowForm(exchange), columns, description, is_strict=True)

    def renamed(row: Row) -> Row:
        return row | {key: row[column] for key, column in columns.items() if column in row}

    return _Reading(form, columns, description, renamed)


def _open_hub(name: str, description: Description) -> Source:
    """Returns the rows of one split of a hub data set."""
    table, commit = hub_table(description)
    if not description.columns:
        name = form_of(table.columns) or name
    read = partial(_read, table, Path(description.hub_id), _reading(name, description))
    return Source(list(map(Path, table.files)), read, commit, hub_id=description.hub_id)


def _read(table: RowTable, path: Path, reading: _Reading) -> ReadResult:
    """Returns the cases of comparisons; rows that are none are set aside with the reason.

    What is preferred is one vote on the description's dimension; ratings are a vote on each
    dimension. In which order answers are stored follows from a hash of the case id, so that their
    position tells nothing.

    Raises:
        DataError: every missing column, wrong row and image path, in one message.
    """
    excluded: list[Excluded] = []
    return ReadResult(_drafts(table, path, reading, excluded), excluded)


def _drafts(
    table: RowTable, path: Path, reading: _Reading, excluded: list[Excluded]
) -> Iterator[CaseDraft]:
    columns = reading.columns
    problems: list[str] = []
    if reading.is_strict:
        problems += missing_columns(table.columns, (columns["chosen"], columns["rejected"]))
    ids = array("q")
    for index, (location, row) in enumerate(table.rows if not problems else ()):
        case_id = _case_id(row, index, columns)
        ids.append(hash(case_id))
        try:
            images = _images(table, index, row, columns["images"])
        except DataError as error:
            problems.append(f"{location}: {error}")
            continue
        try:
            draft = _draft(case_id, row, images, Place(table, location), reading)
        except DataError as error:
            if reading.is_strict:
                problems.append(f"{location}: {error}")
            else:
                excluded.append(Excluded(case_id, str(error)))
            continue
        if isinstance(draft, str):
            excluded.append(Excluded(case_id, draft))
        else:
            yield draft
    _, first = np.unique(np.array(ids), return_index=True)
    for index in np.setdiff1d(np.arange(len(ids)), first).tolist():
        location, row = table.rows[index]
        case_id = _case_id(row, index, columns)
        problems.append(f"{location}: {columns['case_id']} {case_id!r} occurs twice")
    problems[:0] = table.problems
    raise_problems(DataError, path, problems)


def _images(table: RowTable, index: int, row: Row, column: str) -> tuple[ImageRef, ...]:
    """Returns the images of a row in a column, or at the path that other columns stand in.

    Raises:
        DataError: a path that leaves the data folder, or a cell that holds no image.
    """
    if "{" in column:
        path = _IN_PATH.sub(lambda named: str(row.get(named[1], "")), column)
        return table.images(path)
    columns = (name for name in (column, *IMAGE_COLUMNS) if row.get(name) is not None)
    return row_images(table, index, row, next(columns, column))


def _case_id(row: Row, index: int, columns: Mapping[str, str]) -> str:
    """Returns a row's id, which may be the number 0; of a row that states none its number."""
    stated = row.get(columns["case_id"])
    return f"row-{index + 1:06d}" if stated in (None, "") else str(stated)


def _draft(
    case_id: str, row: Row, images: tuple[ImageRef, ...], place: Place, reading: _Reading
) -> CaseDraft | str:
    """Returns the case of a row, or why the row is set aside.

    Raises:
        DataError: values of a wrong type, or more image marks than images.
    """
    form, description, renamed = reading.form, reading.description, reading.renamed(row)
    compared = _compared(form.exchange(renamed), renamed, images, place, reading.columns["images"])
    if isinstance(compared, str):
        return compared
    votes: Mapping[str, list[Vote]] = {description.dimension: [Vote("preference", 0)]}
    if form.votes is not None:
        votes = form.votes(renamed, description.dimension)
    order = _order(case_id, len(compared.answers))
    named = {
        group: row[column]
        for group, column in description.columns.items()
        if group not in CONTENT_COLUMNS and column in row
    }
    return CaseDraft(
        case_id,
        compared.images,
        compared.question,
        tuple(compared.answers[index] for index in order),
        {name: [_stored(vote, order) for vote in cast] for name, cast in votes.items()},
        read_independent(row),
        read_groups(row | named, (*GROUPS, *named)),
        compared.context,
    )


def _order(case_id: str, count: int) -> list[int]:
    """Returns in which order the answers of a row are stored."""
    if count == 2:
        return [1, 0] if hashlib.sha256(case_id.encode()).digest()[0] % 2 else [0, 1]
    by_hash = (hashlib.sha256(f"{case_id}\0{index}".encode()).digest() for index in range(count))
    return [index for _, index in sorted((digest, index) for index, digest in enumerate(by_hash))]


def _stored(vote: Vote, order: Sequence[int]) -> Vote:
    """Returns a vote on the answers of a row as one on them in the order they are stored in."""
    value = vote.value
    if isinstance(value, int):
        return replace(vote, value=order.index(value))
    if isinstance(value, tuple):
        return replace(vote, value=tuple(tuple(sorted(map(order.index, tied))) for tied in value))
    return vote


def _compared(
    exchange: Exchange, row: Row, images: tuple[ImageRef, ...], place: Place, image_column: str
) -> _Compared | str:
    """Returns conversation and answers of a row, or why the row is set aside.

    What is not understood stands among the images as one that cannot be read: so its case is set
    aside in training and stays unread, with the reason, in a benchmark.

    Raises:
        DataError: values of a wrong type, or more image marks than images.
    """
    names, cells = list(exchange.answers), dict(exchange.answers)
    if len(names) < 2:
        return "it has fewer than two answers"
    answers = [read_turns(cells, name, "assistant", place) for name in names]
    prompt = read_turns({"prompt": exchange.prompt}, "prompt", "user", place)
    prompt, answers = without_prompt(prompt, answers, is_text=isinstance(exchange.prompt, str))
    said = [turn for turns in answers for turn in turns]
    named = " and ".join(names) if len(names) == 2 else "its answers"
    if any([turn.role for turn in turns] != ["assistant"] for turns in answers):
        return f"{named} are not one answer each"
    if all(turn == said[0] for turn in said):
        return f"{named} are the same"
    # A mark in the text may stand for what is not read.
    images += tuple(map(place.unreadable, unread_columns(row)))
    asked = read_conversation(prompt, said, images, image_column)
    shown = asked.images + tuple(map(place.unreadable, asked.problems))
    return _Compared(shown, asked.context, asked.question, tuple(turn.text for turn in said))
