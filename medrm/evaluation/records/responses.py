"""The lines of `responses.jsonl`: the calls of a judge; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from medrm.evaluation.records.jsonl import read_lines, write_lines
from medrm.schema import Order, Response, State


def read_responses(path: Path) -> Iterator[Response]:
    """Yields the lines of a `responses.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return read_lines(path, response_of, "response")


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Writes a `responses.jsonl`, whole or not at all."""
    write_lines(path, map(response_record, responses))


def response_record(response: Response) -> dict[str, Any]:
    """Returns a line of `responses.jsonl`; `pair` stands only where there are more than two."""
    record = asdict(response)
    if response.pair is None:
        del record["pair"]
    return record


def response_of(record: dict[str, Any]) -> Response:
    """Returns what a line of `responses.jsonl` says.

    Raises:
        TypeError: it is not one of ours.
    """
    if record.get("probabilities") is not None:
        record["probabilities"] = {
            name: tuple(values) for name, values in record["probabilities"].items()
        }
    if record.get("pair") is not None:
        record["pair"] = tuple(record["pair"])
    response = Response(**record)
    if response.order not in get_args(Order) or response.state not in get_args(State):
        raise TypeError(f"order {response.order!r}, state {response.state!r}")
    for name, kinds in _KINDS.items():
        if not isinstance(record.get(name), kinds):
            raise TypeError(f"{name} {record[name]!r}")
    for first, second, mass in (response.probabilities or {}).values():
        if min(first, second, mass) < 0:
            raise TypeError(f"probabilities {first!r}, {second!r} of {mass!r}")
    if response.pair is not None:
        first_answer, second_answer = response.pair
        if not 0 <= first_answer < second_answer:
            raise TypeError(f"pair {response.pair!r}")
    return response


_KINDS = {
    "case_id": str,
    "dimension": str | None,
    "vote": int,
    "text": str | None,
    "finish_reason": str | None,
    "reason": str | None,
}
"""What the values of a line are."""
