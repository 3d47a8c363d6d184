"""What is tried of each type: every column of the table of families, on a folder as medrm reads it.

Each column is a function of a `Subject`. It raises where the answer is no: an AssertionError of its
own, or whatever medrm, TRL or transformers raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

import medrm
from medrm.config.parse import Run, parse_run
from medrm.data.phantom.phantom_set import write_phantom
from medrm.files import PEFT_CONFIG, asset
from medrm.models.adapter import save_adapter
from medrm.models.adapter_files import ADAPTER_FILE
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import without_adapter
from medrm.objectives import argument_classes
from medrm.pipeline.context import RunContext
from medrm.pipeline.prepare_data import prepare_data
from medrm.pipeline.stages import build_trainer, train_adapter, trained_config
from medrm.scorer.proof_cache import check_loaded

ROUNDING = 2e-6
"""Most that fp32 rewards below 1 may differ where the same products are summed in another order."""

_RECIPES = {"bradley_terry": "bradley_terry"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "bradley_terry": {"global_batch_cases": 4},
    "judge_sft": {},
    "judge_dpo": {"label_rule": "null"},
    "judge_grpo": {"label_rule": "null", "num_generations": 2, "max_completion_length": 8},
}


def write_cases(folder: Path) -> Path:
    """Writes the few cases that every type is trained on, and returns their file."""
    write_phantom(folder, cases=24, seed=3)
    return folder / "votes.jsonl"


def _run(base: Path, objective: str, cases: Path, output: Path, **options: Any) -> Run:
    """Returns a run of two steps, as `train_rm.py` reads it from its arguments."""
    arguments = {
        "model_name_or_path": base,
        "objective": objective,
        "train_data": cases,
        "output_dir": output,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "warmup_steps": 0,
        "dataloader_num_workers": 0,
        "bf16": False,
        "lora_r": 4,
        "report_to": "none",
        **_OPTIONS[objective],
        **options,
    }
    words = [str(word) for key, value in arguments.items() for word in (f"--{key}", value)]
    recipe = asset(f"recipes/quickstart/{_RECIPES.get(objective, 'judge_sft')}.yaml")
    return parse_run(words, argument_classes(), recipe)


class RewardRun(NamedTuple):
    """A trained and saved reward model.

    Attributes:
        context: what it was trained with.
        rewards: of the development cases by the model in memory, before it was saved.
    """

    context: RunContext
    rewards: np.ndarray


@dataclass
class Subject:
    """A type's saved base, and where its runs are written.

    Attributes:
        base: the folder of model and processor.
        cases: what it is trained on.
        folder: for everything that is written.
    """

    base: Path
    cases: Path
    folder: Path

    def context(self, objective: str, **options: Any) -> RunContext:
        """Returns all that a training by an objective needs."""
        output = self.folder / objective
        run = _run(self.base, objective, self.cases, output, **options)
        return RunContext.prepare(run, prepare_data(run), output)

    def judge(self, objective: str, **options: Any) -> None:
        """Trains a judge for two steps, and checks loss and adapter."""
        context = self.context(objective, **options)
        train_adapter(context)
        _check_training(context)

    @cached_property
    def reward_model(self) -> RewardRun:
        """The type's reward model, trained for two steps, once for all columns that read it."""
        context = self.context("bradley_terry")
        model = context.trainable()
        build_trainer(context, model, context.output, "training").train()
        config = trained_config(context, model)
        save_adapter(context.output / "adapter", model, context.processor, config)
        return RewardRun(context, _rewards(context, context.scorer(context.in_memory(model))))

    def rewards(self, shared_prefix: str = "on") -> np.ndarray:
        """Returns the rewards of all development cases by the saved reward model, loaded anew."""
        context = self.reward_model.context
        adapter = context.output / "adapter"
        return _rewards(context, medrm.load(adapter, device="cpu", shared_prefix=shared_prefix))


def _check_training(context: RunContext) -> None:
    """Checks that both steps had a finite loss and that the adapter moved."""
    lines = (context.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 2, f"{len(losses)} losses were logged in two steps"
    assert all(map(math.isfinite, losses)), f"the loss is not finite: {losses}"
    tensors = load_file(context.output / "adapter" / ADAPTER_FILE)
    moved = [name for name, tensor in tensors.items() if "lora_B" in name and tensor.any()]
    assert moved, "no LoRA layer moved"


def _rewards(context: RunContext, scorer: Any) -> np.ndarray:
    """Returns the rewards [B * K, D] of the development cases."""
    scored = scorer.score_cases(context.splits.development)
    return np.concatenate([rewards for _, rewards in scored])


def bradley_terry(subject: Subject) -> None:
    """Two steps train the head and the adapter, with a finite loss; routers stay as they were."""
    context = subject.reward_model.context
    _check_training(context)
    trained = load_file(context.output / "adapter" / ADAPTER_FILE)
    fresh = dict(context.with_head().named_parameters())
    heads = {name: tensor for name, tensor in trained.items() if ".score." in name}
    assert heads, "the adapter holds no head"
    for name, tensor in heads.items():
        initial = fresh[name.removeprefix("base_model.model.")]
        assert not torch.equal(tensor, initial), f"{name} did not move"
    settings = json.loads((context.output / "adapter" / PEFT_CONFIG).read_text(encoding="utf-8"))
    routers = [name for name in settings["target_modules"] if _routes(fresh, name)]
    assert not routers, f"LoRA adapts a router: {routers[0]}"


def _routes(parameters: Mapping[str, torch.Tensor], name: str) -> bool:
    """Returns whether a module lies beside experts and is called what routers are called."""
    layer, _, last = name.rpartition(".")
    beside_experts = any(path.startswith(f"{layer}.experts") for path in parameters)
    return beside_experts and last in ("gate", "router", "classifier", "shared_expert_gate")


def shared_prefix(subject: Subject) -> None:
    """Rewards with and without shared prefixes agree, and prefixes are really shared."""
    context = subject.reward_model.context
    shared, separate = subject.rewards("on"), subject.rewards("off")
    difference = float(np.abs(shared - separate).max())
    assert difference <= ROUNDING, f"rewards differ by {difference:.1e}"
    model = load_base(context.run.model, "cpu")
    template = context.run.model.reward_template
    proof = check_loaded(model, context.processor, context.base_weights, template)
    assert proof.sharing_problem is None, f"separate rows: {proof.sharing_problem}"
    assert shares_prefix(without_adapter(context.saved().model))


def reload_identical(subject: Subject) -> None:
    """The saved adapter loaded anew gives the rewards of the trained model to the bit."""
    trained, loaded = subject.reward_model.rewards, subject.rewards()
    assert np.isfinite(trained).all(), "rewards are not finite"
    difference = float(np.abs(trained - loaded).max())
    assert np.array_equal(trained, loaded), f"rewards differ by {difference:.1e}"


def sft(subject: Subject) -> None:
    """A supervised judge learns for two steps."""
    subject.judge("judge_sft")


def dpo(subject: Subject) -> None:
    """A judge learns from right and wrong verdicts for two steps."""
    subject.judge("judge_dpo")


def grpo(subject: Subject) -> None:
    """A judge learns from its own verdicts for two steps, from the supervised one on."""
    adapter = subject.folder / "judge_sft" / "adapter"
    if not adapter.is_dir():
        subject.judge("judge_sft")
    subject.judge("judge_grpo", init_adapter=adapter)


COLUMNS: dict[str, Callable[[Subject], None]] = {
    "bradley_terry": bradley_terry,
    "sft": sft,
    "dpo": dpo,
    "grpo": grpo,
    "shared_prefix": shared_prefix,
    "reload": reload_identical,
}
"""Column to what is tried."""
