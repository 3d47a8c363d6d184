"""Cases of all requests wait here, and one thread, which alone uses the model, scores them.

    submit()  request 1: cases 1, 2 | request 2: case 3 | request 3: case 4 ...
    thread:                 [1, 2, 3] -> respond         [4, ...] -> respond

A batch is what waits, up to a number of rows, of characters (padding counted) and of pixels; one
that is not full waits a few milliseconds for more. What fails as a batch is asked about again case
by case, so that a case which the model cannot take costs no other its answer.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from medrm.data.decoding import MAX_PIXELS
from medrm.schema import Case, Response
from medrm.scorer import Scorer
from medrm.serve.service_metrics import ServiceMetrics

logger = logging.getLogger(__name__)

BATCH_CHARACTERS = 200_000
"""Most characters of a batch of several cases, each row counted as long as the longest."""

MAX_WAIT = 300
"""Seconds: the longest time after which a client is told to come again."""


class QueueFullError(Exception):
    """The queue holds too many rows for these cases.

    Attributes:
        seconds: after which there should be room; None: they never have room together.
    """

    def __init__(self, seconds: int | None) -> None:
        super().__init__()
        self.seconds = seconds


class UnscoredError(Exception):
    """The model failed on this case, also by itself."""


class Answered(NamedTuple):
    """All that a model said about a case."""

    case: Case
    responses: list[Response]


class SizedCase(NamedTuple):
    """A case, and the pixels of its images, which are still to be decoded."""

    case: Case
    pixels: int

    @property
    def rows(self) -> int:
        """The number of its answers."""
        return len(self.case.answers)

    @property
    def length(self) -> int:
        """The characters of its longest row."""
        shared = (self.case.question, *(turn.text for turn in self.case.context))
        return sum(map(len, shared)) + max(map(len, self.case.answers))


@dataclass(eq=False)
class _Waiting:
    sized: SizedCase
    answered: Future[Answered] = field(default_factory=Future)


class CaseQueue:
    """Scores cases of many requests in batches.

    Attributes:
        is_failing: the model failed on all of the last batch, in a way that no input should cause.

    Args:
        scorer: whose `respond` only the queue's thread calls.
        batch_rows: rows (case and answer) for which a batch waits no longer.
        batch_wait: seconds that a batch which is not full waits for more cases.
        capacity: most rows that wait.
        metrics: are told of every batch.
    """

    def __init__(
        self,
        scorer: Scorer,
        batch_rows: int,
        batch_wait: float,
        capacity: int,
        metrics: ServiceMetrics,
    ) -> None:
        self._scorer, self._metrics = scorer, metrics
        self._batch_rows, self._batch_wait = batch_rows, batch_wait
        self.capacity = capacity
        self.is_failing = False
        self._numbers = itertools.count()
        self._cases: deque[_Waiting] = deque()
        self._rows, self._closed = 0, False
        self._seconds_per_row = 0.0
        self._changed = threading.Condition()
        metrics.waiting_rows.set_function(lambda: self._rows)
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    def submit(self, cases: Sequence[SizedCase]) -> list[Future[Answered]]:
        """Lets all of these cases wait, or none; returns what their answers will come to.

        Raises:
            QueueFullError: there is no room for all of them.
        """
        rows = sum(sized.rows for sized in cases)
        if rows > self.capacity:
            raise QueueFullError(None)
        with self._changed:
            if self._rows + rows > self.capacity:
                seconds = math.ceil(self._rows * self._seconds_per_row)
                raise QueueFullError(min(max(1, seconds), MAX_WAIT))
            # Responses are told apart by the case's id, which no client chooses.
            named = [replace(sized.case, case_id=str(next(self._numbers))) for sized in cases]
            waiting = [
                _Waiting(sized._replace(case=case))
                for sized, case in zip(cases, named, strict=True)
            ]
            self._cases.extend(waiting)
            self._rows += rows
            self._changed.notify()
        for waiting_case in waiting:
            waiting_case.answered.add_done_callback(partial(self._leave, waiting_case))
        return [waiting_case.answered for waiting_case in waiting]

    def _leave(self, waiting_case: _Waiting, answered: Future[Answered]) -> None:
        """Makes room where nobody waits any more for a case that the model has not reached."""
        if not answered.cancelled():
            return
        with self._changed, suppress(ValueError):  # the thread has come across it meanwhile
            self._cases.remove(waiting_case)
            self._rows -= waiting_case.sized.rows

    def close(self) -> None:
        """Scores what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.perf_counter()
            outcomes = self._score(batch)
            seconds = time.perf_counter() - started
            self.is_failing = not any(isinstance(outcome, Answered) for outcome in outcomes)
            for waiting_case, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Answered):
                    waiting_case.answered.set_result(outcome)
                else:
                    waiting_case.answered.set_exception(outcome)
            rows = sum(waiting_case.sized.rows for waiting_case in batch)
            # A mean over about ten batches: what Retry-After is reckoned from.
            recent = seconds / rows
            self._seconds_per_row += (recent - self._seconds_per_row) / (
                10 if self._seconds_per_row else 1
            )
            self._metrics.batch(len(batch), rows, seconds)

    def _next_batch(self) -> list[_Waiting]:
        """Returns what is scored next; empty: the queue is closed and nothing waits any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cases or self._closed)
                if not self._cases:
                    return []
                self._changed.wait_for(
                    lambda: self._rows >= self._batch_rows or self._closed, self._batch_wait
                )
                batch = self._take()
            if batch:  # else all who asked are gone
                return batch

    def _take(self) -> list[_Waiting]:
        """Takes the cases of a batch off the queue, without those nobody waits for any more."""
        batch: list[_Waiting] = []
        rows = pixels = longest = 0
        while self._cases:
            sized, answered = self._cases[0].sized, self._cases[0].answered
            rows, pixels = rows + sized.rows, pixels + sized.pixels
            longest = max(longest, sized.length)
            is_full = rows > self._batch_rows or rows * longest > BATCH_CHARACTERS
            if batch and (is_full or pixels > MAX_PIXELS):
                break
            first = self._cases.popleft()
            self._rows -= sized.rows
            if answered.set_running_or_notify_cancel():
                batch.append(first)
        return batch

    def _score(self, batch: list[_Waiting]) -> list[Answered | UnscoredError]:
        """Returns what the model says of the cases of a batch, or that it failed on them."""
        cases = {waiting_case.sized.case.case_id: waiting_case.sized.case for waiting_case in batch}
        responses: dict[str, list[Response]] = {case_id: [] for case_id in cases}
        try:
            for response in self._scorer.respond(cases.values()):
                responses[response.case_id].append(response)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("A batch of %d cases is scored case by case.", len(batch))
                return [
                    outcome for waiting_case in batch for outcome in self._score([waiting_case])
                ]
            logger.exception("A case could not be scored.")
            return [UnscoredError(f"the model failed on it ({type(error).__name__})")]
        return [Answered(case, responses[case_id]) for case_id, case in cases.items()]
