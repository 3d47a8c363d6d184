"""The frozen probe: a head trained on hidden states that are computed once.

With everything but the head frozen, what the head reads of a case never changes. Cases, order,
steps and loss stay those of the ordinary trainer; only the rows of a batch are looked up.

    cases -> frozen model -> pooled states (rows, O, H) in one file, mapped into memory
    batch of cases -> their rows of the file -> `PooledHead` -> rewards (rows, D)

Processes share the computing and gather what each has; one process of each machine writes the file,
which all of them map. It is unlinked at once: the mapping keeps it until the last process ends.

Shape legend: rows = one for each answer of each case, case-major; K answers of a case, O orders in
which answers that see each other are read (else 1), H hidden size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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

from medrm.data.store.indexed_cases import TokenCounts, column, select
from medrm.models.reward_model import (
    RewardHead,
    RewardOutput,
    head_of,
    without_adapter,
)
from medrm.objectives.arguments import BradleyTerryConfig
from medrm.objectives.token_budget import layout_of, make_plan
from medrm.schema import Case

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

    Under ZeRO-3 each process keeps a share of every weight, and the model runs in DeepSpeed's
    engine alone: put the weights into a model of their own to score with them.

    Args:
        trainer: of the probe, after training.
        model: whose head it trained.
    """
    head = head_of(model)
    plugin = trainer.args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(head.parameters())):
        return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
