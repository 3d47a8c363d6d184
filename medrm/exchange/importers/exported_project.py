"""A Label Studio project that `medrm data export` wrote: nothing in it has to be guessed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from medrm.data.row_tables import LocatedRow, Row
from medrm.exchange.filled_form import Fields, votes_of_form
from medrm.exchange.imported import Imported, Opened, unread
from medrm.exchange.importers.label_studio import (
    annotations_of,
    counted_annotations,
    is_label_studio,
    local_path,
)
from medrm.exchange.importers.tool_rows import Tally, answer_columns, decoded, single
from medrm.exchange.mapping import PAIR
from medrm.exchange.project_form import (
    CASE,
    CONFIDENCE,
    CONTEXT,
    DIMENSIONS,
    FIELDS,
    IMAGE,
    IMAGES,
    ORDER,
    QUESTION,
    REASON,
    RESERVED,
    rank_controls,
    strength_control,
)
from medrm.exchange.shown_order import order_problem
from medrm.exchange.tables.grid import seconds_of
from medrm.files import fits


def is_exported_project(opened: Opened) -> bool:
    """Returns whether a file is Label Studio's export of a project of medrm's."""
    if opened.mapping is not None or not is_label_studio(opened):
        return False
    _, first = next(iter(opened.records), ("", {}))
    data = first if annotations_of(first) is None else first["data"]
    return data.keys() >= FIELDS


def read_exported_project(opened: Opened) -> Imported:
    """Returns the votes of readers, on the answers as they are stored."""
    imported = Imported(iter(()))
    imported.lines = _lines(opened, imported)
    return imported


def _lines(opened: Opened, imported: Imported) -> Iterator[LocatedRow]:
    tally = Tally(imported.unread, addresses=imported.addresses)
    for place, row in counted_annotations(opened, tally, lambda row, _: row):
        line, problems = _line(row)
        imported.unread += [unread(place, problem, row) for problem in problems]
        if line is not None:
            yield place, line
    imported.notes += tally.notes


def _line(row: Row) -> tuple[Row | None, list[str]]:
    """Returns the line of an annotation, and what of it is not taken."""
    order, controls = decoded(row.get(ORDER)), decoded(row.get(DIMENSIONS))
    answers = [row[name] for name in answer_columns(row)]
    if problem := order_problem(order, len(answers)):
        return None, [problem]
    if not fits(controls, dict[str, str]):
        return None, ["its 'dimensions' do not say what its controls are about"]
    fields = {controls[name]: _fields(name, len(order)) for name in controls}
    votes, problems = votes_of_form(partial(_text, row), fields, order)
    if not votes:
        return None, problems or ["it has no vote"]
    images = decoded(row.get(IMAGES, [row[IMAGE]] if IMAGE in row else []))
    line: Row = {
        "case_id": str(row.get(CASE)),
        "images": [local_path(image) for image in images] if isinstance(images, list) else images,
        "question": row.get(QUESTION),
        **_stored_answers(dict(zip(order, answers, strict=True))),
        "annotator": _text(row, "annotator"),
        "votes": votes,
    }
    line |= {name: text for name in (CONFIDENCE, REASON) if (text := _text(row, name))}
    stated: dict[str, Any] = {"seconds": seconds_of(row.get("lead_time"))}
    stated["context"] = decoded(row.get(CONTEXT)) or None
    added = {  # to the configuration
        name: cell
        for name, cell in row.items()
        if name not in controls and not RESERVED.fullmatch(name) and cell not in (None, "", [])
    }
    stated["extra"] = added or None
    return line | {name: value for name, value in stated.items() if value is not None}, problems


def _stored_answers(by_index: dict[int, Any]) -> Row:
    stored = [by_index[index] for index in range(len(by_index))]
    return dict(zip(PAIR, stored, strict=True)) if len(stored) == 2 else {"answers": stored}


def _fields(control: str, answers: int) -> Fields:
    return Fields(control, strength_control(control), rank_controls(control, answers))


def _text(row: Row, name: str) -> str:
    cell = single(row.get(name))
    return "" if cell is None else str(cell).strip()
