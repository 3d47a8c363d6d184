"""Files of one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from medrm.errors import DataError
from medrm.files import write_atomically
from medrm.scorer.verdict_rules import EVALUATE_AGAIN

Line = TypeVar("Line")

UNFIT = (ValueError, TypeError, KeyError, AttributeError)
"""What is raised for a line whose values are not those of its kind."""


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, in a file that appears when it is complete."""
    write_atomically(path, map(line_of, records))


def line_of(record: Mapping[str, Any]) -> bytes:
    """Returns one JSON object as a line."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    # Half a surrogate pair is no UTF-8; its backslash form is what JSON calls it.
    return text.encode(errors="backslashreplace")


def record_of(line: bytes) -> dict[str, Any]:
    """Returns the JSON object in a line.

    Raises:
        ValueError: it is none in UTF-8, or holds a number that is not finite.
    """
    try:
        record = json.loads(line.decode(), parse_constant=_number, parse_float=_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    return record


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def read_lines(path: Path, parse: Callable[[dict[str, Any]], Line], noun: str) -> Iterator[Line]:
    """Yields what `parse` makes of each line.

    Args:
        path: of the file.
        parse: makes one object of a line's values; raises one of `UNFIT` where they do not fit.
        noun: what one line is, for messages.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    if not path.is_file():
        raise DataError(
            f"There are no {noun}s at {path}. Give a folder that `medrm evaluate` has written."
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                parsed = parse(record_of(line))
            except UNFIT as error:
                raise DataError(
                    f"{path}, line {number}, is not a {noun}: {error}. {EVALUATE_AGAIN}"
                ) from error
            yield parsed
