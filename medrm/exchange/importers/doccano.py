"""doccano's JSON lines -> one row for each document; doccano exports no annotator.

A label is a vote (`A`), or names its dimension (`accuracy: A`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from medrm.data.readers.votes_jsonl import listed
from medrm.data.row_tables import LocatedRow, Row
from medrm.exchange.imported import Opened, unread
from medrm.exchange.importers.tool_rows import Tally, single
from medrm.exchange.vote_words import meaning_of

_LABELS = ("label", "labels")
_RATERS = ("annotator", "username", "user")
_COMMENTS = ("Comments", "comments")
_NO_RATER = "documents without an annotator, for whom the name of the file stands, {!r}"
_DIVIDER = re.compile("(?<![<>])[:=]")


def is_doccano(opened: Opened) -> bool:
    """Returns whether a file is an export of doccano."""
    columns = {*opened.columns}
    _, first = next(iter(opened.records), ("", {}))
    labels = next((first[name] for name in _LABELS if name in first), None)
    is_document = {"id", "text"} <= columns or {"id", "filename"} <= columns
    return opened.suffix in (".jsonl", ".json") and is_document and isinstance(labels, list)


def document_rows(opened: Opened, tally: Tally) -> Iterator[LocatedRow]:
    """Yields the documents that have a label."""
    for place, document in opened.records:
        labels = next((document[name] for name in _LABELS if name in document), None)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            reason = "its labels are no list of names; spans of a text are no votes"
            tally.unread.append(unread(place, reason, document))
        elif not labels:
            tally.remarks["documents without a label"] += 1
        else:
            rater = next(iter(listed([document.get(name) for name in _RATERS])), None)
            if rater is None:
                rater = opened.path.stem
                tally.remarks[_NO_RATER.format(rater)] += 1
            yield place, {**_shown(document), **_said(labels, tally), "annotator": rater}


def _shown(document: Row) -> Row:
    dropped = (*_LABELS, *_RATERS, *_COMMENTS, "id", "text")
    shown = {name: cell for name, cell in document.items() if name not in dropped}
    shown.setdefault("case_id", document.get("id"))
    shown.setdefault("question", document.get("text"))
    comments = next((document[name] for name in _COMMENTS if name in document), None)
    if isinstance(comments, list) and comments:
        shown["comment"] = "\n".join(map(str, comments))
    return shown


def _said(labels: list[str], tally: Tally) -> Row:
    """Returns a column for each dimension that labels name, and one of the other labels."""
    said: dict[str, list[Any]] = {}
    for label in labels:
        column, *values = (part.strip() for part in _DIVIDER.split(label, maxsplit=1))
        value = values[0] if values else ""
        # "A=B" names no dimension A.
        if not column or meaning_of(value) is None or meaning_of(column) is not None:
            column, value = "label", label
        tally.controls.add(column)
        if column != "label":
            tally.dimensions.setdefault(column, column)
        said.setdefault(column, []).append(value)
    return {column: single(values) for column, values in said.items()}
