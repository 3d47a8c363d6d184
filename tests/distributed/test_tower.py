"""A trained vision tower: two processes, one of them without an image, give what one gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_launch import TESTS, launch
from torch.testing import assert_close

pytestmark = pytest.mark.distributed


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_gradients_and_steps_of_a_tower_are_those_of_one_process(
    root: Path, tmp_path: Path
) -> None:
    worker = TESTS / "distributed" / "tower_worker.py"
    alone, distributed_run = (
        load_file(launch(root, name, folder(tmp_path / name), worker) / "tensors.safetensors")
        for name in ("cpu", "ddp")
    )
    assert alone.keys() == distributed_run.keys()
    of_towers = [name for name in alone if ".visual." in name or ".vision_" in name]
    assert sum("trained" in name for name in of_towers) > 0
    assert len(of_towers) > len(alone) / 4
    for name, tensor in alone.items():
        scale = max(1.0, float(tensor.abs().max()))
        assert_close(distributed_run[name], tensor, atol=1e-5 * scale, rtol=1e-4, msg=name)
    assert any(alone[name].abs().max() > 0 for name in of_towers)
