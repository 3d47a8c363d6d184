"""Started by `accelerate launch`: what some processes learn from, in which order, and go on to.

Arguments: folder to write, checkpoints to go on from ("-": none).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from judging import judged_cases, make_judging
from preferences import make_recipe, preferences

from medrm.objectives.sharding import forget_accelerator
from medrm.pipeline.stop_signals import end_process

SHARED: dict[str, Any] = {
    "max_steps": 6,
    "eval_steps": 2,
    "save_steps": 4,
    "load_best_model_at_end": False,
    "warmup_steps": 0,
    "adam_epsilon": 1e-3,  # small gradients are no noise of the order of sums
    "learning_rate": 1e-2,
}
"""Two epochs of three steps; the checkpoint lies within the second."""


def bradley_terry(folder: Path) -> Any:
    return make_recipe(
        folder,
        train=[*preferences(13, ties=True), *preferences(6, 50, pictured=False)],
        development=preferences(5, 100),
        per_device_train_batch_size=2,
        **SHARED,
    )


def judge_sft(folder: Path) -> Any:
    return make_judging(
        "judge_sft",
        folder,
        train=judged_cases(12),
        development=judged_cases(4, 100),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // PartialState().num_processes,
        **SHARED,
    )


def noted(trainer: Any) -> list[list[int]]:
    """Returns a list that gets this process's cases, or rows, of each micro-batch and its step."""
    met: list[list[int]] = []
    compute = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        drawn = inputs.get("indices")
        if drawn is None:  # what a judge is asked tells the row
            drawn = [hash(tuple(row)) for row in numbers_of(inputs)]
        met.append([trainer.state.global_step, *map(int, drawn)])
        return compute(model, inputs, *rest)

    trainer.training_step = training_step
    return met


def numbers_of(inputs: dict[str, Any]) -> list[list[int]]:
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    return [[token for token, mask in zip(*row, strict=True) if mask] for row in rows]


def train(build: Any, folder: Path, resume: str | None) -> dict[str, Any]:
    """Returns what was trained and met, and what was logged."""
    forget_accelerator()
    built = build(folder)
    trainer = built.trainer()
    met = noted(trainer)
    trainer.train(resume_from_checkpoint=resume)
    state = {n: p.detach() for n, p in built.model.named_parameters() if p.requires_grad}
    log = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return {"state": state, "met": met, "log": [json.loads(line) for line in log.splitlines()]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, earlier, rank = Path(sys.argv[1]), sys.argv[2], PartialState(cpu=True).process_index
    for build in (bradley_terry, judge_sft):
        name = build.__name__
        runs = {"straight": train(build, target / name, None)}
        if earlier != "-":
            checkpoint = str(Path(earlier) / name / "checkpoint-4")
            runs["resumed"] = train(build, target / f"{name}-resumed", checkpoint)
        torch.save(runs, target / f"{name}-{rank}.pt")
    end_process(0)
