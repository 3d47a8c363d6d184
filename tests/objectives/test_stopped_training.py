"""A training that is stopped by a signal goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preferences import make_recipe
from transformers import TrainerCallback

from medrm.errors import Stopped
from medrm.pipeline.stop_checkpoint import StopCheckpoint
from medrm.pipeline.stop_signals import handled, in_training

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps its own ways")


class SendSignal(TrainerCallback):
    """Sends SIGTERM to its own process, once."""

    def __init__(self, event: str, step: int) -> None:
        def send(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        setattr(self, event, send)


STEPS = {"eval_steps": 2, "save_steps": 2}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}


@pytest.mark.parametrize(
    ("event", "at", "ends", "options"),
    [
        ("on_step_begin", 2, 3, STEPS),  # in a step of the second epoch
        ("on_prediction_step", 4, 4, STEPS),  # in a measurement, which is finished
        ("on_step_begin", 2, 3, EPOCHS),  # in the last step of an epoch: its measurement is due
    ],
)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    event: str, at: int, ends: int, options: dict[str, Any], tmp_path: Path
) -> None:
    def trained(
        folder: Path, prepare: Callable[[Any], None] = lambda trainer: None, **resume: Any
    ) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        recipe = make_recipe(folder, max_steps=6, **options)
        trainer = recipe.trainer()
        trainer.add_callback(StopCheckpoint())
        prepare(trainer)
        with in_training():
            trainer.train(**resume)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        timed = {"train_runtime", "eval_runtime", "total_flos"}
        rows = [json.loads(line) for line in lines]
        logged = [
            {k: v for k, v in row.items() if k not in timed and "per_second" not in k}
            for row in rows
        ]
        named = recipe.model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}, logged

    def stop(trainer: Any) -> None:
        trainer.callback_handler.callbacks.insert(0, SendSignal(event, at))

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    weights, lines = trained(straight)
    with pytest.raises(Stopped, match=f"after step {ends} of 6.*checkpoint-{ends};"), handled():
        trained(stopped, stop)
    checkpoint = stopped / f"checkpoint-{ends}"
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == ends
    resumed, again = trained(stopped, resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert [line for line in again if "train_loss" not in line] == [
        line for line in lines if "train_loss" not in line
    ]
