"""A tiny reward model in memory, for tests of scoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tiny import make_tiny

from medrm.config.options import ModelOptions
from medrm.models.adapter_config import new_adapter_config
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.scorer.readouts.answer_rewards import RewardModel

DIMENSIONS = ("accuracy", "overall")


def make_scorer(family: str, folder: Path, **changes: object) -> RewardModel:
    model, processor = make_tiny(family)
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    options = ModelOptions(model_name_or_path=str(folder))
    contract = new_adapter_config(model, processor, options, "bradley_terry", "reward")
    batch_rows = changes.pop("batch_rows", 32)
    return RewardModel(
        model, processor, dataclasses.replace(contract, **changes), batch_rows=batch_rows
    )
