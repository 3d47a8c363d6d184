"""Activations: recomputed, kept elsewhere, or both, with the same numbers; memory stays flat."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from preferences import Recipe, make_recipe
from test_training import one_step_gradients
from torch.autograd.graph import saved_tensors_hooks

from medrm.config.options import AdapterOptions
from medrm.objectives import bradley_terry
from medrm.objectives import trainer as trainer_module

ONE_STEP = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": False, "per_device_train_batch_size": 3}  # fmt: skip


class Elsewhere(saved_tensors_hooks):
    """Keeps copies of activations, as offloading does, and counts them."""

    def __init__(self) -> None:
        self.kept = 0
        super().__init__(self.pack, lambda tensor: tensor.clone())

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept += tensor.numel()
        return tensor.detach().clone()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: Any) -> tuple[dict[str, Any], float]:
    return one_step_gradients(make_recipe(tmp_path_factory.mktemp("plain"), **ONE_STEP))


def assert_same(recipe: Recipe, plain: tuple[dict[str, Any], float]) -> None:
    gradients, loss = one_step_gradients(recipe)
    assert loss == pytest.approx(plain[1], abs=1e-6)
    assert gradients.keys() == plain[0].keys()
    for name, gradient in plain[0].items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-4)


# A reentrant checkpoint needs inputs with gradients, so that of an adapted tower is refused.
@pytest.mark.parametrize(("reentrant", "vision"), [(True, False), (False, False), (False, True)])
def test_checkpointing_gives_the_same_gradients(
    reentrant: bool, vision: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    adapter = AdapterOptions(lora_r=4, lora_vision=vision)
    expected = one_step_gradients(make_recipe(tmp_path / "plain", adapter=adapter, **ONE_STEP))
    monkeypatch.setattr(bradley_terry, "_zero3", lambda: reentrant)
    recipe = make_recipe(tmp_path / "run", adapter=adapter, gradient_checkpointing=True, **ONE_STEP)
    assert_same(recipe, expected)
    assert recipe.model.is_gradient_checkpointing


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_whole_step_runs_with_its_activations_elsewhere(
    checkpointing: bool, plain: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    managers = []

    def manager(model: Any) -> Elsewhere:
        managers.append(Elsewhere())
        return managers[-1]

    monkeypatch.setattr(trainer_module, "get_act_offloading_ctx_manager", manager)
    keeping = trainer_module._activation_context
    monkeypatch.setattr(
        trainer_module,
        "_activation_context",
        lambda args, model: keeping(
            SimpleNamespace(
                activation_offloading=args.activation_offloading, device=torch.device("cuda")
            ),
            model,
        ),
    )
    options = {"gradient_checkpointing": checkpointing, "activation_offloading": True, **ONE_STEP}
    recipe = make_recipe(tmp_path / "run", **options)
    assert_same(recipe, plain)
    assert managers[0].kept > 0
    if not checkpointing:
        return
    # The manager goes around checkpoints, whose inputs it keeps alone.
    other = make_recipe(tmp_path / "other", **{**options, "gradient_checkpointing": False})
    assert_same(other, plain)
    assert managers[-1].kept > 2 * managers[0].kept


def test_on_a_cpu_activations_stay_where_they_are(plain: Any, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="medrm"):
        assert_same(make_recipe(tmp_path / "run", activation_offloading=True, **ONE_STEP), plain)
    assert "activation_offloading" in caplog.text


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """Resident memory after 200 steps is that after 20."""
    sizes = {}
    recipe = make_recipe(
        tmp_path / "run",
        **{**ONE_STEP, "max_steps": 201, "eval_strategy": "steps", "eval_steps": 50},
        max_tokens_per_batch=400,
    )
    trainer = recipe.trainer()
    step = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step in (20, 200):
            gc.collect()
            sizes[trainer.state.global_step] = psutil.Process().memory_info().rss
        return step(*args, **kwargs)

    trainer.training_step = watched
    trainer.train()
    assert sizes[200] - sizes[20] < 20 * 2**20
