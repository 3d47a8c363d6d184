"""The part files of `medrm score`: windows that are computed, until the output is complete."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from medrm.data.batched import batched
from medrm.data.medical.conversions import ImageConversion
from medrm.data.readers.unlabelled import UnlabelledRow
from medrm.errors import DataError
from medrm.evaluation.gathering import opened_by_first
from medrm.failures import naming
from medrm.folder_lock import hold
from medrm.progress_bar import progress
from medrm.schema import Case
from medrm.scorer import Scorer
from medrm.scorer.caller_cases import CallerImages, row_case

logger = logging.getLogger(__name__)

PARTS = ".scores-part"
"""The suffix of the files that hold the windows of an output that is not complete."""

_ADDRESS = 16
"""Characters of the digest in the name of a part file."""

_WINDOW = 256
"""Rows of a window where each is computed by itself."""

Line = dict[str, Any]
"""A line of the output: one row's rewards, or why it has none."""


class RowCase(NamedTuple):
    """A row as it is scored.

    Attributes:
        number: of the row in the whole input, from 1.
        case: that it describes; None: it describes none.
        problem: why not.
    """

    number: int
    case: Case | None
    problem: str | None


class StoredWindow(NamedTuple):
    """A window that is computed.

    Attributes:
        images: digest of the images that it was computed from.
        version: how often it has been computed before, from other images.
        path: of the part file that holds it.
        offset: where its line starts, in bytes.
    """

    images: str
    version: int
    path: Path
    offset: int

    def lines(self) -> list[Line]:
        """Returns the lines of its rows."""
        with self.path.open("rb") as part_file:
            part_file.seek(self.offset)
            lines: list[Line] = json.loads(part_file.readline())["lines"]
        return lines


def windows_of(scorer: Scorer, rows: Iterable[UnlabelledRow]) -> Iterator[list[UnlabelledRow]]:
    """Yields the rows that are computed together."""
    return batched(rows, scorer.lookahead or _WINDOW)


def row_cases(window: Iterable[UnlabelledRow], conversion: ImageConversion | None) -> list[RowCase]:
    """Returns the cases that rows describe; their images are looked up and digested.

    Args:
        window: the rows.
        conversion: by which medical images become pictures; None: rows with some are no cases.
    """
    return [_row_case(row, CallerImages(row.folder, conversion)) for row in window]


def _row_case(unlabelled: UnlabelledRow, images: CallerImages) -> RowCase:
    number, row, problem, _ = unlabelled
    try:
        if row is None:
            raise DataError(str(problem))
        case = row_case(row, number, images)
        if not case.answers:
            raise DataError("it has no answer")
    except DataError as error:
        return RowCase(number, None, str(error))
    return RowCase(number, case, None)


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def digest_of_images(window: Iterable[RowCase]) -> str:
    """Returns the digest of the contents of a window's images."""
    return digest_of([[image.digest for image in row.case.images] for row in window if row.case])


class ScoreParts:
    """The windows of one output that are computed, in files beside it.

    Attributes:
        output: that is to be written.
        address: digest of all that the lines follow from besides the images.
        conversion: by which medical images become pictures.
    """

    def __init__(
        self, output: Path, address: str, conversion: ImageConversion | None = None
    ) -> None:
        self.output, self.address, self.conversion = output, address, conversion
        self.pattern = f"{escape(output.name)}.{address[:_ADDRESS]}-*{PARTS}"
        self.prefix = f"{output.name}.{address[:_ADDRESS]}"

    def owned(self) -> AbstractContextManager[None]:
        """Keeps other starts away from the output; the first process holds the lock for all.

        Raises:
            ConfigError: another start is writing it.
        """
        name = f"{self.output.name}.lock"

        def refusal(holder: str) -> str:
            return f"{self.output} is being written by {holder}. Wait for it, or give another."

        return opened_by_first(
            lambda stack: stack.enter_context(hold(self.output.parent, name, refusal))
        )

    def fill(
        self,
        windows: Iterable[Sequence[UnlabelledRow]],
        score: Callable[[Sequence[RowCase]], list[Line]],
        total: int | None,
    ) -> int:
        """Computes the windows that are not there, each process its share; returns their number.

        A window whose images have changed since it was computed is computed again.

        Args:
            windows: all of them.
            score: returns the lines of the rows of a window.
            total: number of rows.
        """
        state = PartialState()
        index = self._index()
        state.wait_for_everyone()  # nobody writes while another still reads what is there
        path = self.output.with_name(f"{self.prefix}-{state.process_index}-{os.getpid()}{PARTS}")
        if index:
            logger.info("%d windows of rows are there already.", len(index))
        count = changed = 0
        with (
            naming(path),
            path.open("a", encoding="utf-8") as part_file,
            progress("rows", total, show=state.is_main_process) as advance,
        ):
            part_file.write("\n")  # the process of that number may have left a torn line
            for number, window in enumerate(windows):
                is_there = number in index
                if number % state.num_processes == state.process_index:
                    cases, stored = row_cases(window, self.conversion), index.get(number)
                    images = digest_of_images(cases)
                    if stored is None or stored.images != images:
                        changed, is_there = changed + (stored is not None), False
                        version = 0 if stored is None else stored.version + 1
                        line = {"window": number, "version": version, "images": images}
                        part_file.write(json.dumps({**line, "lines": score(cases)}) + "\n")
                        part_file.flush()
                count = number + 1
                advance(len(window), before=is_there)
        if changed:
            logger.warning("%d windows are computed again: their images have changed.", changed)
        state.wait_for_everyone()
        return count

    def _index(self) -> dict[int, StoredWindow]:
        """Returns where the latest version of each window stands; one that was torn is none."""
        index: dict[int, StoredWindow] = {}
        for path in sorted(self.output.parent.glob(self.pattern)):
            offset = 0
            with path.open("rb") as part_file:
                for line in part_file:
                    with suppress(ValueError):
                        window = json.loads(line)
                        stored = StoredWindow(window["images"], window["version"], path, offset)
                        latest = index.setdefault(int(window["window"]), stored)
                        if stored.version > latest.version:
                            index[int(window["window"])] = stored
                    offset += len(line)
        return index

    def complete(self, windows: int) -> list[StoredWindow]:
        """Returns all windows in order.

        Raises:
            RuntimeError: one is missing, so that the output would be another one.
        """
        index = self._index()
        missing = sorted(set(range(windows)) - index.keys())
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {windows} windows of {self.output} are not there, such as "
                f"{missing[0]}; start the same command again."
            )
        return [index[number] for number in range(windows)]

    def remove(self) -> None:
        """Removes the files of the windows, also of other rows that were once asked for."""
        address = "[0-9a-f]" * _ADDRESS  # else that of an output whose name goes on
        for path in self.output.parent.glob(f"{escape(self.output.name)}.{address}-*{PARTS}"):
            path.unlink()
