"""README's first command: what the quickstart promises about its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medrm


@pytest.mark.slow
def test_the_quickstart_keeps_its_promises(root: Path, tmp_path: Path) -> None:
    """Accuracy near the ceiling, significantly above the controls, at chance without images."""
    arguments = ["-m", "accelerate.commands.launch", "recipes/train_rm.py", "--seed", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *arguments, "--output_dir", str(tmp_path / "run")],
        cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text(encoding="utf-8"))
    primary, controls = comparison["primary"], comparison["controls"]
    assert comparison["verdict"] == "Improved"
    assert primary["dimension"] == "accuracy"
    assert primary["after"] >= 0.88 * primary["ceiling"]
    for measured in (primary, controls["frozen_probe"], controls["zero_shot_likelihood"]):
        assert measured["ci95"][0] > 0
        assert measured["p"] < 0.05
    for name in ("blank_images", "shuffled_images", "text_only"):
        assert controls[name]["before"] <= 0.55
    rm = medrm.load(tmp_path / "run" / "adapter")
    assert rm.dimensions == medrm.DIMENSIONS
