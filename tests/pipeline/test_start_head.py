"""A training on a whole reward model starts from its head, or says why it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pipeline.entry import Recipe
from safetensors.torch import load_file, save_file
from tiny import save_tiny

import medrm
from medrm.cli import main
from medrm.models.adapter_config import read_adapter_config

ANSWERS = ("A lesion on the left.", "Nothing is seen", "No")
IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))
STILL = {"stages": "train", "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0}
"""One step that moves nothing."""


def rewards_of(model: Path) -> np.ndarray:
    return medrm.load(model).score([IMAGE], "What is seen?", ANSWERS)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Another's reward model of two dimensions, with a bias, read by a mapping file."""
    save_tiny("qwen2_5_vl", tmp_path / "theirs")
    torch.manual_seed(5)
    head = {"v_head.weight": torch.randn(2, 32), "v_head.bias": torch.randn(2)}
    save_file(head, tmp_path / "theirs" / "value_head.safetensors")
    settings = {
        "weights": "theirs", "head_file": "value_head.safetensors", "head_weight": "v_head.weight",
        "head_bias": "v_head.bias", "dimensions": ["overall", "accuracy"], "dtype": "float32",
    }  # fmt: skip
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.slow
def test_training_starts_from_the_head_of_a_whole_model(
    recipe: Recipe,
    theirs: Path,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scores, run = rewards_of(theirs), tmp_path / "run"
    options = {**STILL, "train_data": phantom, "output_dir": run}
    assert recipe(**options, model_name_or_path=theirs) == 2
    assert "`medrm merge` writes one" in capsys.readouterr().err
    merged = tmp_path / "merged"
    assert main(["merge", str(theirs), "--output", str(merged)]) == 0

    # Where the head would read another position, and where it would be another.
    options |= {"model_name_or_path": merged, "max_excluded_share": 0.5}
    wrong = {"dimensions": "accuracy,overall", "head": "mlp"}
    wrong["reward_template"] = "generation_prompt"
    capsys.readouterr()
    assert recipe(**options, **wrong) == 2
    told = capsys.readouterr().err
    assert "reward_template is 'turn_end' there, 'generation_prompt' here" in told
    assert "head is 'affine' there, 'mlp' here" in told

    # In another order; then one of both, of whole weights.
    assert recipe(**options, dimensions="accuracy,overall") == 0
    assert np.abs(rewards_of(run / "adapter") - scores[:, ::-1]).max() < 1e-5
    one = {
        **options,
        "output_dir": tmp_path / "one",
        "use_peft": "false",
        "max_excluded_share": 0.5,
    }
    assert recipe(**one, dimensions="accuracy") == 0
    assert np.abs(rewards_of(tmp_path / "one" / "adapter") - scores[:, 1:]).max() < 1e-5

    # The head is part of what the base is known by.
    path = merged / "head.safetensors"
    saved = path.read_bytes()
    tensors = load_file(path)
    save_file(
        {key: tensor + 1 for key, tensor in tensors.items()},
        path,
        metadata={"dimensions": '["overall", "accuracy"]'},
    )
    assert recipe(**options, dimensions="accuracy,overall") == 2
    assert "content of base" in capsys.readouterr().err
    path.write_bytes(saved)

    # A dimension that it does not know.
    caplog.clear()
    other = {**options, "output_dir": tmp_path / "other"}
    assert recipe(**other, dimensions="overall,relevance") == 0
    assert "not relevance, which this run learns as well: the run's head begins anew" in caplog.text
    assert read_adapter_config(tmp_path / "other" / "adapter").head.kind == "linear"
