"""Files of whole runs: their modes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pipeline.entry import Recipe

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_modes_of_all_files_follow_the_umask(
    recipe: Recipe, phantom: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        assert recipe(train_data=phantom, max_steps=2, controls="frozen_probe,blank_images") == 0
    finally:
        os.umask(before)
    paths = list((tmp_path / "run").rglob("*"))
    names = {path.name for path in paths}
    assert {WEIGHTS, "run.json", "metrics.jsonl", "report.html", "optimizer.pt"} <= names
    assert any(path.suffix == ".webp" for path in paths)
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    assert [p for p, m in modes.items() if p.is_file() and m != mode] == []
    assert [p for p, m in modes.items() if p.is_dir() and m != 0o777 & ~umask] == []
