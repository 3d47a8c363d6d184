"""Reads the file of reasons that a judge learns to give before its verdict; imports no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from medrm.errors import DataError, report
from medrm.objectives.judge.verdict_targets import Rationales

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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"rationales {path} cannot be read: {error}. Give a JSONL file of lines like {_FORM}."
        ) from error
    found: dict[str, dict[str, str]] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case_id, rationale, wrong = _line(line)
        if not wrong and case_id in found:
            wrong = f"case {case_id!r} stands twice"
        if wrong:
            problems.append(f"line {number}: {wrong}")
        else:
            found[case_id] = rationale
    if problems:
        raise DataError(
            report(f"Rationales {path} have problems; a line is like {_FORM}.", problems)
        )
    unknown = len(found.keys() - set(case_ids))
    if unknown:
        logger.warning(
            "%d of %d rationales belong to no training or development case", unknown, len(found)
        )
    return {
        case_id: {name: text for name, text in rationale.items() if name in dimensions}
        for case_id, rationale in found.items()
        if case_id in case_ids
    }


def _line(line: str) -> tuple[str, dict[str, str], str]:
    """Returns case id, sentences and what is wrong with one line; "" where nothing is."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "", {}, f"no JSON: {error}"
    if not isinstance(content, dict) or content.keys() != {"case_id", "rationale"}:
        return "", {}, "not an object with the keys case_id and rationale"
    case_id, rationale = content["case_id"], content["rationale"]
    if not isinstance(case_id, str) or not isinstance(rationale, dict):
        return "", {}, "case_id is no text, or rationale no object"
    sentences = {}
    for name, sentence in rationale.items():
        if not isinstance(sentence, str) or not sentence.strip():
            return case_id, {}, f"{name}: {sentence!r} is no sentence"
        if len(sentence.splitlines()) > 1 or "better:" in sentence:
            return case_id, {}, f"{name}: a sentence is one line without 'better:'"
        sentences[name] = sentence.strip()
    return case_id, sentences, ""
