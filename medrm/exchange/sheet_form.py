"""The columns of medrm's own sheet for readers, by which it is recognised when it comes back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from medrm.data.row_tables import Row
from medrm.exchange.shown_order import is_order, letter_of

MARK = "medrm_sheet"
"""The hidden column that says which case a row is about and in which order its answers stand."""

CASE, ANNOTATOR, CONFIDENCE, REASON, COMMENT = (
    *("case_id", "annotator", "confidence", "reason", "comment"),
)
SECONDS, QUESTION, EARLIER_TURNS = "seconds", "question", "earlier turns"

_CUT = "\n[cut: the whole {} is in {}]"
_CUT_START = "[cut: the whole"

_FORM = re.compile(r"medrm-1 ([0-9a-f]{16}) (\d+(?:-\d+)+)")

_FORMULA = re.compile(r"'*(\s*[=+\-@]|[\t\r])")
"""What a spreadsheet may take for a formula, and that with apostrophes before it."""


def vote_column(dimension: str) -> str:
    """Returns the name of the column of votes on a dimension."""
    return f"vote: {dimension}"


def strength_column(dimension: str) -> str:
    """Returns the name of the column that says how far an answer is better."""
    return f"strength: {dimension}"


def rank_column(dimension: str, number: int) -> str:
    """Returns the name of the column of an answer's ranks, answers numbered as shown from 0."""
    return f"rank of {letter_of(number)}: {dimension}"


def image_column(number: int) -> str:
    """Returns the name of the column of an image, numbered from 1."""
    return f"image {number}"


def answer_column(number: int) -> str:
    """Returns the name of the column of an answer, numbered as shown from 0."""
    return f"answer {letter_of(number)}"


def cut_text(start: str, name: str, path: str) -> str:
    """Returns what a cell holds of a text that is too long for it.

    Args:
        start: of the text.
        name: of the column.
        path: of the file with the whole text.
    """
    return start + _CUT.format(name, path)


def start_of_cut(shown: str) -> str | None:
    r"""Returns the start of a text that was cut for its cell; None: it was not.

    >>> start_of_cut(cut_text("Very", "question", "texts/1.txt")), start_of_cut("Very")
    ('Very\n', None)
    """
    start, cut, _ = shown.rpartition(_CUT_START)
    return start if cut else None


_COLUMNS = re.compile(
    rf"{MARK}|{CASE}|{ANNOTATOR}|{CONFIDENCE}|{REASON}|{COMMENT}|{SECONDS}|{QUESTION}"
    rf"|{EARLIER_TURNS}|image \d+|answer ([A-Z]|\d+)|(vote|strength|rank of ([A-Z]|\d+)): .+"
)


def is_form_column(name: str) -> bool:
    """Returns whether a column is one of the form, and not one that a reader has added."""
    return _COLUMNS.fullmatch(name) is not None


def mark_of(line: Row, order: Sequence[int]) -> str:
    """Returns the mark of a row.

    Args:
        line: of the case in `cases.jsonl`.
        order: of its answers.
    """
    return f"medrm-1 {case_key(line)} {'-'.join(map(str, order))}"


def read_mark(mark: str) -> tuple[str, tuple[int, ...]] | None:
    """Returns the key of a row's case and the order of its answers; None: it is no mark."""
    match = _FORM.fullmatch(mark)
    if match is None:
        return None
    order = tuple(map(int, match[2].split("-")))
    return (match[1], order) if is_order(order, len(order)) else None


def case_key(line: Row) -> str:
    """Returns a digest of a case's id, question and answers, which no program takes for a number.

    Args:
        line: of the case in `cases.jsonl`.
    """
    texts = [line["case_id"], line["question"], line["answers"]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def plain_text(text: str) -> str:
    """Returns a text of a CSV file that no spreadsheet takes for a formula.

    >>> plain_text("=1+1"), plain_text("'=1"), plain_text("no")
    ("'=1+1", "''=1", 'no')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def original_text(text: str) -> str:
    """Returns what `plain_text` was given.

    >>> original_text("'=1+1"), original_text("'tis")
    ('=1+1', "'tis")
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
