"""Started by `accelerate launch`: trains a vision tower whose equal images are computed once."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from preferences import make_recipe, preferences
from safetensors.torch import save_file
from tiny import make_tiny
from torch.nn.parallel import DistributedDataParallel

from medrm.config.options import AdapterOptions
from medrm.models.backbone import tower_of
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.vision_tower import DeduplicatingTower, deduplicate_images
from medrm.pipeline.stop_signals import end_process
from medrm.schema import Case
from medrm.scorer.collator import Collator

PICTURED = [dataclasses.replace(case, images=preferences(1)[0].images) for case in preferences(3)]
PICTURED += preferences(1, 5)
TEXTS = preferences(2, 50, pictured=False)
SHARES = {"pictured": (PICTURED[:2], PICTURED[1:]), "one without": (PICTURED, TEXTS)}
"""Cases of each of two processes; three show one image."""


def gradients(family: str, shares: tuple[list[Case], list[Case]], shared_prefix: bool) -> Any:
    """Returns the gradients of all weights for the summed losses of both shares."""
    state = PartialState()
    stock, processor = make_tiny(family, shared_prefix=shared_prefix)
    assert deduplicate_images(stock)
    full: Any = attach_head(stock, HeadSpec(("overall",)), seed=1).requires_grad_(True)
    collator, model, process_shares = Collator(processor), full, list(shares)
    if state.num_processes > 1:
        model = DistributedDataParallel(full, find_unused_parameters=True)
        process_shares = [shares[state.process_index]]
    for cases in process_shares:
        rewards = model(
            **(collator.shared_rows(cases) if shared_prefix else collator.rows(cases))
        ).rewards
        (rewards * torch.linspace(1, 2, len(rewards))[:, None]).sum().backward()
    # DistributedDataParallel gives the mean over processes.
    scale = state.num_processes
    return {n: p.grad * scale for n, p in full.named_parameters() if p.grad is not None}


def trained(folder: Path, family: str, **options: Any) -> dict[str, torch.Tensor]:
    """Returns an adapter of tower and language model after some steps of the trainer."""
    recipe = make_recipe(
        folder,
        # So few images that full steps have none.
        [*PICTURED, *preferences(14, 80, pictured=False)],
        family=family,
        adapter=AdapterOptions(lora_r=4, lora_vision=True),
        max_steps=5,
        global_batch_cases=4,
        per_device_train_batch_size=2,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        **options,
    )
    for name, parameter in recipe.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    stock = recipe.model.get_base_model()
    assert deduplicate_images(stock)
    assert isinstance(tower_of(stock), DeduplicatingTower)
    recipe.trainer().train()
    return {n: p.detach().clone() for n, p in recipe.model.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    PartialState(cpu=True)
    tensors_by_name: dict[str, torch.Tensor] = {}
    for family in ("qwen2_5_vl", "mllama", "llava_next"):
        for name, shares in SHARES.items():
            for shared_prefix in (True, False):
                tensors = gradients(family, shares, shared_prefix)
                tensors_by_name |= {
                    f"{family} {name} {shared_prefix} {n}": t for n, t in tensors.items()
                }
    for number, options in enumerate(
        ({"shared_prefix": True}, {"shared_prefix": False, "gradient_checkpointing": True})
    ):
        tensors = trained(target / str(number), "qwen2_5_vl", **options)
        tensors_by_name |= {f"trained {number} {n}": t for n, t in tensors.items()}
    if PartialState().is_main_process:
        save_file(tensors_by_name, target / "tensors.safetensors")
    end_process(0)
