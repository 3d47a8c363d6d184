"""The two trainings of a run: the frozen probe and the adapter."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.state import AcceleratorState
from peft import PeftModel
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from medrm.data.store.indexed_cases import concatenate, list_column
from medrm.models.adapter import freeze_backbone, save_adapter
from medrm.models.adapter_config import AdapterConfig, update_adapter_config
from medrm.models.reward_model import head_of
from medrm.objectives.bradley_terry import gathered_head
from medrm.objectives.objective import TrainingInputs
from medrm.pipeline.context import RunContext, stage
from medrm.pipeline.run_folder import checkpoint_of
from medrm.progress_bar import progress_bar
from medrm.scorer.readouts.answer_rewards import RewardModel


def build_trainer(
    context: RunContext, model: PreTrainedModel | PeftModel, output: Path, name: str
) -> Trainer:
    """Returns the objective's trainer of `model`, writing below `output`."""
    # Else a second trainer of one process is refused under DeepSpeed.
    AcceleratorState._reset_state()
    run, arguments = context.run, copy.copy(context.run.training)
    arguments.output_dir = str(output)
    arguments.push_to_hub = False  # the run pushes the adapter folder at its end, not checkpoints
    # Those of all cases: a case that is set aside may be the only one with some label.
    data = replace(run.data, dimensions=list(context.splits.dimensions))
    inputs = TrainingInputs(
        replace(run, training=arguments, data=data),
        model,
        context.collator,
        context.splits.train,
        context.splits.development,
        context.lengths,
    )
    return show_training(context.objective.build_trainer(inputs), name)


def train_probe(context: RunContext) -> PreTrainedModel:
    """Returns a fresh base whose head alone was trained, on the same data and steps."""
    model = freeze_backbone(context.with_head())
    folder = context.folder("frozen_probe") / "training"
    trainer = build_trainer(context, model, folder, "frozen_probe")
    trainer.train()
    trained = gathered_head(trainer, model)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    # Into a fresh model: a DeepSpeed engine may hold the one that was trained.
    model = context.with_head()
    head_of(model).load_state_dict(trained)
    return model


def train_adapter(context: RunContext) -> None:
    """Trains the adapter and the head, and saves them as the adapter folder."""
    run = context.run
    model = context.trainable()
    trainer = build_trainer(context, model, context.output, "training")
    with stage("training"):
        trainer.train(resume_from_checkpoint=checkpoint_of(run, context.output))
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if PartialState().is_main_process:
        save_adapter(
            context.output / "adapter",
            model,
            context.processor,
            trained_config(context, model),
            state_dict,
        )
    PartialState().wait_for_everyone()


def trained_config(context: RunContext, model: PreTrainedModel | PeftModel) -> AdapterConfig:
    """Returns the contract of the trained model, with what it was trained on."""
    run, facts = context.run, context.splits.facts
    cases = concatenate(context.splits.train, context.splits.development)
    images = {digest.decode() for digest in np.unique(list_column(cases, "image_digests")[0])}
    return replace(
        context.new_contract(model, context.splits.dimensions),
        judge=context.judge_spec,
        implicit_beta=run.training.beta if context.readout == "implicit_reward" else None,
        training_data_digest=context.splits.source.digest,
        training_pixel_digests=tuple(sorted({facts[digest].pixel_digest for digest in images})),
    )


def add_statistics(context: RunContext, scorer: RewardModel) -> None:
    """Adds mean and standard deviation of the development cases' scores to the contract."""
    if not PartialState().is_main_process:
        return
    scores = np.concatenate(
        [rewards for _, rewards in scorer.score_cases(context.splits.development)]
    )
    statistics = {
        name: {"mean": float(column.mean()), "std": float(column.std())}
        for name, column in zip(scorer.dimensions, scores.T, strict=True)
    }
    update_adapter_config(context.output / "adapter", score_statistics=statistics)


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

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Ends the bar."""
        self.bar.stop()


def show_training(trainer: Trainer, name: str) -> Trainer:
    """Gives a trainer this bar in place of its own, and returns it."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar(name))
    return trainer
