"""The checkpoint of a training that is stopped: all processes write it after the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from medrm.pipeline import stop_signals


class StopCheckpoint(TrainerCallback):
    """Ends a training with a checkpoint at the end of the step in which a signal came.

    The processes ask each other at each step's end whether one of them was told to stop, which is
    one collective of an integer. What is due at that step is done first: a checkpoint is written
    when its measurement stands, so that who goes on from it has missed nothing.
    """

    def __init__(self) -> None:
        self.signal = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has a checkpoint written where one of the processes was told to stop."""
        by_epoch = IntervalStrategy.EPOCH in (
            args.eval_strategy,
            args.save_strategy,
            args.logging_strategy,
        )
        if not (by_epoch and float(state.epoch or 0).is_integer()):  # else more is due
            self._look(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Does the same where measurements wait for the end of an epoch."""
        self._look(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Does the same after a measurement, which may have taken long."""
        self._look(control)

    def _look(self, control: TrainerControl) -> None:
        state, number = PartialState(), stop_signals.asked()
        if state.num_processes > 1:
            number = int(gather(torch.tensor([number], device=state.device)).max())
        if number:
            self.signal = number
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the training once the checkpoint is written.

        Raises:
            Stopped: in every process.
        """
        if not self.signal:
            return
        stop_signals.ending(self.signal)  # a launcher may stop the last of us when the first ends
        PartialState().wait_for_everyone()  # the checkpoint is that of all
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        stop_signals.end_with(
            self.signal,
            f"Stopped after step {state.global_step} of {state.max_steps}. The checkpoint is "
            f"{folder}; the same command goes on from there.",
        )
