"""A wholly trained model goes on from its checkpoint, and ends with its best one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judging import make_judging
from preferences import make_recipe
from safetensors.torch import load_file, save_file

from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError

TWO_STEPS: dict[str, Any] = {
    "max_steps": 2, "eval_steps": 1, "save_steps": 1, "warmup_steps": 0, "learning_rate": 1e-2,
    "lr_scheduler_type": "constant", "adapter": AdapterOptions(use_peft=False),
}  # fmt: skip


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_whole_weights_go_on_and_the_best_are_kept(objective: str, tmp_path: Path) -> None:
    def build(**options: Any) -> Any:
        options = {**TWO_STEPS, **options}
        if objective == "bradley_terry":
            return make_recipe(tmp_path, head_learning_rate=1e-2, **options)
        return make_judging(objective, tmp_path, **options)

    straight = build(load_best_model_at_end=False)
    straight.trainer().train()
    wanted, first = weights(straight.model), str(tmp_path / "checkpoint-1")
    resumed = build(load_best_model_at_end=False)
    resumed.trainer().train(resume_from_checkpoint=first)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, wanted[name]), name

    trainer = straight.trainer()  # of weights after two steps
    trainer.state.best_model_checkpoint = first
    trainer._load_best_model()
    stored = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    restored = weights(straight.model)
    assert stored.keys() <= restored.keys()
    assert any(not torch.equal(restored[name], wanted[name]) for name in stored)
    for name, tensor in stored.items():
        assert torch.equal(restored[name], tensor), name

    torn = {f"older.{name}": tensor for name, tensor in stored.items()}
    save_file(torn, tmp_path / "checkpoint-1" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="does not fill the model"):
        resumed.trainer().train(resume_from_checkpoint=first)
