"""The lines of `responses.jsonl`, from which an evaluation is resumed, scored again and reported.

One line is one `Response`. A case is complete when all its calls are there, each once: of rewards
the one of order "forward", of a judge the same calls in both orders. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

from medrm.evaluation.records.jsonl import read_lines, write_lines
from medrm.readouts import writes_rewards
from medrm.schema import ORDERS, Order, Response, State

RESPONSES_FILE = "responses.jsonl"


def read_responses(path: Path) -> Iterator[Response]:
    """Yields the lines of a `responses.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return read_lines(path, response_of, "response")


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Writes a `responses.jsonl`, which appears when it is complete."""
    write_lines(path, map(response_record, responses))


def is_complete(responses: Sequence[Response]) -> bool:
    """Returns whether no call about one case is lost or doubled."""
    forward, backward = (
        [(call.dimension, call.vote, call.pair) for call in responses if call.order == order]
        for order in ORDERS
    )
    if writes_rewards(responses[0].readout):
        return len(forward) == 1 and not backward
    calls = set(forward)
    return calls == set(backward) and len(calls) == len(forward) == len(backward)


def covers(responses: Sequence[Response], dimensions: Iterable[str], answer_count: int) -> bool:
    """Returns whether the responses to a case are about these dimensions and so many answers."""
    first = responses[0]
    if writes_rewards(first.readout):
        return first.rewards is None or all(
            len(first.rewards.get(name, ())) == answer_count for name in dimensions
        )
    made = {(call.dimension, call.pair) for call in responses}
    names, pairs = (set(column) for column in zip(*made, strict=True))
    names = {None} if None in names else {*dimensions}
    pairs = {None} if None in pairs else {*combinations(range(answer_count), 2)}
    return made >= {*product(names, pairs)}


def has_failed(responses: Iterable[Response]) -> bool:
    """Returns whether a call came to nothing that another attempt may bring."""
    return any(call.state == "error" for call in responses)


def by_case(
    responses: Iterable[Response], scorer_dimensions: Sequence[str]
) -> dict[str, tuple[Response, ...]]:
    """Returns the responses to each case, in the order of their lines in `responses.jsonl`."""
    calls: dict[str, list[Response]] = {}
    for response in responses:
        calls.setdefault(response.case_id, []).append(response)
    return {case_id: in_written_order(made, scorer_dimensions) for case_id, made in calls.items()}


def in_written_order(
    responses: Iterable[Response], scorer_dimensions: Sequence[str]
) -> tuple[Response, ...]:
    """Returns the responses to one case in the order of their lines.

    Args:
        responses: to the case.
        scorer_dimensions: the scorer's dimensions.
    """
    names = [None, *scorer_dimensions]
    return tuple(
        sorted(
            responses,
            key=lambda call: (call.order, names.index(call.dimension), call.vote, call.pair or ()),
        )
    )


def response_record(response: Response) -> dict[str, Any]:
    """Returns a line of `responses.jsonl`; `pair` stands only where there are more than two."""
    record = asdict(response)
    if response.pair is None:
        del record["pair"]
    return record


def response_of(record: dict[str, Any]) -> Response:
    """Returns what a line of `responses.jsonl` says; those of version 0.1 have no rewards.

    Raises:
        TypeError: it is not one of ours.
        ValueError: probabilities are not three numbers.
    """
    for name in ("probabilities", "rewards"):
        if record.get(name) is not None:
            record[name] = {key: tuple(numbers) for key, numbers in record[name].items()}
    if record.get("pair") is not None:
        record["pair"] = tuple(record["pair"])
    response = Response(**record)
    if response.order not in get_args(Order) or response.state not in get_args(State):
        raise TypeError(f"order {response.order!r}, state {response.state!r}")
    for name, accepted in _TYPES.items():
        if not isinstance(record.get(name), accepted):
            raise TypeError(f"{name} {record[name]!r}")
    _check_numbers(response)
    return response


def _check_numbers(response: Response) -> None:
    for first, second, mass in (response.probabilities or {}).values():
        if min(first, second, mass) < 0:
            raise TypeError(f"probabilities {first!r}, {second!r} of {mass!r}")
    for rewards in (response.rewards or {}).values():
        if len(rewards) < 2 or not all(isinstance(reward, int | float) for reward in rewards):
            raise TypeError(f"rewards {rewards!r}")
    if response.pair is not None:
        first_answer, second_answer = response.pair
        if not 0 <= first_answer < second_answer:
            raise TypeError(f"pair {response.pair!r}")


_TYPES = {
    "case_id": str,
    "dimension": str | None,
    "vote": int,
    "readout": str,
    "text": str | None,
    "finish_reason": str | None,
    "reason": str | None,
}
"""The types of a line's values."""
