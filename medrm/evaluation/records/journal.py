"""What a scorer has said so far, on disk after every case: a killed evaluation goes on from there.

The lines of a case are written before the next one is asked for, so that a kill loses nothing; a
power cut loses a second. One that was torn is cut off. A judge's lines are those of
`responses.jsonl`: one process appends to that file itself, several each to a journal of their own.
A scalar model's scores lie in a journal, too, until the verdicts that repeat them are written.
Imports no torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from medrm.evaluation.records.jsonl import UNFIT, line_of, record_of
from medrm.evaluation.records.responses import response_of, response_record
from medrm.evaluation.records.scoring import Said, in_order
from medrm.evaluation.records.verdicts import row_from
from medrm.files import naming, write_atomically
from medrm.schema import Response, Verdict

RESPONSES_FILE = "responses.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
JOURNALS = ("responses.*.jsonl", "scores.*.jsonl")
"""Names of the journals that the final files replace."""

T = TypeVar("T")

_log = logging.getLogger(__name__)

SYNC_S = 1.0
"""Seconds that a power cut may cost; 1,026 waits for a disk would cost more than a fast model."""


class Journal:
    """The lines of one process.

    Attributes:
        known: what it holds of an earlier start, by case.

    Args:
        folder: of the evaluation.
        address: of what is asked; None where nothing says whether earlier lines still hold.
        asked: the scorer's dimensions.
        rank: number of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        folder: Path,
        address: str | None,
        asked: Sequence[str],
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        own = f"{(address or 'unnamed')[:16]}.{rank}.jsonl"
        final = folder / RESPONSES_FILE
        self._responses = final if processes == 1 else folder / f"responses.{own}"
        self._scores = folder / f"scores.{own}"
        self._file: IO[bytes] | None = None
        self._synced = 0.0
        self.known: dict[str, Said] = {}
        if address is not None:
            if not final.is_file():
                self.known |= scores_of(_read(folder / VERDICTS_FILE, row_from))
            for path in dict.fromkeys((final, self._responses)):
                self.known |= _responses(path, asked)
            self.known |= _scores(self._scores)

    def start(self, kept: Iterable[Said]) -> None:
        """Makes the journal hold exactly what is kept, so that new lines can follow."""
        kept = list(kept)
        for path, wanted in (
            (self._responses, [one for one in kept if one.responses]),
            (self._scores, [one for one in kept if not one.responses]),
        ):
            content = b"".join(map(_lines, wanted))
            if not wanted:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.read_bytes() != content:
                write_atomically(path, [content])

    def append(self, said: Said) -> None:
        """Adds a case; when this returns, it outlives the process."""
        path = self._responses if said.responses else self._scores
        with naming(path):
            if self._file is None:
                self._file = path.open("ab")
            self._file.write(_lines(said))
            self._file.flush()
            if time.monotonic() - self._synced >= SYNC_S:
                self._sync()

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with naming(Path(self._file.name)):
                self._sync()
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Removes what the final files of the evaluation repeat."""
        for path in {self._responses, self._scores}:
            if path.name != RESPONSES_FILE:
                path.unlink(missing_ok=True)


def scores_of(rows: Iterable[Verdict]) -> dict[str, Said]:
    """Returns the scores that a scalar model's verdicts repeat, by case."""
    found: dict[str, Said] = {}
    scores: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in rows:
        given = row.scores
        if row.score_a is not None and row.score_b is not None:
            given = (row.score_a, row.score_b)
        if given is None:
            found[row.case_id] = Said(row.case_id, reason=row.reason)
        else:
            scores.setdefault(row.case_id, {})[row.dimension] = given
    return found | {case_id: Said(case_id, scores=given) for case_id, given in scores.items()}


def calls_of(responses: Iterable[Response], asked: Sequence[str]) -> dict[str, Said]:
    """Returns a judge's calls by case, each one's in their order."""
    calls: dict[str, list[Response]] = {}
    for response in responses:
        calls.setdefault(response.case_id, []).append(response)
    return {name: Said(name, in_order(made, asked)) for name, made in calls.items()}


def _lines(said: Said) -> bytes:
    if said.responses:
        return b"".join(line_of(response_record(one)) for one in said.responses)
    return line_of({"case_id": said.case_id, "scores": said.scores, "reason": said.reason})


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yields the lines that were written whole; what a damaged one said is asked again."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            parsed = parse(record_of(line))
        except UNFIT as error:
            _log.warning("%s, line %d, is damaged and asked again: %s", path, number, error)
        else:
            yield parsed


def _responses(path: Path, asked: Sequence[str]) -> dict[str, Said]:
    known = (one for one in _read(path, response_of) if one.dimension in (None, *asked))
    return {name: said for name, said in calls_of(known, asked).items() if said.whole}


def _scores(path: Path) -> dict[str, Said]:
    return {said.case_id: said for said in _read(path, _scored)}


def _scored(record: dict[str, Any]) -> Said:
    scores = record["scores"]
    if scores is not None:
        scores = {name: tuple(map(float, values)) for name, values in scores.items()}
    return Said(record["case_id"], (), scores, record["reason"])
