"""The Bradley-Terry objective: a scalar reward for each dimension, learned from preferences.

The frozen probe is the same with a head trained on hidden states that are computed once. With
everything but the head frozen, what the head reads of a case never changes. Cases, order, steps and
loss stay those of the ordinary trainer; only the rows of a batch are looked up.

    cases -> frozen model -> pooled states (rows, O, H) in one file, mapped into memory
    batch of cases -> their rows of the file -> `PooledHead` -> rewards (rows, D)

Processes share the computing and gather what each has; one process of each machine writes the file,
which all of them map. It is unlinked at once: the mapping keeps it until the last process ends.

Shape legend: rows = one for each answer of each case, case-major; K answers of a case, O orders in
which answers that see each other are read (else 1), H hidden size.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BatchFeature, PreTrainedModel, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from medrm.config.parse import Run
from medrm.data.store.indexed_cases import TokenCounts, column, concatenate, select
from medrm.errors import ConfigError, DataError, applying, nearest, refuse
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import HeadSpec, RewardHead, RewardOutput, head_of, without_adapter
from medrm.objectives.data_workers import watched
from medrm.objectives.losses import PAIR_LOSSES
from medrm.objectives.objective import (
    BradleyTerryConfig,
    Objective,
    TrainingInputs,
    autocast_under_deepspeed,
    report_unlearned,
    visible_gpu_problems,
)
from medrm.objectives.sharding import whole
from medrm.objectives.step_preview import preview_planned
from medrm.objectives.targets import Targets, tie_shares
from medrm.objectives.trainer import Layout, PreferenceTrainer, check_budget, layout_of, make_plan
from medrm.schema import Case
from medrm.scorer.collator import check_contextual

logger = logging.getLogger(__name__)


class PooledHead(nn.Module):
    """A reward head whose rows are hidden states instead of tokens and pixels."""

    def __init__(self, head: RewardHead) -> None:
        super().__init__()
        self.score = head

    def forward(self, states: Tensor) -> RewardOutput:
        """Returns the rewards of states (rows, O, H)."""
        rewards, tie_logits = self.score(states)
        return RewardOutput(rewards=rewards.mean(dim=1), tie_logits=tie_logits)


def trains_head_alone(model: PreTrainedModel | PeftModel) -> bool:
    """Returns whether every parameter outside the head is frozen."""
    head = {id(parameter) for parameter in head_of(model).parameters()}
    return all(id(p) in head for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class PooledStates:
    """What the head reads of cases.

    Attributes:
        values: (rows, O, H), a row for each answer; in a file that is mapped into memory.
        starts: case id to its first row.
    """

    values: Tensor
    starts: Mapping[str, int]

    def of(self, case: Case) -> Tensor:
        """Returns the states of a case, (K, O, H)."""
        start = self.starts[case.case_id]
        return self.values[start : start + len(case.answers)]

    def rows(self, cases: Sequence[Case]) -> dict[str, Tensor]:
        """Returns the inputs of `PooledHead`: one row for each answer, case-major."""
        return {"states": torch.cat([self.of(case) for case in cases])}


def learned_from(
    args: BradleyTerryConfig, cases: Sequence[Case], lengths: TokenCounts
) -> Sequence[Case]:
    """Returns the cases that the training meets; fewer than all where it ends within an epoch."""
    # Which cases a step has does not depend on the layout.
    plan = make_plan(args, cases, lengths, "packed", np.ones(len(cases)), training=True)
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * plan.steps)
    if steps >= plan.steps:
        return cases
    return select(cases, np.sort(np.concatenate(plan.step_cases(0)[:steps])))


def pooled_states(
    model: PreTrainedModel | PeftModel,
    args: BradleyTerryConfig,
    encode: Callable[[Sequence[Case]], BatchFeature],
    cases: Sequence[Case],
    lengths: TokenCounts,
) -> PooledStates:
    """Returns what the head reads of cases; processes share the work."""
    layout = layout_of(without_adapter(model))
    plan = make_plan(args, cases, lengths, layout, np.ones(len(cases)), training=False)
    # A process that runs fewer cases than another still takes part in every gather.
    batches = [
        [draw.case for draw in draws if draw.scale > 0]
        for draws in plan.micro_batches(0, args.process_index)
    ]
    loader: DataLoader[BatchFeature] = DataLoader(
        cases,  # type: ignore[arg-type]
        batch_sampler=[batch for batch in batches if batch],
        collate_fn=encode,
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator().manual_seed(args.seed),
    )
    loader = watched(loader, args)
    model.to(args.device)  # type: ignore[arg-type]
    model.eval()
    logger.info("hidden states of %d cases for the frozen probe", len(cases))
    # One file for each machine, named by the first of its processes.
    path = Path(str(args.output_dir), f"states-{args.process_index - args.local_process_index}.bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = column(cases, "answer_count").astype(np.int64)
    first_rows, starts, inputs = np.cumsum(answers) - answers, dict[str, int](), iter(loader)
    with path.open("wb") if args.local_process_index == 0 else nullcontext() as file:
        for batch in batches:
            computed = []
            if batch:
                states = _pooled(model, args, next(inputs))
                split = torch.split(states, [len(cases[index].answers) for index in batch])
                # Clones: a slice would be sent with the whole batch behind it.
                computed = [
                    (index, cases[index].case_id, case_states.clone())
                    for index, case_states in zip(batch, split, strict=True)
                ]
            for index, case_id, case_states in gather_object(computed):
                start = starts[case_id] = int(first_rows[index])
                row = case_states[:1]
                if file is not None:
                    file.seek(start * row.nbytes)
                    file.write(case_states.view(torch.uint8).numpy())
    PartialState().wait_for_everyone()
    row_count = int(answers.sum())
    values = torch.from_file(str(path), size=row_count * row.numel(), dtype=row.dtype)
    PartialState().wait_for_everyone()
    if args.local_process_index == 0:
        path.unlink()  # it is gone when the last process ends
    return PooledStates(values.view(row_count, *row.shape[1:]), starts)


def _pooled(
    model: PreTrainedModel | PeftModel, args: BradleyTerryConfig, inputs: BatchFeature
) -> Tensor:
    """Returns what the head reads of a batch, (rows, O, H) on the CPU."""
    with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        reward_model: Any = without_adapter(model)
        states: Tensor = reward_model.reward_states(**inputs.to(args.device)).cpu()
    return states


def gathered_head(trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Returns all of the trained head's weights; all processes call it together.

    Under ZeRO-3 and FSDP2 each process keeps a share of every weight, and the model runs in their
    engine alone: put the weights into a model of their own to score with them.

    Args:
        trainer: of the probe, after training.
        model: whose head it trained.
    """
    head = head_of(model)
    plugin = trainer.args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return {name: whole(tensor.detach()).clone() for name, tensor in head.state_dict().items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(head.parameters())):
        return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def head_spec(run: Run, dimensions: Sequence[str], train: Sequence[Case]) -> HeadSpec:
    """Returns the head that the run's options and labels ask for.

    A dimension whose training labels hold no tie gets none to model.
    """
    tied: tuple[str, ...] = ()
    if PAIR_LOSSES[run.training.ties].initial_tie is not None:
        tied = tuple(name for name, share in tie_shares(train, dimensions).items() if share > 0)
    return HeadSpec(
        dimensions=tuple(dimensions),
        kind=run.model.head,
        hidden_size=run.model.head_hidden_size,
        ties=run.training.ties if tied else "none",
        tied_dimensions=tied,
    )


def make_targets(options: BradleyTerryConfig, spec: HeadSpec) -> Targets:
    """Returns how labels become targets for a head.

    Raises:
        ConfigError: a weight for a dimension that is not learned.
    """
    weights = options.weights_by_dimension
    for name in weights:
        if name not in spec.dimensions:
            raise ConfigError(
                f"dimension_weights names {name!r}; the run learns "
                f"{', '.join(spec.dimensions)}.{nearest(name, spec.dimensions)}"
            )
    return Targets(
        dimensions=spec.dimensions,
        dimension_weights=tuple(weights.get(name, 1.0) for name in spec.dimensions),
        # A loss whose tie parameter no dimension needs is plain Bradley-Terry.
        ties=spec.ties if PAIR_LOSSES[options.ties].initial_tie else options.ties,
        tied=tuple(name in spec.tied_dimensions for name in spec.dimensions),
        vote_targets=options.vote_targets,
        label_smoothing=options.label_smoothing,
        margin=options.margin,
        weight_by_votes=options.weight_by_votes,
        center_rewards_coefficient=options.center_rewards_coefficient,
    )


def check(
    run: Run, dimensions: Sequence[str], train: Sequence[Case], development: Sequence[Case]
) -> None:
    """Refuses what can be known to be wrong without a model; see `Objective.check`.

    Raises:
        ConfigError: options that do not fit the labels or the devices.
        DataError: no case with a label to learn from.
    """
    args: BradleyTerryConfig = run.training
    checks = {
        "lora_vision with gradient_checkpointing under ZeRO-3 would leave the vision adapter "
        "without gradient; turn one of the three off (zero2 works)": (
            bool(args.gradient_checkpointing) and run.adapter.lora_vision and _zero3()
        ),
    }
    refuse([*visible_gpu_problems(args.n_gpu), *applying(checks)])
    targets = make_targets(args, head_spec(run, dimensions, train))
    targets.check(concatenate(train, development))
    for split, cases in (("training", train), ("development", development)):
        if not len(_labelled(cases, targets)):
            raise DataError(
                f"none of {len(cases)} {split} cases carries a label for "
                f"{', '.join(targets.dimensions)} under vote_targets {targets.vote_targets}; give "
                "labelled cases"
            )


def check_lengths(run: Run, cases: Sequence[Case], lengths: TokenCounts) -> None:
    """Refuses cases that no batch can hold; see `Objective.check_lengths`.

    A model that cannot share prefixes is not known yet; `build_trainer` checks again.
    """
    layout: Layout = "packed" if run.model.shared_prefix == "on" else "answers"
    check_budget(run.training.max_tokens_per_batch, cases, lengths, layout)


def build_trainer(inputs: TrainingInputs) -> PreferenceTrainer:
    """Returns the trainer of `inputs.model`.

    A model that is frozen but for its head is trained on its hidden states, computed here once.

    Raises:
        ConfigError: options that do not fit the labels or the devices.
        DataError: no case with a label to learn from.
    """
    run, model, lengths = inputs.run, inputs.model, inputs.lengths
    args: BradleyTerryConfig = copy.copy(run.training)
    head = head_of(model)
    check(run, head.spec.dimensions, inputs.train, inputs.development)
    targets = make_targets(args, head.spec)
    labelled = [_labelled(cases, targets) for cases in (inputs.train, inputs.development)]
    for cases, learned in zip((inputs.train, inputs.development), labelled, strict=True):
        report_unlearned(len(cases), len(learned), f"vote_targets {targets.vote_targets}")
    inputs = replace(inputs, train=labelled[0], development=labelled[1])
    all_cases = concatenate(inputs.train, inputs.development)
    _start_ties(head, inputs.train)
    autocast_under_deepspeed(args)
    # A step may leave trained weights out, which DDP must then look for: without an image neither
    # an adapted vision tower nor cross-attention to it runs.
    without_image = bool((column(all_cases, "image_count") == 0).any())
    args.ddp_find_unused_parameters = without_image or run.adapter.lora_vision
    base, collator = without_adapter(model), inputs.collator
    check_contextual(collator.contextual_orders, shares_prefix(base))
    encode = collator.shared_rows if shares_prefix(base) else collator.rows
    layout = layout_of(base)
    check_budget(args.max_tokens_per_batch, all_cases, lengths, layout)
    if not trains_head_alone(model):
        if args.gradient_checkpointing:
            _checkpoint_activations(args, model)
        return PreferenceTrainer(inputs, args, targets, encode, layout)
    # The states are computed once, so that what saves memory in a large model only costs time.
    args.dataloader_num_workers = 0
    args.activation_offloading = False
    args.gradient_checkpointing = vars(args)["activation_checkpointing"] = False
    cases = concatenate(learned_from(args, inputs.train, lengths), inputs.development)
    states = pooled_states(model, args, encode, cases, lengths)
    return PreferenceTrainer(inputs, args, targets, states.rows, layout, PooledHead(head))


def _zero3() -> bool:
    return bool(is_deepspeed_zero3_enabled())  # type: ignore[no-untyped-call]


def _labelled(cases: Sequence[Case], targets: Targets) -> Sequence[Case]:
    """Returns the cases with something to learn from."""
    return select(cases, np.flatnonzero(targets.weights_of(cases).sum(axis=1) > 0))


def _start_ties(head: RewardHead, train: Sequence[Case]) -> None:
    """Sets the tie parameters to the votes' share of ties, for rewards that are still equal."""
    initial_tie = PAIR_LOSSES[head.spec.ties].initial_tie
    if head.tie_logit is None or initial_tie is None:
        return
    shares = tie_shares(train, head.spec.dimensions)
    with torch.no_grad():
        for index, name in enumerate(head.spec.dimensions):
            if name in head.spec.tied_dimensions and 0 < shares[name] < 1:
                head.tie_logit[index] = initial_tie(shares[name])


def _checkpoint_activations(args: BradleyTerryConfig, model: PreTrainedModel | PeftModel) -> None:
    """Chooses the kind of checkpointing; ZeRO-3 needs reentrant, which needs input gradients."""
    reentrant = _zero3()
    if reentrant:
        model.enable_input_require_grads()
    # Newer versions of transformers read the second name.
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        vars(args)[name] = {"use_reentrant": reentrant}


OBJECTIVE = Objective(
    config=BradleyTerryConfig,
    readout=lambda run: "reward",
    lengths=lambda run, collator, dimensions, cases, facts: collator.tokens(cases, facts),
    head_spec=head_spec,
    check=check,
    build_trainer=build_trainer,
    preview=lambda inputs, trainer, processes: preview_planned(trainer, inputs.lengths, processes),
    check_lengths=check_lengths,
)
