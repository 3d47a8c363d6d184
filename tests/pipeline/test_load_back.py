"""A saved adapter that scores otherwise than the trained model ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.entry import Recipe

from medrm.models import adapter
from medrm.pipeline import stages


@pytest.mark.parametrize(
    "options", [{}, {"objective": "judge_sft"}, {"dtype": "bfloat16", "bf16": "true"}]
)
def test_one_lost_bit_is_found(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    scored = []
    check = stages.check_load_back

    def recorded(context: Any, saved: Any, trained: Any) -> None:
        scored.append(trained)
        check(context, saved, trained)

    monkeypatch.setattr(stages, "check_load_back", recorded)
    data = {"train_data": phantom / "votes.jsonl", "controls": "none"}
    # Warm: the first step of a warm-up would leave LoRA's B at zero, and A without effect.
    small = {**data, "max_steps": 2, "learning_rate": 0.01, "warmup_steps": 0, **options}
    assert recipe(**small) == 0
    assert [response.state for response in scored[0]] == ["ok"] * 4

    def in_less_precision(model: Any, state_dict: Any = None) -> dict[str, torch.Tensor]:
        tensors = kept(model, state_dict)
        return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}

    kept = adapter._tensors
    monkeypatch.setattr(adapter, "_tensors", in_less_precision)
    assert recipe(**small, output_dir=tmp_path / "rounded") == 2
    assert "The saved adapter does not score as the trained model: case" in capsys.readouterr().err
