"""How a training shows itself: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from medrm.progress_bar import progress_bar

_ACCURACY = {
    "eval_accuracy": "accuracy",
    "eval_mean_token_accuracy": "tokens right",
    "eval_rewards/accuracies": "pairs right",
}
"""How right a reward model, a judge's tokens and a judge's pairs are, and how that is said."""


class TrainingBar(TrainerCallback):
    """A bar on a terminal, log lines elsewhere; who trains stops the bar.

    Args:
        name: what is trained.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        note = TextColumn("{task.fields[note]}")
        self.bar = progress_bar(TimeElapsedColumn(), TimeRemainingColumn(), note)
        self.task = self.bar.add_task(name, total=None, note="")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Starts the bar where the training starts or resumes."""
        if state.is_world_process_zero:
            self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
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
