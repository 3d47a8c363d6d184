"""Runs any readout over any number of cases in bounded memory; results keep the cases' order.

A window of cases is sorted by length, cut into batches, read, and given back in its own order.
While one batch is computed, a thread decodes and processes the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature

from medrm.errors import DataError
from medrm.schema import Case, Order, Response
from medrm.scorer.collator import Collator, Pixels, Row, decode_into, kind
from medrm.scorer.token_logprobs import longest_rows

Array = NDArray[np.float32]
Item = TypeVar("Item")
Detail = TypeVar("Detail")
Value = TypeVar("Value")

WINDOW = 8
"""Cases held at a time, for each row of a batch; with pairs a window is 16 batches."""

BATCH_ROWS = 32
"""Rows computed at once unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer says about one presentation of a case.

    Attributes:
        case: as given.
        order: "reversed" shows the second answer first; scalar scores have one order only.
        scores: [K, D] of a scalar model; None for a judge, or where there is a reason.
        reason: why a scalar model has no scores: "bad_image" or "too_long".
        responses: every call of a judge about this order: one, or one for each dimension, times the
            votes.
    """

    case: Case
    order: Order
    scores: Array | None = None
    reason: str | None = None
    responses: tuple[Response, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompts(Generic[Detail]):
    """The rows of one case, and what a readout needs to know beside the tensors."""

    case: Case
    rows: list[Row]
    detail: Detail


class Reading(NamedTuple, Generic[Detail, Value]):
    """What was read from one case: values, or the reason why there are none."""

    prompts: Prompts[Detail]
    values: Value | None
    reason: str | None


def _itself(case: Case) -> Case:
    return case


@dataclass(frozen=True, slots=True)
class Readout(Generic[Item, Detail, Value]):
    """How items become rows and rows become values; an item is a case, or calls about one.

    Attributes:
        collator: encodes the rows.
        prompts: the rows of an item; runs in the preparing thread.
        rows: how many rows an item costs.
        read: one value for each item of an encoded batch.
        forks: makes a batch in which what the rows of an item share stands once; None: the rows are
            separate.
        batch_rows: most rows computed at once; an item is never split.
        max_length: tokens of the longest row that is read, image tokens included; None: no limit.
        case: of an item.
    """

    collator: Collator
    prompts: Callable[[Item], Prompts[Detail]]
    rows: Callable[[Item], int]
    read: Callable[[BatchFeature, list[Prompts[Detail]]], list[Value]]
    batch_rows: int = BATCH_ROWS
    max_length: int | None = None
    forks: Callable[[Sequence[Prompts[Detail]], Pixels], BatchFeature] | None = None
    case: Callable[[Any], Case] = _itself

    @property
    def window(self) -> int:
        """How many items are computed together: rounding depends on the company."""
        return WINDOW * self.batch_rows

    def over(self, items: Iterable[Item]) -> Iterator[Reading[Detail, Value]]:
        """Yields a reading for every item, in order.

        What cannot be read has its reason; any other failure is raised.
        """
        remaining = iter(items)
        with ThreadPoolExecutor(1) as pool:
            while window := list(islice(remaining, self.window)):
                yield from self._window(window, pool)

    def _window(self, items: list[Item], pool: ThreadPoolExecutor) -> list[Reading[Detail, Value]]:
        readings: dict[int, Reading[Detail, Value]] = {}
        costs = [self.rows(item) for item in items]
        batches = plan([self.case(item) for item in items], costs, self.batch_rows)
        pending = pool.submit(self._prepare, [items[place] for place in batches[0]])
        for number, places in enumerate(batches):
            prepared = pending.result()
            if number + 1 < len(batches):
                following = [items[place] for place in batches[number + 1]]
                pending = pool.submit(self._prepare, following)
            readings.update(zip(places, self._read(prepared), strict=True))
        return [readings[place] for place in range(len(items))]

    def _prepare(self, items: list[Item]) -> _Prepared[Detail]:
        """Encodes what can be read of a batch; the rest gets its reason."""
        pixels: Pixels = {}
        prompts: list[Prompts[Detail]] = []
        reasons: list[str | None] = []
        for item in items:
            prompt = self.prompts(item)
            reason = None
            try:
                decode_into(pixels, prompt.case.images)
            except DataError:
                reason = "bad_image"
            prompts.append(prompt)
            reasons.append(reason)
        features = self._encode(prompts, reasons, pixels)
        if features is not None and self.max_length is not None:
            readable = [place for place, reason in enumerate(reasons) if reason is None]
            lengths = longest_rows(features, [len(prompts[place].rows) for place in readable])
            too_long = max(lengths) > self.max_length
            for place, length in zip(readable, lengths, strict=True):
                if length > self.max_length:
                    reasons[place] = "too_long"
            if too_long:
                features = self._encode(prompts, reasons, pixels)
        return _Prepared(prompts, reasons, features)

    def _encode(
        self, prompts: Sequence[Prompts[Detail]], reasons: Sequence[str | None], pixels: Pixels
    ) -> BatchFeature | None:
        readable = _readable(prompts, reasons)
        if not readable:
            return None
        if self.forks is not None:
            return self.forks(readable, pixels)
        return self.collator.encode([row for prompt in readable for row in prompt.rows], pixels)

    def _read(self, prepared: _Prepared[Detail]) -> list[Reading[Detail, Value]]:
        prompts, reasons, features = prepared
        readable = _readable(prompts, reasons)
        values: Iterator[Value] = iter(())
        if features is not None:
            with torch.inference_mode():
                values = iter(self.read(features, readable))
        return [
            Reading(prompt, next(values) if reason is None else None, reason)
            for prompt, reason in zip(prompts, reasons, strict=True)
        ]


def _readable(
    prompts: Sequence[Prompts[Detail]], reasons: Sequence[str | None]
) -> list[Prompts[Detail]]:
    return [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]


class _Prepared(NamedTuple, Generic[Detail]):
    prompts: list[Prompts[Detail]]
    reasons: list[str | None]
    features: BatchFeature | None


def plan(cases: Sequence[Case], costs: Sequence[int], batch_rows: int) -> list[list[int]]:
    """Returns batches of places in `cases`: of one kind (see `kind`) and alike in length.

    Args:
        cases: any number.
        costs: how many rows each of them costs.
        batch_rows: most rows of a batch that holds more than one case.
    """

    def length(place: int) -> tuple[int, int]:
        case = cases[place]
        return kind(case), len(case.question) + max(map(len, case.answers))

    batches: list[list[int]] = []
    used = 0
    for place in sorted(range(len(cases)), key=length):
        cost = costs[place]
        apart = batches and kind(cases[batches[-1][0]]) != kind(cases[place])
        if not batches or apart or used + cost > batch_rows:
            batches.append([])
            used = 0
        batches[-1].append(place)
        used += cost
    return batches


def text_digest(rows: Iterable[Row]) -> str:
    """Returns the SHA-256 of the rows' texts and images."""
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.text, *(ref.digest for ref in row.images)):
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def to_numpy(tensor: torch.Tensor) -> Any:
    """Returns a float32 array on the host."""
    return tensor.float().cpu().numpy()
