"""A resumed training is the straight one, to the last digit of its weights and of its log.

Trainer saves weights, optimiser, schedule, generators of random numbers and its own state. What it
has computed and not yet logged is lost: the loss since the last line and since the first one, and
what an objective counts beside it. Here each process keeps that in a file of the checkpoint.

Two more of its habits make a resumed run another one. From a checkpoint of the last step it trains
one step more. And from one of an epoch's last step it goes on in the next epoch, without what was
due at the end of that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments

from medrm.failures import naming
from medrm.files import write_atomically

METRICS = "metrics.jsonl"

_OF_THE_MACHINE = re.compile("_runtime$|_per_second$|_time$|_mem_")
"""Names of logged values that differ from run to run: times and memory."""

_LOGGED_SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
"""Trainer's sums of losses: since the last line, before it, and the step of that line."""


class MetricsFile(TrainerCallback):
    """Writes metrics.jsonl: one line for each logging step, the same in every run of one seed.

    A resumed run starts from the lines that its checkpoint knows. Times are left to the other logs.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *unused: Any, **kwargs: Any
    ) -> None:
        """Drops the lines of steps that this run will take (again), and one that was torn."""
        path = Path(str(args.output_dir), METRICS)
        if state.is_world_process_zero and (state.log_history or path.is_file()):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, map(_line, state.log_history))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *unused: Any, **kwargs: Any
    ) -> None:
        """Appends one line."""
        if state.is_world_process_zero:
            path = Path(str(args.output_dir), METRICS)
            with naming(path), path.open("ab") as file:
                file.write(_line(state.log_history[-1]))


def _line(logged: Mapping[str, Any]) -> bytes:
    names = sorted(logged.keys() - {"step", "epoch"})
    line = {name: logged[name] for name in names if not _OF_THE_MACHINE.search(name)}
    return json.dumps({"step": logged["step"], "epoch": logged["epoch"], **line}).encode() + b"\n"


class ExactResume(Trainer):
    """What all trainers share; goes before one of transformers' or TRL's in the bases."""

    model: PreTrainedModel | PeftModel

    tallies: ClassVar[tuple[str, ...]] = ()
    """Names of tensors that every process sums for itself, to be added up in the next line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checkpoint: str | None = None
        self._knows_all_losses = True
        self.epoch_has_ended = False
        self.add_callback(MetricsFile())
        self.add_callback(_Course(self))

    def unlogged(self) -> dict[str, Any]:
        """Returns what this process has computed for the next line of the log."""
        names = (*_LOGGED_SUMS, *self.tallies)
        # Of the model's mode depends which of its metrics TRL adds to a line.
        return {"training": self.model.training, **{name: vars(self)[name] for name in names}}

    def restore_unlogged(self, of_processes: Sequence[Mapping[str, Any]]) -> None:
        """Takes back what `unlogged` gave.

        Args:
            of_processes: this process's own, or, saved by another number of them, that of each.
        """
        (first, *others), is_main = of_processes, self.args.process_index == 0
        for name in _LOGGED_SUMS:
            setattr(self, name, first[name])
        losses = [saved["_tr_loss"] for saved in of_processes]
        self._tr_loss = torch.stack(losses).mean(0).to(self.args.device)
        for name in self.tallies:
            total = torch.stack([saved[name] for saved in of_processes]).sum(0)
            mine = total if not others or is_main else torch.zeros_like(total)
            setattr(self, name, mine.to(self.args.device))
        self.model.train(first["training"])

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        rank, processes = self.args.process_index, self.args.world_size
        torch.save({"processes": processes, **self.unlogged()}, _file(output_dir, rank))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._checkpoint = checkpoint

    def go_on(self) -> None:
        """Takes up what the checkpoint holds, where a training goes on from one."""
        if self._checkpoint is None:
            return
        self.args.eval_on_start = False  # it was measured at the start
        # Trainer keeps the checkpoint's: how often this start logs and saves would go unheard.
        self.state.compute_steps(self.args, self.state.max_steps)  # type: ignore[no-untyped-call]
        files = [_file(self._checkpoint, self.args.process_index)]
        processes = _read(files[0])["processes"] if files[0].is_file() else None
        if processes != self.args.world_size:
            files = sorted(Path(self._checkpoint).glob(_file("", "*").name))
        if files:
            self.restore_unlogged([_read(file) for file in files])
        else:  # a checkpoint of an earlier version
            self._knows_all_losses = False

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at its end
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Does what is due; after the last step of an epoch with what is due at the epoch's end.

        Trainer calls it twice there. What is due stays so until it is done.
        """
        control = self.control
        is_last = control.should_training_stop or control.should_epoch_stop
        if self.epoch_has_ended or not (is_last or self.state.epoch % 1 == 0):
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; the mean loss at the end is that of all steps, also those before a resume."""
        if "train_loss" in logs and self._knows_all_losses:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


class _Course(TrainerCallback):
    """Tells a trainer where in its course it is."""

    def __init__(self, trainer: ExactResume) -> None:
        self.trainer = trainer

    def on_train_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Lets it go on; Trainer has started its sums anew."""
        self.trainer.go_on()

    def on_epoch_begin(self, *unused: Any, **kwargs: Any) -> None:
        """Says that steps follow."""
        self.trainer.epoch_has_ended = False

    def on_epoch_end(self, *unused: Any, **kwargs: Any) -> None:
        """Says that no step of the epoch follows."""
        self.trainer.epoch_has_ended = True


def _file(checkpoint: str, process: int | str) -> Path:
    return Path(checkpoint, f"unlogged_{process}.pth")


def _read(file: Path) -> dict[str, Any]:
    unlogged: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return unlogged
