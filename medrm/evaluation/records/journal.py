"""The responses so far, on disk after every case: a killed evaluation goes on from there.

The lines of a case are appended as soon as the scorer has yielded them. A scorer that computes many
cases together (its `lookahead`) yields them together, so that a kill costs at most one lookahead;
where each case is asked alone, as of a service, it costs nothing. A power cut costs a second more.
A line that was torn is cut off. One process appends to `responses.jsonl` itself, several each to a
journal of their own until the final file is written. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from medrm.evaluation.records.jsonl import (
    RESPONSES_FILE,
    UNFIT,
    by_case,
    is_complete,
    line_of,
    record_of,
    response_of,
    response_record,
)
from medrm.files import naming, write_atomically
from medrm.schema import Response

JOURNALS = "responses.*.jsonl"
"""Names of the journals that the final file replaces."""

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
        name = f"responses.{(address or 'unnamed')[:16]}.{rank}.jsonl"
        self._path = final if processes == 1 else folder / name
        self._file: IO[bytes] | None = None
        self._synced_s = 0.0
        self.responses: dict[str, tuple[Response, ...]] = {}
        if address is not None:
            for path in dict.fromkeys((final, self._path)):
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
        """Removes a journal that the final file repeats."""
        if self._path.name != RESPONSES_FILE:
            self._path.unlink(missing_ok=True)


def _lines(responses: Iterable[Response]) -> bytes:
    return b"".join(line_of(response_record(response)) for response in responses)


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
