"""The part files of `medrm score`: windows that are computed, until the output is complete."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.progress import TimeRemainingColumn

from medrm.data.batched import batched
from medrm.data.readers.unlabelled import UnlabelledRow
from medrm.evaluation.gathering import opened_by_first
from medrm.failures import naming
from medrm.folder_lock import hold
from medrm.progress_bar import progress_bar
from medrm.scorer import Scorer

logger = logging.getLogger(__name__)

PARTS = ".scores-part"
"""The suffix of the files that hold the windows of an output that is not complete."""

_WINDOW = 256
"""Rows of a window where each is computed by itself."""

Line = dict[str, Any]
"""A line of the output: one row's rewards, or why it has none."""


def windows_of(scorer: Scorer, rows: Iterable[UnlabelledRow]) -> Iterator[list[UnlabelledRow]]:
    """Yields the rows that are computed together."""
    return batched(rows, scorer.lookahead or _WINDOW)


class ScoreParts:
    """The windows of one output that are computed, in files beside it."""

    def __init__(self, output: Path, address: str) -> None:
        self.output, self.pattern = output, f"{escape(output.name)}.{address[:16]}-*{PARTS}"
        self.prefix = f"{output.name}.{address[:16]}"

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
        score: Callable[[Sequence[UnlabelledRow]], list[Line]],
        total: int,
    ) -> int:
        """Computes the windows that are not there, each process its share; returns their number.

        Args:
            windows: all of them.
            score: returns the lines of the rows of a window.
            total: number of rows.
        """
        state = PartialState()
        done = set(self._index())
        state.wait_for_everyone()  # nobody writes while another still reads what is there
        path = self.output.with_name(f"{self.prefix}-{state.process_index}-{os.getpid()}{PARTS}")
        if done:
            logger.info("%d windows of rows are there already.", len(done))
        with (
            naming(path),
            path.open("a", encoding="utf-8") as part,
            progress_bar(TimeRemainingColumn(), show=state.is_main_process) as bar,
        ):
            task = bar.add_task("rows", total=total)
            part.write("\n")  # the process of that number may have left a torn line
            waiting = count = 0
            for number, window in enumerate(windows):
                if number not in done:
                    waiting += 1
                    if waiting % state.num_processes == state.process_index:
                        lines = score(window)
                        part.write(json.dumps({"window": number, "lines": lines}) + "\n")
                        part.flush()
                count = number + 1
                bar.advance(task, len(window))
        state.wait_for_everyone()
        return count

    def _index(self) -> dict[int, tuple[Path, int]]:
        """Returns where each computed window stands; one that was torn is none."""
        index = {}
        for path in sorted(self.output.parent.glob(self.pattern)):
            offset = 0
            with path.open("rb") as part:
                for line in part:
                    with suppress(ValueError):
                        index[int(json.loads(line)["window"])] = (path, offset)
                    offset += len(line)
        return index

    def lines(self, windows: int) -> Iterator[Line]:
        """Yields the lines of all windows in order.

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
        for number in range(windows):
            path, offset = index[number]
            with path.open("rb") as part:
                part.seek(offset)
                yield from json.loads(part.readline())["lines"]

    def remove(self) -> None:
        """Removes the files of the windows, also of other rows that were once asked for."""
        for path in self.output.parent.glob(f"{escape(self.output.name)}.*{PARTS}"):
            path.unlink()
