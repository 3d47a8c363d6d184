"""The lines of `responses.jsonl` and `verdicts.jsonl`, from which an evaluation is taken up again.

One line of `responses.jsonl` is one `Response`; an evaluation is resumed, scored again and reported
from them. A case is complete when all its calls are there, each once: of rewards the one of order
"forward", of a judge the same calls in both orders. Report, comparison and page are computed from
`verdicts.jsonl` alone. How verdicts follow from responses: medrm.scorer.verdict_rules. Imports no
torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, product
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_args

from medrm.errors import DataError
from medrm.files import write_atomically
from medrm.readouts import writes_rewards
from medrm.schema import ORDERS, Order, Protocol, Response, State, Verdict
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
    """Returns whether a call failed in a way that a retry may fix."""
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


VERDICTS_FILE = "verdicts.jsonl"


def write_verdicts(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Writes `verdicts.jsonl`, which appears when it is complete."""
    write_lines(path, map(_record, verdicts))


def read_verdicts(path: Path) -> list[Verdict]:
    """Returns the lines of a `verdicts.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return list(read_lines(path, _verdict, "verdict"))


def _record(verdict: Verdict) -> dict[str, Any]:
    record = dict(vars(verdict))
    if verdict.scores is None:
        del record["scores"]
    return record


def _verdict(record: dict[str, Any]) -> Verdict:
    """Returns what a line of `verdicts.jsonl` says.

    Raises:
        TypeError: it is not one of ours.
    """
    for name in ("label", "label_shares", "scores"):
        if isinstance(record.get(name), list):
            record[name] = tuple(record[name])
    verdict = Verdict(**record)
    scores = verdict.scores or (verdict.score_a, verdict.score_b)
    if not all(
        isinstance(number, int | float | None) for number in (*scores, verdict.probability_a)
    ):
        raise TypeError(f"scores {scores!r}, probability {verdict.probability_a!r}")
    if verdict.protocol not in get_args(Protocol) or verdict.order not in get_args(Order):
        raise TypeError(f"protocol {verdict.protocol!r}, order {verdict.order!r}")
    texts = (verdict.case_id, verdict.dimension, verdict.cluster, *verdict.groups.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"id, dimension, cluster and groups are {texts!r}")
    return verdict


def verdicts_by_case(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Returns the verdicts on each case, sorted by case id: no number depends on their order."""
    return verdicts_by(verdicts, attrgetter("case_id"))


def verdicts_by(
    verdicts: Iterable[Verdict], key: Callable[[Verdict], str]
) -> dict[str, list[Verdict]]:
    """Returns the verdicts that share a key, sorted by the key."""
    shared: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        shared.setdefault(key(verdict), []).append(verdict)
    return dict(sorted(shared.items()))
