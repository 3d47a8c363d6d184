"""Reads the file of rationales that a judge learns to give before its verdict; imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from medrm.data.row_tables import JsonLines
from medrm.errors import DataError, report
from medrm.objectives.judge.judge_examples import Rationales

logger = logging.getLogger(__name__)

_FORM = '{"case_id": "...", "rationale": {"accuracy": "a sentence"}}'


def read_rationales(
    path: Path, dimensions: Collection[str], case_ids: Collection[str]
) -> Rationales:
    """Returns case id to dimension to a sentence, of the cases that are learned from.

    Sentences call the stored answers Answer A and Answer B and name no verdict: that is added.

    Args:
        path: JSONL, one line for each case: `case_id`, and `rationale`, dimension to a sentence.
        dimensions: those that are learned; sentences about others are left out.
        case_ids: of training and development; other lines are counted, and left out.

    Raises:
        DataError: the file cannot be read; every line that is not as it should be.
    """
    rationales: dict[str, dict[str, str]] = {}
    invalid_json: list[str] = []
    problems: list[str] = []
    try:
        for line_name, record in JsonLines(path, invalid_json):
            problem = _problem(record)
            if not problem and record["case_id"] in rationales:
                problem = f"case {record['case_id']!r} stands twice"
            if problem:
                problems.append(f"{line_name}: {problem}")
            else:
                rationales[record["case_id"]] = {
                    name: sentence.strip() for name, sentence in record["rationale"].items()
                }
    except OSError as error:
        raise DataError(
            f"rationales {path} cannot be read: {error}. Give a JSONL file of lines like {_FORM}."
        ) from error
    if invalid_json or problems:
        raise DataError(
            report(
                f"Rationales {path} have problems; a line is like {_FORM}.",
                [*invalid_json, *problems],
            )
        )
    unknown = len(rationales.keys() - set(case_ids))
    if unknown:
        logger.warning(
            "%d of %d rationales belong to no training or development case",
            unknown, len(rationales),
        )  # fmt: skip
    return {
        case_id: {name: text for name, text in sentences.items() if name in dimensions}
        for case_id, sentences in rationales.items()
        if case_id in case_ids
    }


def _problem(record: Mapping[str, Any]) -> str:
    """Returns what is wrong with the object of one line; "" where nothing is."""
    if record.keys() != {"case_id", "rationale"}:
        return "not an object with the keys case_id and rationale"
    if not isinstance(record["case_id"], str) or not isinstance(record["rationale"], dict):
        return "case_id is no text, or rationale no object"
    for name, sentence in record["rationale"].items():
        if not isinstance(sentence, str) or not sentence.strip():
            return f"{name}: {sentence!r} is no sentence"
        if len(sentence.splitlines()) > 1 or "better:" in sentence:
            return f"{name}: a sentence is one line without 'better:'"
    return ""
