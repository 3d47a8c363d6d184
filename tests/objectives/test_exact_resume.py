"""A training that was stopped at any checkpoint ends as the straight one: weights and log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import by_letters, judged_cases, make_judging
from preferences import make_recipe
from quick import quick
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError
from medrm.integrity import MANIFEST
from medrm.objectives.judge import judge_grpo
from medrm.objectives.trainer import PreferenceTrainer
from medrm.objectives.whole_checkpoints import problems_of
from medrm.pipeline.checkpoints import last_checkpoint

Trained = tuple[dict[str, Tensor], bytes]
"""What was trained, and metrics.jsonl."""

STEPS: dict[str, Any] = {
    "max_steps": 8, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None,
    "logging_steps": 3, "warmup_steps": 0, "eval_strategy": "steps", "eval_steps": 3,
    "load_best_model_at_end": False, "lr_scheduler_type": "constant",
}  # fmt: skip
"""Trainings of several epochs, with checkpoints at every step and lines at every third."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    # 3 steps an epoch, the last of which is smaller
    "bradley_terry": {"global_batch_cases": 8, "per_device_train_batch_size": 4},
    # 6 rows, 3 batches; two steps an epoch, the last of which is one batch
    "judge_sft": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "judge_dpo": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    # completions of two steps each; 3 times two steps an epoch
    "judge_grpo": {
        "per_device_train_batch_size": 2, "steps_per_generation": 2, "num_generations": 2,
        "max_completion_length": 4, "eval_strategy": "no",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [by_letters])


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """Returns a function that trains a tiny model, from its start or from a checkpoint."""

    def run(objective: str, name: str, step: int | None = None, **options: Any) -> Trained:
        options = {**STEPS, **OBJECTIVES[objective], **options}
        output = tmp_path / name
        adapter = AdapterOptions(lora_r=4, lora_dropout=0.1)
        if objective == "bradley_terry":
            built: Any = make_recipe(output, adapter=adapter, **options)
        else:
            cases = {"train": judged_cases(3), "development": judged_cases(1, 100)}
            built = make_judging(objective, output, adapter=adapter, **cases, **options)
        checkpoint = None if step is None else str(output / f"checkpoint-{step}")
        built.trainer().train(resume_from_checkpoint=checkpoint)
        state = {
            n: p.detach().clone() for n, p in built.model.named_parameters() if p.requires_grad
        }
        return state, (output / "metrics.jsonl").read_bytes()

    return run


def assert_same(trained: Trained, straight: Trained) -> None:
    assert trained[1].decode() == straight[1].decode()
    for name, tensor in straight[0].items():
        assert torch.equal(trained[0][name], tensor), name


@pytest.mark.parametrize("objective", quick("bradley_terry", of=OBJECTIVES))
def test_every_checkpoint_leads_to_the_straight_end(
    objective: str, train: Callable[..., Trained]
) -> None:
    straight = train(objective, "a")
    lines = [json.loads(line) for line in straight[1].splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6]
    assert [line["step"] for line in lines if "train_loss" in line] == [8]
    # Behind a line, in the second epoch, twice in one epoch, at the last step.
    for step in (4, 5, 7, 8):
        assert_same(train(objective, "a", step), straight)


def test_the_order_of_prompts_follows_from_the_epoch() -> None:
    def fresh() -> RepeatSampler:
        return RepeatSampler(range(7), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=5)

    trl, epochs = fresh(), iter(range(3))
    straight = [list(trl) for _ in range(3)]
    sampler = judge_grpo.EpochSampler(fresh(), lambda: next(epochs))
    assert [list(sampler) for _ in range(3)] == straight
    assert straight[0] != straight[1]
    assert list(judge_grpo.EpochSampler(fresh(), lambda: 2)) == straight[2]
    assert len(sampler) == len(straight[0])


OTHER: dict[str, dict[str, Any]] = {
    "at the end of epochs": {
        "logging_strategy": "epoch", "eval_strategy": "epoch", "max_steps": -1,
        "num_train_epochs": 2.5, "lr_scheduler_type": "cosine", "eval_on_start": True,
    },
    "saved at the end of epochs": {"save_strategy": "epoch", "logging_steps": 2},
    "with the best kept": {
        "load_best_model_at_end": True, "save_steps": 2, "eval_steps": 2, "logging_steps": 5,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft", "judge_dpo"])
def test_however_it_is_saved_logged_and_measured(
    objective: str, name: str, train: Callable[..., Trained], tmp_path: Path
) -> None:
    options = OTHER[name]
    straight = train(objective, "a", **options)
    steps = sorted(int(path.name[11:]) for path in (tmp_path / "a").glob("checkpoint-*"))
    assert len(steps) > 2
    for step in steps:
        assert_same(train(objective, "a", step, **options), straight)


@pytest.mark.exhaustive
def test_workers_that_start_a_second_time_change_nothing(train: Callable[..., Trained]) -> None:
    """They are seeded when they start, which must not move the generator of dropout."""
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    options |= {"max_steps": 5, "eval_steps": 2, "save_steps": 2}
    straight = train("judge_sft", "a", **options)
    for step in (2, 4):
        assert_same(train("judge_sft", "a", step, **options), straight)


@pytest.mark.slow
def test_the_best_checkpoint_is_found_where_the_folder_lies_now(
    train: Callable[..., Trained], tmp_path: Path
) -> None:
    options = {"load_best_model_at_end": True, "eval_steps": 1, "learning_rate": 0.5}
    straight = train("bradley_terry", "a", **options)
    state = json.loads((tmp_path / "a" / "checkpoint-8" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"]).name
    assert best != "checkpoint-8"
    (tmp_path / "a").rename(tmp_path / "b")
    assert_same(train("bradley_terry", "b", 8, **options), straight)


def test_what_would_change_the_order_is_refused(train: Callable[..., Trained]) -> None:
    with pytest.raises(ConfigError, match="ignore_data_skip is True; leave it out"):
        train("judge_sft", "a", ignore_data_skip=True)
    with pytest.raises(ConfigError, match="save_only_model is True; leave it out"):
        train("judge_sft", "a", save_only_model=True)
    with pytest.raises(ConfigError, match="use_seedable_sampler false; leave it out"):
        train("judge_sft", "a", accelerator_config={"use_seedable_sampler": False})


@pytest.mark.slow
def test_without_an_optimiser_a_training_starts_anew(
    train: Callable[..., Trained], tmp_path: Path
) -> None:
    options = {"load_best_model_at_end": True, "eval_steps": 1, "learning_rate": 0.5}
    train("bradley_terry", "a", **options)
    for name in (MANIFEST, "optimizer.pt"):  # as earlier versions wrote with save_only_model
        for path in (tmp_path / "a").glob(f"checkpoint-*/{name}"):
            path.unlink()
    assert problems_of(tmp_path / "a" / "checkpoint-4", best=True)[0].endswith("is missing")
    assert last_checkpoint(tmp_path / "a") is None


class Stopped(Exception):
    pass


class StopsAfter(TrainerCallback):
    """Ends a training with a checkpoint out of turn, as a signal does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stopped


@pytest.mark.slow
def test_a_checkpoint_out_of_turn_is_not_the_best(
    train: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"save_steps": 4, "eval_steps": 1, "load_best_model_at_end": True}
    losses = {1: 9, 2: 8, 3: 7, 4: 6, 5: 4, 6: 5, 7: 5, 8: 5}  # best at 5, which is not saved
    evaluate = PreferenceTrainer._metrics

    def metrics(self: PreferenceTrainer, prediction: Any) -> dict[str, float]:
        return {**evaluate(self, prediction), "loss": losses[self.state.global_step]}

    monkeypatch.setattr(PreferenceTrainer, "_metrics", metrics)
    straight = train("bradley_terry", "a", **options)
    built = PreferenceTrainer.train
    monkeypatch.setattr(
        PreferenceTrainer,
        "train",
        lambda self, **kwargs: (self.add_callback(StopsAfter(5)), built(self, **kwargs)),
    )
    with pytest.raises(Stopped):
        train("bradley_terry", "b", **options)
    monkeypatch.setattr(PreferenceTrainer, "train", built)
    assert_same(train("bradley_terry", "b", 5, **options), straight)


@pytest.mark.slow
def test_completions_are_used_up_and_shown_as_in_the_straight_training(
    train: Callable[..., Trained], tmp_path: Path
) -> None:
    """Each is learned from twice, so that three of four checkpoints lie amid them."""
    options = {"num_iterations": 2, "log_completions": True, "logging_steps": 1}
    straight = train("judge_grpo", "a", **options)
    tables = {path.name: path.read_bytes() for path in (tmp_path / "a/completions").iterdir()}
    assert len(tables) == 8
    for step in (1, 2, 3, 4, 6, 8):
        assert_same(train("judge_grpo", "a", step, **options), straight)
        after = {path.name: path.read_bytes() for path in (tmp_path / "a/completions").iterdir()}
        assert after == tables
