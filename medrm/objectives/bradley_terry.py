"""The Bradley-Terry objective: a scalar reward for each dimension, learned from preferences."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from medrm.config import Run
from medrm.data.store.indexed_cases import TokenCounts, column, concatenate, select
from medrm.errors import ConfigError, DataError, nearest
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import HeadSpec, RewardHead, head_of, without_adapter
from medrm.objectives.arguments import BradleyTerryConfig
from medrm.objectives.losses import PAIR_LOSSES
from medrm.objectives.objective import (
    Objective,
    TrainingInputs,
    autocast_under_deepspeed,
    report_unlearned,
    visible_gpu_problems,
)
from medrm.objectives.probe import (
    PooledHead,
    learned_from,
    pooled_states,
    trains_head_alone,
)
from medrm.objectives.targets import Targets, tie_shares
from medrm.objectives.token_budget import Layout, check_budget, layout_of
from medrm.objectives.trainer import PreferenceTrainer
from medrm.schema import Case
from medrm.scorer.contextual import check_contextual


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
    if problems := visible_gpu_problems(args):
        raise ConfigError(problems[0])
    if args.gradient_checkpointing and run.adapter.lora_vision and _zero3():
        raise ConfigError(
            "lora_vision with gradient_checkpointing under ZeRO-3 would leave the vision adapter "
            "without gradient; turn one of the three off (zero2 works)"
        )
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
    args.ddp_find_unused_parameters = _leaves_parameters_unused(run, all_cases)
    base, collator = without_adapter(model), inputs.collator
    check_contextual(collator.contextual_orders, shares_prefix(base))
    encode = collator.forks if shares_prefix(base) else collator.rows
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


def _leaves_parameters_unused(run: Run, cases: Sequence[Case]) -> bool:
    """Returns whether a step may leave trained weights out, which DDP must then look for.

    Without an image neither an adapted vision tower nor cross-attention to it runs.
    """
    return bool((column(cases, "image_count") == 0).any()) or run.adapter.lora_vision


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
    check_lengths=check_lengths,
)
