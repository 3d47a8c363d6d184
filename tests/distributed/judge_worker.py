"""Started by `accelerate launch`: trains tiny judges and says how many processes took part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from judging import by_letters, judged_cases, make_judging
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medrm.objectives.judge import judge_grpo
from medrm.pipeline.stop_signals import end_process


def train(objective: str, folder: Path, processes: int, **options: Any) -> int:
    """Leaves what each process trained in two steps of 8 rows; returns the number of processes."""
    built = make_judging(
        objective,
        folder,
        train=judged_cases(8),
        development=judged_cases(3, 100),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2 // processes,
        per_device_eval_batch_size=2,
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_steps=2,
        **options,
    )
    trainer = built.trainer()
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if state is not None:  # ZeRO-3 gathers on the main process alone
        trained = {name: tensor for name, tensor in state.items() if ".default." in name}
        torch.save(trained, folder / f"adapter-{trainer.args.process_index}.pt")
    return int(trainer.accelerator.num_processes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, count = Path(sys.argv[1]), int(sys.argv[2])
    judge_grpo.rewards_of = lambda prompt: [by_letters]  # a random model earns no real reward
    measured: dict[str, Any] = {"eval_steps": 1, "load_best_model_at_end": False}
    world = 0
    for name, options in {
        "judge_sft": measured,
        "judge_dpo": measured,
        "judge_grpo": {},
    }.items():
        world = train(name, target / name, count, optim="sgd", **{"learning_rate": 0.2, **options})
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
    (target / f"world-{world}.json").write_text(json.dumps(world), encoding="utf-8")
    end_process(0)
