"""The frozen probe: a head trained on hidden states that are computed once.

With everything but the head frozen, what the head reads of a case never changes. Cases, order,
steps and loss stay those of the ordinary trainer; only the rows of a batch are looked up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BatchFeature, PreTrainedModel, Trainer

from medrm.data.index import Lengths
from medrm.models.reward_model import RewardHead, RewardOutput, head_of, pooled, without_adapter
from medrm.objectives.arguments import BradleyTerryConfig
from medrm.objectives.batching import layout_of, plan_of
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


def lookup(states: Mapping[str, Tensor], cases: Sequence[Case]) -> dict[str, Tensor]:
    """Returns the rows of cases: their states, one for each answer, case-major."""
    return {"states": torch.cat([states[case.case_id] for case in cases])}


def pooled_states(
    model: PreTrainedModel | PeftModel,
    args: BradleyTerryConfig,
    encode: Callable[[Sequence[Case]], BatchFeature],
    cases: Sequence[Case],
    lengths: Lengths,
) -> dict[str, Tensor]:
    """Returns case id to what the head reads, (K, O, H) on the CPU; processes share the work."""
    layout = layout_of(without_adapter(model))
    plan = plan_of(args, cases, lengths, layout, np.ones(len(cases)), training=False)
    batches = [
        [cases[draw.case] for draw in draws if draw.scale > 0]
        for draws in plan.micro_batches(0, args.process_index)
    ]
    batches = [batch for batch in batches if batch]
    loader: DataLoader[list[Case]] = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=encode,
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator().manual_seed(args.seed),
    )
    model.to(args.device)  # type: ignore[arg-type]
    model.eval()
    found: list[tuple[str, Tensor]] = []
    logger.info("hidden states of %d cases for the frozen probe", len(cases))
    with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        for batch, rows in zip(batches, loader, strict=True):
            states = pooled(model, **rows.to(args.device)).cpu()
            own = torch.split(states, [len(case.answers) for case in batch])
            found += [(case.case_id, part) for case, part in zip(batch, own, strict=True)]
    return dict(gather_object(found))


def whole_head(trainer: Trainer, model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Returns the trained head's weights, whole; all processes call it together.

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
