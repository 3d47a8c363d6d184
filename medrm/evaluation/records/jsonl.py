"""The lines of `responses.jsonl` and `verdicts.jsonl`, from which an evaluation is taken up again.

One line of `responses.jsonl` is one `Response`; an evaluation is resumed, scored again and reported
from them. A case is complete when all its calls are there, each once: of rewards the one of order
"forward", of a judge the same calls in both orders. Report, comparison and page are computed from
`verdicts.jsonl` alone. How verdicts follow from responses: medrm.scorer.verdict_rules. Imports no
torch.

The journal keeps the responses so far: a killed evaluation goes on from there. The lines of a case
are appended as soon as the scorer has yielded them. A scorer that computes many cases together (its
`lookahead`) yields them together, so that a kill costs at most one lookahead; where each case is
asked alone, as of a service, it costs nothing. A power cut costs a second more. A line that was
torn is cut off. One process appends to `responses.jsonl` itself, several each to a journal of their
own until the final file is written.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_type_hints

from medrm.errors import DataError
from medrm.failures import naming
from medrm.files import fits, write_atomically
from medrm.readouts import READOUTS, Content, writes_rewards
from medrm.schema import ORDERS, USAGE, Response, Verdict
from medrm.scorer.verdict_rules import EVALUATE_AGAIN

Line = TypeVar("Line")
Member = TypeVar("Member")
Key = TypeVar("Key")

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


def write_rows(path: Path, rows: Iterable[Response | Verdict]) -> None:
    """Writes a `responses.jsonl` or `verdicts.jsonl`, which appears when it is complete."""
    write_lines(path, map(_record, rows))


def _record(row: Response | Verdict) -> dict[str, Any]:
    """Returns a line; `pair` and `scores` stand only where there are more than two answers."""
    values = ((name, getattr(row, name)) for name in _TYPES[type(row)])
    return {n: value for n, value in values if value is not None or n not in _WHERE_THERE_IS_ONE}


_WHERE_THERE_IS_ONE = ("pair", "scores", "usage")
"""Fields that a line lacks where they are None."""


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
    for call in responses:
        about = {*dimensions} if call.dimension is None else {call.dimension}
        if call.probabilities is not None and not call.probabilities.keys() >= about:
            return False
    made = {(call.dimension, call.pair) for call in responses}
    names, pairs = (set(column) for column in zip(*made, strict=True))
    names = {None} if None in names else {*dimensions}
    pairs = {None} if None in pairs else {*combinations(range(answer_count), 2)}
    return made >= {*product(names, pairs)}


def by_case(
    responses: Iterable[Response], scorer_dimensions: Sequence[str]
) -> dict[str, tuple[Response, ...]]:
    """Returns the responses to each case, in the order of their lines in `responses.jsonl`."""
    calls = grouped(responses, attrgetter("case_id"))
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


def response_of(record: dict[str, Any]) -> Response:
    """Returns what a line of `responses.jsonl` says; those of version 0.1 have no rewards.

    Raises:
        TypeError: it is not one of ours.
        ValueError: probabilities are not three numbers.
    """
    response = _checked(Response, record)
    _check_content(response)
    for first, second, mass in (response.probabilities or {}).values():
        if min(first, second, mass) < 0:
            raise TypeError(f"probabilities {first!r}, {second!r} of {mass!r}")
    if any(len(rewards) < 2 for rewards in (response.rewards or {}).values()):
        raise TypeError(f"rewards {response.rewards!r}")
    if response.usage is not None and set(response.usage) != set(USAGE):
        raise TypeError(f"usage {response.usage!r}")
    if response.pair is not None:
        first_answer, second_answer = response.pair
        if not 0 <= first_answer < second_answer:
            raise TypeError(f"pair {response.pair!r}")
    return response


def _check_content(response: Response) -> None:
    """Raises TypeError unless a response holds what its readout writes, or a reason for nothing."""
    if response.state != "ok":
        return
    content = {name for name in get_args(Content) if getattr(response, name) is not None}
    registered = READOUTS.get(response.readout)
    if len(content) != 1 or (registered is not None and content != {registered.writes}):
        raise TypeError(
            f"{response.readout!r} has written {', '.join(sorted(content)) or 'nothing'}"
        )
    call = (response.order, response.dimension, response.vote, response.pair)
    if response.rewards is not None and call != ("forward", None, 0, None):
        raise TypeError(f"rewards with order, dimension, vote and pair {call!r}")


VERDICTS_FILE = "verdicts.jsonl"


def read_verdicts(path: Path) -> list[Verdict]:
    """Returns the lines of a `verdicts.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return list(read_lines(path, _verdict, "verdict"))


def _verdict(record: dict[str, Any]) -> Verdict:
    """Returns what a line of `verdicts.jsonl` says.

    Raises:
        TypeError: it is not one of ours.
    """
    verdict = _checked(Verdict, record)
    if verdict.protocol is None or verdict.order == "both":
        raise TypeError(f"protocol {verdict.protocol!r}, order {verdict.order!r}")
    return verdict


def _checked(record_class: type[Line], record: Mapping[str, Any]) -> Line:
    """Returns the dataclass that a JSON object holds; its lists become tuples.

    Raises:
        TypeError: keys other than the fields, or values of other types than theirs.
    """
    for name, hint in _TYPES[record_class].items():
        if name in record and not fits(record[name], hint):
            raise TypeError(f"{name} {record[name]!r}")
    return record_class(**{name: _with_tuples(value) for name, value in record.items()})


_TYPES: dict[type, dict[str, Any]] = {
    record_class: get_type_hints(record_class) for record_class in (Response, Verdict)
}


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(member) for key, member in value.items()}
    return tuple(value) if isinstance(value, list) else value


def verdicts_by_case(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Returns the verdicts on each case, sorted by case id: no number depends on their order."""
    return verdicts_by(verdicts, attrgetter("case_id"))


def verdicts_by(
    verdicts: Iterable[Verdict], key: Callable[[Verdict], str]
) -> dict[str, list[Verdict]]:
    """Returns the verdicts that share a key, sorted by the key."""
    return dict(sorted(grouped(verdicts, key).items()))


def grouped(members: Iterable[Member], key: Callable[[Member], Key]) -> dict[Key, list[Member]]:
    """Returns what shares a key, in the order in which the keys come first."""
    groups: dict[Key, list[Member]] = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    return groups


JOURNALS = "responses.*.jsonl"
"""Names of the journals that the final file replaces."""

SCORE_JOURNALS = "scores.{}.*.jsonl"
"""Names of the journals that version 0.1 kept of reward models, by the start of the address."""

SYNC_S = 1.0
"""Seconds that a power cut may cost; 1,026 waits for a disk would cost more than a fast model."""

_log = logging.getLogger(__name__)


class Journal:
    """The lines of one process.

    Attributes:
        responses: to each complete case of an earlier start.

    Args:
        folder: of the evaluation.
        address: of what is asked; None where nothing says whether earlier lines still hold.
        scorer_dimensions: the scorer's dimensions.
        rank: number of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        folder: Path,
        address: str | None,
        scorer_dimensions: Sequence[str],
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        final = folder / RESPONSES_FILE
        name = f"responses.{(address or 'unnamed')[:16]}"
        # Of an earlier start, which may have had other processes.
        self._earlier = sorted(folder.glob(f"{name}.*.jsonl"))
        self._path = final if processes == 1 else folder / f"{name}.{rank}.jsonl"
        self._file: IO[bytes] | None = None
        self._synced_s = 0.0
        self.responses: dict[str, tuple[Response, ...]] = {}
        if address is not None:
            for path in (final, *self._earlier):
                calls = (
                    call for call in _intact(path) if call.dimension in (None, *scorer_dimensions)
                )
                self.responses |= {
                    case_id: responses
                    for case_id, responses in by_case(calls, scorer_dimensions).items()
                    if is_complete(responses)
                }

    def start(self, reusable: Iterable[Sequence[Response]]) -> None:
        """Makes the journal hold exactly the responses that are kept, so that lines can follow."""
        lines = b"".join(map(_lines, reusable))
        if not lines:
            self._path.unlink(missing_ok=True)
        elif not self._path.is_file() or self._path.read_bytes() != lines:
            write_atomically(self._path, [lines])

    def append(self, responses: Sequence[Response]) -> None:
        """Adds the responses to a case; when this returns, they outlive the process."""
        with naming(self._path):
            if self._file is None:
                self._file = self._path.open("ab")
            self._file.write(_lines(responses))
            self._file.flush()
            if time.monotonic() - self._synced_s >= SYNC_S:
                self._sync(self._file)

    def _sync(self, file: IO[bytes]) -> None:
        os.fsync(file.fileno())
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with naming(self._path):
                self._sync(self._file)
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Removes journals that the final file repeats, once all processes have ended."""
        for path in {*self._earlier, self._path} - {self._path.parent / RESPONSES_FILE}:
            path.unlink(missing_ok=True)


def _lines(responses: Iterable[Response]) -> bytes:
    return b"".join(line_of(_record(response)) for response in responses)


def _intact(path: Path) -> Iterator[Response]:
    """Yields the responses of intact lines; the requests of damaged lines are repeated."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            response = response_of(record_of(line))
        except UNFIT as error:
            _log.warning("%s, line %d, is damaged and asked again: %s", path, number, error)
        else:
            yield response
