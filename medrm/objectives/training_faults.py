"""What ends a training that is no bug: losses and gradients that are no numbers, too little memory.

A step whose loss or gradient is NaN or infinite ends the training before the weights are changed,
under DeepSpeed, which looks at the gradients and applies them at once, before they are saved; the
cases of the step are kept in `nan_batch.json`. Where memory does not suffice, the error says
what the step held, which option to lower, and to what.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medrm.errors import RunFailed
from medrm.failures import GOES_ON, is_out_of_memory
from medrm.files import write_atomically
from medrm.objectives.objective import BradleyTerryConfig
from medrm.objectives.step_plan import StepPlan

NAN_FILE = "nan_batch.json"

NUMBERS = "example_numbers"
"""The key of a batch under which the numbers of its examples stand; the model does not see it."""

_NAMED = 8
"""Cases that a message names; the file has all."""

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
"""Turns rows of `judge_collator.numbered` into a batch."""


class MicroBatch(NamedTuple):
    """What one process learned from at once."""

    numbers: Sequence[int] | Tensor
    loss: Tensor


def numbering(collate: Collate) -> Collate:
    """Returns a collator whose batches also hold the numbers of their examples."""
    return partial(_with_numbers, collate)  # data workers can be sent one


def _with_numbers(collate: Collate, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**collate(rows), NUMBERS: [row["row"] for row in rows]}


class WatchedSteps(Trainer):
    """Goes before a trainer of transformers or TRL in the bases.

    Attributes:
        case_of: the case id of a case or example by its number.
        draws: what each process draws for its own rows; where it is anything, a training with
            other micro-batches is another one.
        measures_alike: whether batches of another size measure the development split alike; a
            judge's loss is a mean over batches, of means over their tokens.
    """

    args: TrainingArguments
    case_of: Callable[[int], str] = str
    draws: Collection[str] = ()
    measures_alike = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._micro_batches: list[MicroBatch] = []
        self.add_callback(_Watch(self))

    def numbers_of(self, batch: Any) -> Sequence[int] | Tensor:
        """Takes the numbers of its cases or examples out of a batch that the loader gives."""
        numbers: list[int] = batch.pop(NUMBERS)
        return numbers

    @property
    def goes_on_with_less(self) -> bool:
        """Whether a run goes on with smaller micro-batches, as `run_identity` has it."""
        rows: Any = self.train_dataset
        at_once = self.args.per_device_train_batch_size * self.args.world_size
        return not self.draws and len(rows) % at_once == 0

    def less_at_once(self, batch: Any, count: int) -> str | None:
        """Returns by which options a device learns from less at once, and to what; None: by none.

        Args:
            batch: that did not fit.
            count: its cases or examples.
        """
        args = self.args
        return fewer_rows(args.per_device_train_batch_size, args.gradient_accumulation_steps)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the loss of a micro-batch after its backward pass, and remembers both."""
        numbers = self.numbers_of(inputs)
        try:
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                held = f"Learned from at once: {_size(inputs, len(numbers))}."
                less = self.less_at_once(inputs, len(numbers))
                _note(error, [held, *_advice(self.args, less, self.goes_on_with_less)])
            raise
        self._micro_batches.append(MicroBatch(numbers, loss.detach()))
        return loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Measures one batch of the development split."""
        self.numbers_of(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the development split."""
        with _measuring(self.args.per_device_eval_batch_size, self.measures_alike):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def check_step(self, model: nn.Module) -> None:
        """Ends the training on all processes where the step is no number on any.

        Raises:
            RunFailed: says what to try.
        """
        losses = torch.stack([batch.loss.float() for batch in self._micro_batches])
        norm = self._gradient_norm(model)
        is_number = losses.isfinite().all()
        if self.accelerator.scaler is None:  # which leaves such a step out, and lowers its scale
            is_number = is_number & norm.isfinite()
        wrong = self.accelerator.reduce((~is_number).float(), reduction="sum")
        if wrong.item():
            self._stop()
        self._micro_batches.clear()

    def _gradient_norm(self, model: nn.Module) -> Tensor:
        """Returns the norm of this process's gradients; after clipping, NaN where one was not."""
        if self.is_deepspeed_enabled:  # which has clipped and applied them already
            engine: Any = self.model_wrapped
            applied = engine.get_global_grad_norm()
            return torch.as_tensor(applied or 0.0, device=self.args.device)
        gradients = (p.grad for p in model.parameters() if p.grad is not None)
        return torch.nn.utils.get_total_norm(
            [own.to_local() if isinstance(own, DTensor) else own for own in gradients]
        )

    def _stop(self) -> None:
        """Keeps the step's cases and ends the training."""
        step, process = self.state.global_step + 1, self.args.process_index
        held = gather_object(
            [
                {
                    "process": process,
                    "case_ids": list(map(self.case_of, map(int, batch.numbers))),
                    "loss": _written(float(batch.loss)),
                }
                for batch in self._micro_batches
            ]
        )
        path = Path(str(self.args.output_dir), NAN_FILE)
        if self.state.is_world_process_zero:
            record = {"step": step, "micro_batches": held}
            write_atomically(path, [json.dumps(record, indent=2).encode(), b"\n"])
        losses = [batch["loss"] for batch in held if isinstance(batch["loss"], str)]
        what = f"the loss is {losses[0]}" if losses else "the gradient is not finite"
        suspects = [batch for batch in held if isinstance(batch["loss"], str)] or held
        cases = list(dict.fromkeys(case for batch in suspects for case in batch["case_ids"]))
        raise RunFailed(
            f"Training stopped at step {step} of {self.state.max_steps}: {what}. The weights of "
            f"this step were not saved. Its cases: {_listed(cases)}; {path} holds all, with their "
            f"losses. Look at them, and {'; or '.join(_gentler(self.args))}. With another value it "
            "is another run: give another --output_dir, or --overwrite_output_dir true."
        )


class WatchedCases(WatchedSteps):
    """Of a trainer whose steps are planned in cases."""

    args: BradleyTerryConfig
    plan: StepPlan
    measures_alike = True

    @property
    def goes_on_with_less(self) -> bool:
        """Whether a run goes on with smaller micro-batches: steps are planned in cases."""
        return not self.draws

    def numbers_of(self, batch: Any) -> Tensor:
        """Returns the indices of a batch's cases."""
        indices: Tensor = batch["indices"]
        return indices

    def less_at_once(self, batch: Any, count: int) -> str | None:
        """Returns by which option a device learns from less at once, and to what; None: by none."""
        tokens = batch["rows"]["input_ids"].numel()
        return fewer_cases(self.args, count, tokens, self.plan.most_tokens)


class _Watch(TrainerCallback):
    """Checks each step between its backward pass and the optimiser, and each measurement."""

    def __init__(self, trainer: WatchedSteps) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *unused: Any, **kwargs: Any
    ) -> None:
        """Removes what an earlier start has left."""
        if state.is_world_process_zero:
            Path(str(args.output_dir), NAN_FILE).unlink(missing_ok=True)

    def on_pre_optimizer_step(
        self, *unused: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Stops before the weights are changed."""
        assert model is not None
        self.trainer.check_step(model)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Stops before a checkpoint that cannot measure the development split is written.

        Raises:
            RunFailed: says what to try.
        """
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise RunFailed(
                f"Training stopped after step {state.global_step} of {state.max_steps}: the loss "
                f"on the development split is {loss}. No checkpoint of this step was written. "
                f"{'; or '.join(_gentler(args)).capitalize()}. With another value it is another "
                "run: give another --output_dir, or --overwrite_output_dir true."
            )


def fewer_rows(batch_size: int, accumulation: int) -> str | None:
    """Returns how a judge's step is cut into smaller micro-batches; None: it cannot be."""
    if batch_size == 1:
        return None
    factor = next(n for n in range(2, batch_size + 1) if batch_size % n == 0)
    return (
        f"--per_device_train_batch_size from {batch_size} to {batch_size // factor} and "
        f"raise --gradient_accumulation_steps from {accumulation} to {accumulation * factor}"
    )


def fewer_cases(args: BradleyTerryConfig, count: int, tokens: int, longest: int) -> str | None:
    """Returns how half of the cases of a planned step are computed at once; None: it is one.

    Args:
        args: of the training.
        count: cases of the batch that did not fit.
        tokens: its tokens.
        longest: tokens of the longest case, which must fit.
    """
    limit = args.max_tokens_per_batch
    if limit is None and count > 1:
        size = args.per_device_train_batch_size
        return f"--per_device_train_batch_size from {size} to {count // 2}"
    if limit is not None and (half := max(tokens // 2, longest)) < min(limit, tokens):
        return f"--max_tokens_per_batch from {limit} to {half}"
    return None


@contextmanager
def _measuring(batch_size: int, alike: bool) -> Iterator[None]:
    """Says what to lower where measuring the development split takes too much memory.

    Args:
        batch_size: of each device.
        alike: whether a lower one measures the same.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            lower = f"--per_device_eval_batch_size from {batch_size} to {batch_size // 2}"
            ways = [f"Lower {lower}."] if batch_size > 1 and alike else []
            others = [f"lower {lower}"] if batch_size > 1 and not alike else []
            _note(error, ["Measuring the development split.", *_ways_on(ways, others)])
        raise


def _note(error: BaseException, notes: Iterable[str]) -> None:
    for note in notes:
        error.add_note(note)


def _size(batch: Any, count: int) -> str:
    """Returns what a batch of so many cases or examples holds, with its rows x tokens."""
    is_planned = isinstance(batch, dict) and "rows" in batch
    rows = batch["rows"] if is_planned else batch
    ids = rows["input_ids"] if isinstance(rows, Mapping) else None
    held = f"{'cases' if is_planned else 'examples'} {count}"
    return held if ids is None else f"{held}, tokens {' x '.join(map(str, ids.shape))}"


def _advice(args: TrainingArguments, less: str | None, goes_on_with_less: bool) -> list[str]:
    """Returns what to do where a micro-batch takes too much memory, what changes nothing first."""
    ways = ["Set --gradient_checkpointing true: the same numbers, in more time."]
    ways = [] if args.gradient_checkpointing else ways
    if less is None:
        return ["No fewer can be computed at once.", *_ways_on(ways, [])]
    if not goes_on_with_less:
        return _ways_on(ways, [f"lower {less}"])
    ways.append(f"{'Or lower' if ways else 'Lower'} {less}: the steps stay the same.")
    return _ways_on(ways, [])


def _ways_on(ways: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns what to do, in sentences.

    Args:
        ways: sentences of options with which a run goes on.
        others: options with which it is another run.
    """
    others = [*others, "fewer --max_pixels, a lower --max_length, or --load_in_4bit true"]
    return [
        *ways,
        *[f"Then {GOES_ON}."] * bool(ways),
        f"As another run ({_REPLACED}): {'; or '.join(others)}.",
    ]


_REPLACED = "--overwrite_output_dir true or another --output_dir"


def _gentler(args: TrainingArguments) -> list[str]:
    """Returns what may keep losses and gradients finite."""
    return [
        f"lower --learning_rate (now {args.learning_rate:g})",
        *["train in bfloat16 (--fp16 false --bf16 true)"] * bool(args.fp16),
        *["train in float32 (--bf16 false)"] * bool(args.bf16),
        *["clip gradients (--max_grad_norm 1)"] * (args.max_grad_norm <= 0),
    ]


def _written(number: float) -> float | str:
    """Returns a number as JSON has it; NaN and infinity are words."""
    return number if math.isfinite(number) else str(number)


def _listed(cases: Sequence[str]) -> str:
    """Returns the first cases and how many there are further."""
    rest = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return ", ".join(map(repr, cases[:_NAMED])) + rest
