"""Started by `accelerate launch`: trains a tiny model and says how many processes took part."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from preferences import make_recipe, preferences
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medrm.objectives.bradley_terry import gathered_head, trains_head_alone
from medrm.pipeline.stop_signals import end_process


def train(folder: Path, **options: Any) -> int:
    """Returns the world size after three steps, the last of them of a smaller batch."""
    recipe = make_recipe(
        folder,
        train=[*preferences(13, ties=True), *preferences(8, 50, pictured=False)],
        development=preferences(5, 100),
        max_steps=3,
        per_device_train_batch_size=3,
        eval_steps=3,
        save_steps=3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="sgd",
        learning_rate=0.2,
        head_learning_rate=0.2,
        **options,
    )
    trainer = recipe.trainer()
    trainer.train()
    if trains_head_alone(recipe.model):
        state = gathered_head(trainer, recipe.model)
        torch.save(state, folder / f"head-{trainer.args.process_index}.pt")
    return int(trainer.accelerator.num_processes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    # One after the other in one process, as a run does it.
    for name, options in {"probe": {"frozen": True}, "bf16": {"bf16": True}}.items():
        train(target / name, **options)
        unset_hf_deepspeed_config()
    # Two processes also keep to a budget of tokens: neither changes what is trained.
    budget = 400 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    world = train(target, max_tokens_per_batch=budget)
    (target / f"world-{world}.json").write_text(json.dumps(world), encoding="utf-8")
    end_process(0)
