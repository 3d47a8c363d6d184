"""Shows on the terminal how far a training is."""

from __future__ import annotations

from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from medrm.progress_bar import progress_bar

_ACCURACY = {
    "eval_accuracy": "accuracy",
    "eval_mean_token_accuracy": "tokens right",
    "eval_rewards/accuracies": "pairs right",
}
"""How right a reward model, a judge's tokens and a judge's pairs are, and how that is said."""


class TrainingBar(TrainerCallback):
    """A bar on a terminal, log lines elsewhere.

    Args:
        name: what is trained.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        note = TextColumn("{task.fields[note]}")
        self.bar = progress_bar(TimeElapsedColumn(), TimeRemainingColumn(), note)
        self.task = self.bar.add_task(name, total=None, note="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the bar where the training starts or resumes."""
        if state.is_world_process_zero:
            self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the loss beside the bar, and a line for each measurement."""
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            self.bar.update(self.task, note=f"loss {logs['loss']:.4f}")
        if "eval_loss" in logs:
            measures = [f"development loss {logs['eval_loss']:.4f}"]
            measures += [
                f"{_ACCURACY[name]} {logs[name]:.3f}" for name in _ACCURACY if name in logs
            ]
            step = f"step {state.global_step} of {state.max_steps}"
            self.bar.console.print(f"{self.name}, {step}: {', '.join(measures)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the bar."""
        self.bar.stop()


def show_training(trainer: Trainer, name: str) -> Trainer:
    """Gives a trainer this bar in place of its own, and returns it."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar(name))
    return trainer
