"""A sheet for a reader: one row for each case, drop-downs for votes, and how it comes back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from medrm.data.pseudonyms import shown_reader
from medrm.data.sources import CaseDraft, Vote
from medrm.errors import ConfigError, DataError, printable, shortened
from medrm.exchange.case_files import CASES_FILE, IMAGES_FOLDER, add_case, case_line
from medrm.exchange.exported import Export
from medrm.exchange.exporters.sheet_files import LONGEST_CELL, MOST_ROWS, Column, writer_of
from medrm.exchange.sheet_form import (
    ANNOTATOR,
    CASE,
    COMMENT,
    CONFIDENCE,
    EARLIER_TURNS,
    MARK,
    QUESTION,
    REASON,
    SECONDS,
    answer_column,
    cut_text,
    image_column,
    mark_of,
    rank_column,
    strength_column,
    vote_column,
)
from medrm.exchange.shown_order import (
    CONFIDENCES,
    STRENGTHS,
    VOTES,
    shown_order,
    turned,
)
from medrm.schema import LETTERS, ranks_of

_MOST_IMAGES = 16
"""Columns of images; a case with more is left out."""

_LONGEST_HEADING = 150


def write_sheet(export: Export) -> None:
    """Writes a sheet, one for each number of answers that cases have.

    Raises:
        ConfigError: a dimension's name cannot head a column, or there are too many rows.
    """
    refused = [
        shortened(repr(name))
        for name in export.dimensions
        if name != " ".join(printable(name).split()) or len(name) > _LONGEST_HEADING
    ]
    if refused:
        raise ConfigError(
            f"These dimensions cannot head a column: {shortened(', '.join(refused), 600)}. Give "
            f"names of at most {_LONGEST_HEADING} printable characters with --dimensions."
        )
    table = export.options.table
    if export.facts.cases > MOST_ROWS and table != "csv":
        raise ConfigError(
            f"{export.facts.cases:,} cases are too many for a sheet of {MOST_ROWS:,} rows. Choose "
            "some (--limit, --least_agreed, --cases), or give --table csv."
        )
    for answers in export.facts.answers:
        ending = f"_{answers}_answers" if len(export.facts.answers) > 1 else ""
        columns = _columns(export, answers)
        with writer_of(table)(export.folder / f"votes{ending}.{table}", columns) as add:
            for cells in _rows(export, answers):
                add(cells)
                export.rows[f"votes{ending}.{table}"] += 1
    export.write("README.md", [_README.replace("TABLE", table).encode()])


def _columns(export: Export, answers: int) -> list[Column]:
    """Returns the columns of cases with so many answers."""
    images = range(1, min(export.facts.images[1], _MOST_IMAGES) + 1)
    columns = [Column(CASE, 16), Column(ANNOTATOR, 16, unlocked=True)]
    columns += [Column(image_column(number), 24, is_link=True) for number in images]
    columns += [Column(EARLIER_TURNS, 40)] if export.facts.has_context else []
    columns += [Column(QUESTION, 40)]
    columns += [Column(answer_column(number), 60) for number in range(answers)]
    for name in export.dimensions:
        if answers == 2:
            columns.append(Column(vote_column(name), 14, VOTES))
            columns.append(Column(strength_column(name), 14, STRENGTHS))
        else:
            ranks = tuple(map(str, range(1, answers + 1)))
            columns += [Column(rank_column(name, number), 10, ranks) for number in range(answers)]
    choices = () if export.options.with_votes else CONFIDENCES
    columns += [Column(CONFIDENCE, 12, choices, unlocked=True)]
    columns += [Column(name, 40, unlocked=True) for name in (REASON, COMMENT)]
    columns += [Column(SECONDS, 10, unlocked=True)] if export.options.with_votes else []
    return [*columns, Column(MARK, 10, hidden=True)]


def _rows(export: Export, answers: int) -> Iterator[dict[str, Any]]:
    """Yields the cells of each row by its column's name."""
    for draft in export.with_images(answers):
        try:
            images = list(map(export.images.shown, draft.images))
        except DataError:
            export.leave_out("an image cannot be decoded", draft.case_id)
            continue
        if len(images) > _MOST_IMAGES:
            export.leave_out(f"it has more than {_MOST_IMAGES} images", draft.case_id)
            continue
        line = case_line(draft, map(export.images.stored, draft.images))
        add_case(export.folder, line)
        order = shown_order(draft.case_id, answers, export.options.seed)
        cells = {CASE: draft.case_id, MARK: mark_of(line, order)}
        cells |= {image_column(number): name for number, name in enumerate(images, start=1)}
        cells[EARLIER_TURNS] = "\n\n".join(f"{turn.role}: {turn.text}" for turn in draft.context)
        texts = {QUESTION: draft.question}
        texts |= {answer_column(n): draft.answers[index] for n, index in enumerate(order)}
        cells |= {name: _shown_text(export, name, text) for name, text in texts.items()}
        if not export.options.with_votes:
            yield cells | {ANNOTATOR: export.options.annotator or ""}
            continue
        for annotator, votes in _by_annotator(draft, export.dimensions).items():
            yield cells | {ANNOTATOR: shown_reader(annotator)} | _filled(draft, votes, order)


def _shown_text(export: Export, name: str, text: str) -> str:
    """Returns a text for a cell; a longer one lies whole in a file that the cell names."""
    if len(text) <= LONGEST_CELL:
        return text
    export.rows["texts"] += 1
    path = f"texts/{export.rows['texts']}.txt"
    (export.folder / "texts").mkdir(exist_ok=True)
    export.write(path, [text.encode(errors="backslashreplace")])
    return cut_text(text[:LONGEST_CELL], name, path)


def _by_annotator(draft: CaseDraft, dimensions: Sequence[str]) -> dict[str, dict[str, Vote]]:
    votes: defaultdict[str, dict[str, Vote]] = defaultdict(dict)
    for dimension in dimensions:
        for vote in draft.votes.get(dimension, ()):
            votes[vote.annotator][dimension] = vote
    return votes


def _filled(draft: CaseDraft, votes: dict[str, Vote], order: Sequence[int]) -> dict[str, Any]:
    """Returns the cells of one annotator's votes on a case."""
    cells: dict[str, Any] = {}
    for dimension, vote in votes.items():
        if isinstance(vote.value, tuple):
            ranks = ranks_of(vote.value)
            for number, index in enumerate(order):
                cells[rank_column(dimension, number)] = str(ranks[index] + 1)
        else:
            stored = vote.value if isinstance(vote.value, str) else LETTERS[vote.value]
            cells[vote_column(dimension)] = turned(stored, order)
            cells[strength_column(dimension)] = vote.strength or ""
    for column in (CONFIDENCE, REASON, SECONDS):
        by_dimension = {name: getattr(vote, column) for name, vote in votes.items()}
        stated = {name: value for name, value in by_dimension.items() if value is not None}
        cells[column] = _one_or_all(stated, len(by_dimension))
    annotator = next(iter(votes.values())).annotator
    comments = (remark.comment for remark in draft.remarks if remark.annotator == annotator)
    return cells | {COMMENT: next(filter(None, comments), "")}


def _one_or_all(stated: dict[str, Any], dimensions: int) -> Any:
    """Returns what is stated once for all dimensions, or by dimension as JSON."""
    values = list(stated.values())
    if not values:
        return ""
    is_same = len(values) == dimensions and all(value == values[0] for value in values)
    if is_same and not str(values[0]).startswith("{"):
        return values[0]
    return json.dumps(stated, ensure_ascii=False)


_README = f"""\
# A sheet for a reader

Written by `medrm data export --to sheet`. Nothing in `votes.TABLE` tells which model wrote an
answer; the order of the answers is drawn for each case and kept in a hidden column.

1. Give a reader this folder, but not `{CASES_FILE}`, which says which cases are of one patient and
   what they come from. Each row is a case: look at the images (the cells link to files in
   `{IMAGES_FOLDER}`), then
   say for each dimension which answer is better: A, B, tie, or neither where both are
   unacceptable, and, if you like, how far. More than two answers get ranks: 1 is the best, equal
   ranks are a tie. All other cells are protected, without a password. Write your name in the
   column `{ANNOTATOR}`, once if all rows are yours.
2. Put the filled sheet back into this folder, beside `{CASES_FILE}`, under any name, and

   ```
   medrm data import SHEET.TABLE --output VOTES
   ```

   turns the order back and gives every case its stored images again, and patient and study as
   keyed hashes; with `--join SET` as they stand in the set. No mapping is needed. Rows and votes
   that are not taken are listed in `VOTES/import_report.json`.
"""
