"""Started by `accelerate launch`: trains tiny models, with FSDP2 where it has two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from judging import judged_cases, make_judging
from preferences import make_recipe, preferences
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from medrm.config.options import AdapterOptions
from medrm.objectives.bradley_terry import PooledHead
from medrm.objectives.sharding import forget_accelerator, whole
from medrm.pipeline.stop_signals import end_process

SHARED: dict[str, Any] = {
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": False,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "adam_epsilon": 1e-3,  # small gradients are no noise of the order of sums
    "max_grad_norm": 0.5,
}


def bradley_terry(folder: Path, **options: Any) -> Any:
    recipe = make_recipe(
        folder,
        train=[*preferences(13, ties=True), *preferences(8, 50, pictured=False)],
        development=preferences(5, 100),
        per_device_train_batch_size=3,
        **{**SHARED, "learning_rate": 1e-2, **options},
    )
    return prepared(recipe)


def judge(folder: Path, objective: str, **options: Any) -> Any:
    return prepared(
        make_judging(
            objective,
            folder,
            train=judged_cases(12),
            development=judged_cases(4, 100),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2 // PartialState().num_processes,
            per_device_eval_batch_size=2,
            **{**SHARED, "learning_rate": 1e-2, **options},
        )
    )


def prepared(built: Any) -> Any:
    """Returns a trainer; accelerate parts models over GPUs alone, and is told that these are."""
    forget_accelerator()
    state = PartialState()
    if state.num_processes > 1:
        state.distributed_type = DistributedType.MULTI_GPU
    return built.trainer()


def trained(trainer: Any, resume: Path | None = None) -> dict[str, torch.Tensor]:
    """Trains and returns what was trained, whole."""
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    sharded = PartialState().num_processes > 1
    assert isinstance(trainer.model_wrapped, FSDPModule) == sharded
    parameters = dict(trainer.model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values()) == sharded
    if isinstance(trainer.model, PooledHead):
        return {name: whole(tensor) for name, tensor in trainer.model.state_dict().items()}
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if name in trained}


RUNS: dict[str, Any] = {
    "lora": bradley_terry,
    "probe": lambda folder: bradley_terry(folder, frozen=True),
    # A linear head's gradient is a small difference of states, which bfloat16 rounds.
    "bf16": lambda folder: bradley_terry(
        folder, bf16=True, gradient_checkpointing=True, head="mlp"
    ),
    "full": lambda folder: bradley_terry(folder, adapter=AdapterOptions(use_peft=False)),
    "sft": lambda folder: judge(folder, "judge_sft"),
    "dpo": lambda folder: judge(folder, "judge_dpo"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    for name in sys.argv[2].split(","):
        straight = trained(RUNS[name](target / name))
        resumed = trained(RUNS[name](target / name), target / name / "checkpoint-2")
        if PartialState().is_main_process:
            torch.save({"straight": straight, "resumed": resumed}, target / f"{name}.pt")
    end_process(0)
