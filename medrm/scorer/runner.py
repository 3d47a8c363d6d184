"""Runs a readout over any number of cases in bounded memory; outputs keep the cases' order.

    items -> lookahead of 8 x batch_rows items -> batches of similar length -> values, in order

Each lookahead is sorted by number of images and length, so that a batch holds little padding, and
cut into batches of at most `batch_rows` rows. While the device computes one batch, a thread decodes
and tokenises the next:

    thread:  encode 0 | encode 1  | encode 2  | ...
    device:           | compute 0 | compute 1 | ...

Shape legend: an item is a case, or several requests about one case; it has R rows, which are never
split between batches. A batch is [rows of all its items, L].
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from peft import PeftModel
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.data.batched import batched
from medrm.errors import DataError
from medrm.failures import GOES_ON, is_out_of_memory
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.models.reward_model import without_adapter
from medrm.schema import Case, State
from medrm.scorer.collator import Collator, Pixels, Row, decode_into, image_count
from medrm.scorer.determinism import fixed_kernels
from medrm.scorer.input_settings import input_settings

Array = NDArray[np.float32]
Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")
Detail = TypeVar("Detail")
Value = TypeVar("Value")

LOOKAHEAD_PER_ROW = 8
"""Items computed together for each row of a batch; of pairs that is 16 batches."""

BATCH_ROWS = 32
"""Rows computed at once unless told otherwise."""


_LOCKS: WeakKeyDictionary[ProcessorMixin, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


def _lock_of(processor: ProcessorMixin) -> threading.RLock:
    """Returns the one lock of a processor and its model, which threads use in turn.

    A fast tokenizer keeps its padding as a state, "Already borrowed" is what two threads get; and
    what a shared prefix or `fixed_kernels` changes of a model would reach the other's forward pass.
    """
    with _NEW_LOCK:
        return _LOCKS.setdefault(processor, threading.RLock())


@dataclass(frozen=True, slots=True)
class PromptRows(Generic[Detail]):
    """The rows of one item, and what a readout needs to know beside the tensors."""

    case: Case
    rows: list[Row]
    detail: Detail


class PromptOutput(NamedTuple, Generic[Detail, Value]):
    """What was computed for one item: values, or a state other than "ok" that says why not."""

    prompts: PromptRows[Detail]
    state: State
    values: Value | None = None

    @property
    def reason(self) -> str | None:
        """The state where it is not "ok", as a `Response` gives it."""
        return None if self.state == "ok" else self.state


def _readable(outputs: Iterable[PromptOutput[Detail, Any]]) -> list[PromptRows[Detail]]:
    return [output.prompts for output in outputs if output.state == "ok"]


def _case_itself(case: Case) -> Case:
    return case


@dataclass(frozen=True, slots=True)
class BatchRunner(Generic[Item, Detail, Value]):
    """Batches items, encodes them and lets a readout compute their values.

    Attributes:
        collator: of the model's processor.
        prompts: makes the rows of an item.
        rows: how many rows an item costs when it is computed.
        read: returns one value for each item of an encoded batch.
        batch_rows: most rows computed at once; an item is never split.
        max_length: tokens of the longest row that is read, image tokens included; None: no limit.
        shares: whether what the rows of an item share stands once in a batch; else they are
            separate.
        deterministic: the model, where every item is a batch of its own and `fixed_kernels`
            compute it; None: any kernels, `batch_rows` rows at once.
        case: of an item.
    """

    collator: Collator
    prompts: Callable[[Item], PromptRows[Detail]]
    rows: Callable[[Item], int]
    read: Callable[[BatchFeature, list[PromptRows[Detail]]], list[Value]]
    batch_rows: int = BATCH_ROWS
    max_length: int | None = None
    shares: bool = False
    deterministic: PreTrainedModel | None = None
    case: Callable[[Any], Case] = _case_itself

    @property
    def lookahead(self) -> int | None:
        """How many items are computed together: rounding depends on the batch composition.

        None: each by itself.
        """
        return LOOKAHEAD_PER_ROW * self.batch_rows if self.deterministic is None else None

    def run(self, items: Iterable[Item]) -> Iterator[PromptOutput[Detail, Value]]:
        """Yields an output for every item, in order.

        An unreadable image and an over-long row are states; any other failure is raised.
        """
        lock = _lock_of(self.collator.processor)
        with ThreadPoolExecutor(1) as pool:
            for lookahead in batched(items, LOOKAHEAD_PER_ROW * self.batch_rows):
                with lock:  # not across a yield: whoever reads the outputs may take any time
                    outputs = self._run_lookahead(lookahead, pool)
                yield from outputs

    def _run_lookahead(
        self, items: list[Item], pool: ThreadPoolExecutor
    ) -> list[PromptOutput[Detail, Value]]:
        outputs: dict[int, PromptOutput[Detail, Value]] = {}
        costs = [self.rows(item) for item in items]
        batch_rows = self.batch_rows if self.deterministic is None else 1
        batches = plan([self.case(item) for item in items], costs, batch_rows)
        pending = pool.submit(self._encode, [items[index] for index in batches[0]])
        for number, indices in enumerate(batches):
            prompted, features = pending.result()
            if number + 1 < len(batches):
                following = [items[index] for index in batches[number + 1]]
                pending = pool.submit(self._encode, following)
            outputs.update(zip(indices, self._compute(prompted, features), strict=True))
        return [outputs[index] for index in range(len(items))]

    def _encode(
        self, items: list[Item]
    ) -> tuple[list[PromptOutput[Detail, Value]], BatchFeature | None]:
        """Encodes what can be read of a batch; the rest has a state that says why it cannot.

        Only the processor knows how many tokens an image becomes. So over-long rows show themselves
        once the batch is encoded, and the rest is encoded again without them.
        """
        pixels: Pixels = {}
        outputs: list[PromptOutput[Detail, Value]] = []
        for prompts in map(self.prompts, items):
            state: State = "ok"
            try:
                decode_into(pixels, prompts.case.images)
            except DataError:
                state = "bad_image"
            outputs.append(PromptOutput(prompts, state))
        readable = _readable(outputs)
        features = self._features(readable, pixels)
        if features is None or self.max_length is None:
            return outputs, features
        lengths = iter(longest_rows(features, [len(prompts.rows) for prompts in readable]))
        fitting = [
            output._replace(state="too_long")
            if output.state == "ok" and next(lengths) > self.max_length
            else output
            for output in outputs
        ]
        if len(_readable(fitting)) < len(readable):
            features = self._features(_readable(fitting), pixels)
        return fitting, features

    def _features(self, readable: list[PromptRows[Detail]], pixels: Pixels) -> BatchFeature | None:
        if not readable:
            return None
        if not self.shares:
            return self.collator.encode(
                [row for prompts in readable for row in prompts.rows], pixels
            )
        cases = [prompts.case for prompts in readable]
        return self.collator.encode_shared(cases, [prompts.rows for prompts in readable], pixels)

    def _compute(
        self, outputs: list[PromptOutput[Detail, Value]], features: BatchFeature | None
    ) -> list[PromptOutput[Detail, Value]]:
        if features is None:
            return outputs
        model = self.deterministic
        kernels = nullcontext() if model is None else fixed_kernels(model, self.shares)
        readable = _readable(outputs)
        with torch.inference_mode(), kernels, self._less_where_memory_lacks(readable):
            values = iter(self.read(features, readable))
        return [
            output._replace(values=next(values)) if output.state == "ok" else output
            for output in outputs
        ]

    @contextmanager
    def _less_where_memory_lacks(self, readable: list[PromptRows[Detail]]) -> Iterator[None]:
        """Says what to lower in the error of a batch that takes too much memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                rows = sum(len(prompts.rows) for prompts in readable)
                lower = f"Lower --evaluation_batch_rows from {self.batch_rows} to {rows // 2}. "
                lower += f"Then {GOES_ON}."
                smaller = "Give smaller images, or weights of less precision."
                error.add_note(f"Scored at once: rows {rows} of {len(readable)} cases.")
                error.add_note(lower if len(readable) > 1 else smaller)
            raise


def by_group(
    groups: Iterable[tuple[Key, Sequence[Item]]],
    compute: Callable[[Iterator[Item]], Iterator[Result]],
) -> Iterator[tuple[Key, list[Result]]]:
    """Yields the key of each group and what was computed of its items.

    Args:
        groups: of one item or more; read only as far as `compute` reads their items.
        compute: yields one result for each item, in order.
    """
    waiting: deque[tuple[Key, int]] = deque()

    def items() -> Iterator[Item]:
        for key, group in groups:
            waiting.append((key, len(group)))
            yield from group

    results = compute(items())
    for result in results:
        key, count = waiting.popleft()
        yield key, [result, *islice(results, count - 1)]


def plan(cases: Sequence[Case], costs: Sequence[int], batch_rows: int) -> list[list[int]]:
    """Returns batches of indices into `cases`: alike in number of images and in length.

    Args:
        cases: any number.
        costs: how many rows each of them costs.
        batch_rows: most rows of a batch that holds more than one case.
    """

    def length(index: int) -> tuple[int, int]:
        case = cases[index]
        return image_count(case), len(case.asked) + max(map(len, case.answers))

    batches: list[list[int]] = []
    used_rows = 0
    for index in sorted(range(len(cases)), key=length):
        other_images = batches and image_count(cases[batches[-1][0]]) != image_count(cases[index])
        if not batches or other_images or used_rows + costs[index] > batch_rows:
            batches.append([])
            used_rows = 0
        batches[-1].append(index)
        used_rows += costs[index]
    return batches


def longest_rows(features: BatchFeature, row_counts: Sequence[int]) -> list[int]:
    """Returns the tokens of each case's longest row.

    Args:
        features: of rows, or with shared prefixes.
        row_counts: how many rows belong to each case.
    """
    shared = features.get(SHARED_PREFIX)
    if shared is not None:
        lengths = zip(shared.prefix_lengths, shared.branch_lengths, strict=True)
        return [prefix + max(branches) for prefix, branches in lengths]
    counts = iter(features["attention_mask"].sum(dim=1).tolist())
    return [max(islice(counts, row_count)) for row_count in row_counts]


def model_settings(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    shares: bool,
    deterministic: bool = False,
) -> dict[str, Any]:
    """Returns precision, attention, input and library versions: the same for all readouts.

    Args:
        model: a stock model, or one with a head or an adapter.
        processor: of the model.
        shares: whether what the rows of a case share is computed once.
        deterministic: whether each row is computed by itself, by `fixed_kernels`.
    """
    base = without_adapter(model)
    config = cast(Any, base.config)
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantisation": _quantisation(config),
        "attn_implementation": config._attn_implementation,
        "shared_prefix": shares,
        "deterministic": deterministic,
        **input_settings(processor),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _quantisation(config: Any) -> str | None:
    """Returns "nf4", "int8" or None, as a contract names it."""
    settings = vars(config).get("quantization_config")
    if settings is None:
        return None
    return "int8" if settings.load_in_8bit else str(settings.bnb_4bit_quant_type)
