"""The one training loop of scalar rewards: transformers' Trainer on planned steps.

Three things are ours:

- The batches. `PlanSampler` gives what `StepPlan` dealt to this process; Trainer's gradient
  accumulation is the plan's rounds, so that it steps exactly where a planned step ends.
- The loss. A step's loss is the sum over its labels of weight x loss, divided by the summed weight
  of the whole step. The division is in the weights already (`Draw.scale`), so each micro-batch adds
  its sum. Trainer, however, divides by the R micro-batches and averages gradients over the P
  processes; `compute_loss` multiplies by R x P, and what is left is the sum.
- The metrics. Each process returns (cases, most answers, D) rewards with the cases' indices, padded
  to one shape for the gather; then every process computes loss, accuracy and margin over all cases.

A case is a prefix of Lp tokens (question and images) and K answers of L1 ... LK. The layout of a
batch says what its cases compute, of which `max_tokens_per_batch` is the limit:

    "answers"   K rows per case, all padded to the longest row of the batch: K x max(Lp + Lk)
    "cases"     one row per case, padded to the longest of the batch:        max(Lp + L1 + ... + LK)
    "packed"    one row for the whole batch, not padded:                     Lp + L1 + ... + LK

Shape legend: B cases of a micro-batch, `rows` one for each answer of each case, D dimensions.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EvalPrediction, PreTrainedModel
from trl.models import get_act_offloading_ctx_manager

from medrm.data.store.indexed_cases import TokenCounts, column, tokens_of
from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import RewardOutput, head_of
from medrm.objectives.checkpoint_weights import NamedAsInMemory
from medrm.objectives.data_workers import watched
from medrm.objectives.exact_resume import ExactResume
from medrm.objectives.objective import BradleyTerryConfig, TrainingInputs
from medrm.objectives.rates import measured, rates_of
from medrm.objectives.sharding import ShardedTraining
from medrm.objectives.step_plan import Draw, StepPlan, TokenBudget
from medrm.objectives.targets import Targets, tally
from medrm.objectives.training_faults import WatchedCases
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.schema import Case

logger = logging.getLogger(__name__)

Layout = Literal["answers", "cases", "packed"]
"""What a row of a batch is: an answer, a case with its shared prefix, or the whole batch."""

MakeRows = Callable[[Sequence[Case]], Mapping[str, Any]]
"""Turns cases into the model's inputs, one row for each answer, case-major."""

_PADDING = -1
"""Case index of rows that pad a batch up to its size: all processes must gather the same shape."""


def layout_of(model: PreTrainedModel) -> Layout:
    """Returns how a stock model's batches lie."""
    if not shares_prefix(model):
        return "answers"
    return "cases" if family_of(model.config).cross_attention else "packed"


def check_budget(
    max_tokens: int | None, cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> None:
    """Refuses a case that no batch can hold.

    Args:
        max_tokens: of a batch; None: no limit.
        cases: any.
        lengths: their tokens.
        layout: of the batches.

    Raises:
        ConfigError: such a case.
    """
    if max_tokens is None:
        return
    tokens, rows = _row_tokens(cases, lengths, layout)
    case_tokens = tokens if rows is None else tokens * rows
    over = int((case_tokens > max_tokens).sum())
    if over:
        longest = int(case_tokens.argmax())
        raise ConfigError(
            f"max_tokens_per_batch is {max_tokens}, but {over} cases alone have more; the longest, "
            f"{cases[longest].case_id!r}, has {case_tokens[longest]} tokens. Give at least "
            f"{case_tokens[longest]}, or set long cases aside with max_length."
        )


def make_plan(
    args: BradleyTerryConfig,
    cases: Sequence[Case],
    lengths: TokenCounts,
    layout: Layout,
    weights: NDArray[Any],
    training: bool,
) -> StepPlan:
    """Returns the plan of a training, or of one pass over cases.

    Args:
        args: of the training.
        cases: any.
        lengths: their tokens.
        layout: of the batches.
        weights: summed label weight of each case.
        training: whether steps are taken; else all cases are one step of one epoch.
    """
    tokens, budget = tokens_of(cases, lengths), None
    global_batch_cases = args.global_batch_cases if training else len(cases)
    if args.max_tokens_per_batch is not None:
        tokens, rows = _row_tokens(cases, lengths, layout)
        steps = math.ceil(len(cases) / global_batch_cases)
        epochs = args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs
        budget = TokenBudget(args.max_tokens_per_batch, rows, math.ceil(epochs) if training else 1)
    split = "train" if training else "eval"
    return StepPlan(
        lengths=tokens,
        weights=weights,
        image_counts=column(cases, "image_count"),
        global_batch_cases=global_batch_cases,
        micro_batch_cases=getattr(args, f"per_device_{split}_batch_size"),
        processes=args.world_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        budget=budget,
    )


def _row_tokens(
    cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Returns the tokens of a row of each case, and its rows; None where nothing is padded."""
    if layout == "answers":
        return tokens_of(cases, lengths), column(cases, "answer_count").astype(np.int64)
    unique = tokens_of(cases, lengths, "unique")
    return unique, np.ones_like(unique) if layout == "cases" else None


class DrawnCases(Dataset[tuple[Case, Draw]]):
    """Cases by draw."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, draw: Draw) -> tuple[Case, Draw]:
        return self.cases[draw.case], draw


class PlanSampler(Sampler[list[Draw]]):
    """The micro-batches of one process in the epoch that `epoch` says when iteration starts."""

    def __init__(self, plan: StepPlan, process: int, epoch: Callable[[], int]) -> None:
        self.plan, self.process, self.epoch = plan, process, epoch

    def __len__(self) -> int:
        return self.plan.steps * self.plan.rounds

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.plan.micro_batches(self.epoch(), self.process)


def collate(
    make_rows: MakeRows, targets: Targets, drawn: Sequence[tuple[Case, Draw]]
) -> dict[str, Any]:
    """Returns one micro-batch: the model's `rows`, the labels' `groups`, the cases' `indices`."""
    cases = [case for case, _ in drawn]
    return {
        "rows": dict(make_rows(cases)),
        "groups": targets.groups(cases, [draw.scale for _, draw in drawn]),
        "indices": torch.tensor([draw.case for _, draw in drawn]),
    }


def _activation_context(args: BradleyTerryConfig, model: nn.Module) -> AbstractContextManager[Any]:
    """Returns where activations are kept from the forward to the backward pass of a step."""
    manager: AbstractContextManager[Any] = nullcontext()
    if args.activation_offloading and args.device.type == "cpu":
        logger.info("activation_offloading: the activations are in the CPU's memory as it is")
    elif args.activation_offloading:
        manager = get_act_offloading_ctx_manager(model)
    return manager


class PreferenceTrainer(
    WholeCheckpoints, NamedAsInMemory, WatchedCases, ShardedTraining, ExactResume
):
    """Trains a model whose forward returns a `RewardOutput`.

    Args:
        inputs: whose cases each have a label of positive weight.
        args: a copy of the run's training arguments; the accumulation that the plan asks for is
            written into it.
        targets: how labels become targets.
        make_rows: makes the model's inputs.
        layout: of the batches that `make_rows` makes.
        pooled_head: the head alone, to train on pooled states; None: the model itself is trained,
            and its processor saved beside the checkpoints.
    """

    args: BradleyTerryConfig
    tallies = ("_tally",)

    def __init__(
        self,
        inputs: TrainingInputs,
        args: BradleyTerryConfig,
        targets: Targets,
        make_rows: MakeRows,
        layout: Layout,
        pooled_head: nn.Module | None = None,
    ) -> None:
        self.targets, self.head, self.layout = targets, head_of(inputs.model), layout
        self.development = inputs.development
        self.plan, self._eval_plan = (
            make_plan(
                args, cases, inputs.lengths, layout, targets.weights_of(cases).sum(axis=1), training
            )
            for cases, training in ((inputs.train, True), (inputs.development, False))
        )
        args.gradient_accumulation_steps = self.plan.rounds
        model = inputs.model if pooled_head is None else pooled_head
        super().__init__(
            model=model,
            args=args,
            data_collator=functools.partial(collate, make_rows, targets),
            train_dataset=DrawnCases(inputs.train),
            eval_dataset=DrawnCases(inputs.development),
            processing_class=inputs.collator.processor if pooled_head is None else None,
            compute_metrics=self._metrics,
        )
        # Our loss is a sum; the Trainer's division by the accumulation is undone in compute_loss.
        self.model_accepts_loss_kwargs = False
        self._tally = torch.zeros(3, len(targets.dimensions), device=self.args.device)
        self._tie_logits: Tensor | None = None
        self._activations = _activation_context(self.args, model)
        self.case_of = lambda index: inputs.train[index].case_id

    def _loader(self, cases: Any, plan: StepPlan, epoch: Callable[[], int]) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            cases,
            batch_sampler=PlanSampler(plan, self.args.process_index, epoch),
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            # Of its own, so that iterating leaves the global generator as it was.
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        return watched(loader, self.args)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns this process's micro-batches; the epoch follows from the optimiser steps done.

        So a resumed run meets the very cases that the straight run would have met.
        """
        steps = self.plan.steps
        return self._loader(self.train_dataset, self.plan, lambda: self.state.global_step // steps)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Returns this process's share of the development cases, like lengths together.

        Raises:
            ValueError: another data set is asked for.
        """
        if eval_dataset not in (None, self.eval_dataset):
            raise ValueError("the trainer measures its own development cases alone")
        return self._loader(self.eval_dataset, self._eval_plan, lambda: 0)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the loss of a micro-batch after its backward pass; TRL's trainers do the same."""
        with self._activations:
            return super().training_step(*args, **kwargs)

    def compute_loss(  # type: ignore[override] # never asked for outputs beside the loss
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Returns this micro-batch's part of the step's loss.

        Trainer averages gradients over the P processes and divides them by the R micro-batches of
        a step; the factor R x P undoes both.
        """
        output: RewardOutput = model(**inputs["rows"])
        assert output.rewards is not None
        loss: Tensor = torch.zeros((), device=self.args.device)
        for label_group in inputs["groups"]:
            group = label_group.to(self.args.device)
            losses = self.targets.losses(group, output.rewards, output.tie_logits)
            loss = loss + (group.weights * losses).sum()
            self._tally += tally(group, output.rewards)
        factor: int = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        return loss * factor

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *unused: Any, **kwargs: Any
    ) -> tuple[None, Tensor, Tensor]:
        """Returns rewards (cases, most answers, D) and the cases' indices, both padded.

        One row for each case: the Trainer's gather would cut rows of answers short.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output: RewardOutput = model(**inputs["rows"])
        assert output.rewards is not None
        self._tie_logits = None if output.tie_logits is None else output.tie_logits.cpu()
        size = self.args.per_device_eval_batch_size
        assert size is not None
        answers = int(column(self.development, "answer_count").max())
        rewards = output.rewards.new_full((size, answers, output.rewards.shape[-1]), torch.nan)
        indices = inputs["indices"].new_full((size,), _PADDING)
        indices[: len(inputs["indices"])] = inputs["indices"]
        counts = [len(self.development[index].answers) for index in inputs["indices"].tolist()]
        for row, case_rewards in enumerate(torch.split(output.rewards, counts)):
            rewards[row, : len(case_rewards)] = case_rewards
        return None, rewards, indices

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns loss, accuracy and margin, for each dimension and their mean, and by set."""
        rewards, indices = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        row_of = {int(index): row for row, index in enumerate(indices) if index != _PADDING}
        return measured(
            self.targets, self.development, lambda n: rewards[row_of[n]], self._tie_logits
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; a training line gains accuracy and margin since the line before, of all ranks."""
        if "loss" in logs:
            counts = self.accelerator.reduce(self._tally, reduction="sum")
            logs = {**logs, **rates_of(counts, self.targets.dimensions)}
            self._tally = torch.zeros_like(self._tally)
        super().log(logs, start_time)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """Returns the optimiser with the head's parameters in groups of their own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args)
        if not fresh:
            return optimizer
        head = {id(parameter) for parameter in self.head.parameters()}
        groups = []
        for group in optimizer.param_groups:
            for in_head, options in ((False, {}), (True, {"lr": self.args.head_learning_rate})):
                members = [p for p in group["params"] if (id(p) in head) == in_head]
                groups.append({**group, "params": members, **options})
        optimizer.param_groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the Trainer's estimate for the model's inputs."""
        return int(super().floating_point_ops(inputs["rows"]))
