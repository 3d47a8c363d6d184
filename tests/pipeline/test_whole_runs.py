"""Files of whole runs: their modes, and what a damaged checkpoint or adapter comes to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from damages import KINDS
from pipeline.entry import Recipe

from medrm.cli import main
from medrm.integrity import damage

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


@pytest.mark.slow
def test_a_run_passes_over_a_damaged_checkpoint_and_refuses_a_damaged_adapter(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"train_data": phantom, "stages": "train", "controls": "none"}
    run = tmp_path / "run"
    assert recipe(**options) == 0
    straight = (run / "adapter" / WEIGHTS).read_bytes()
    for kind in ("bit in the middle", "missing"):
        shutil.rmtree(run / "adapter")
        KINDS[kind](run / "checkpoint-4" / "optimizer.pt")
        caplog.clear()
        assert recipe(**options) == 0
        assert "checkpoint-4 is damaged and is passed over: optimizer.pt" in caplog.text
        assert (run / "adapter" / WEIGHTS).read_bytes() == straight
        assert damage(run / "checkpoint-4") == damage(run / "adapter") == []

    shutil.rmtree(run / "adapter")
    KINDS["zeroed"](run / "checkpoint-2" / WEIGHTS)
    assert recipe(**options, resume_from_checkpoint=run / "checkpoint-2") == 2
    assert f"{WEIGHTS} has another content" in capsys.readouterr().err

    assert recipe(**options) == 0  # from the newest, or anew where that ends with a damaged one
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
    KINDS["bit at the end"](run / "adapter" / WEIGHTS)
    arguments = ["--model", str(run / "adapter"), "--benchmark", "phantom"]
    assert main(["evaluate", *arguments, "--output_dir", str(tmp_path / "scores")]) == 2
    assert f"{WEIGHTS} has another content" in capsys.readouterr().err
    caplog.clear()
    assert recipe(**options) == 0
    assert (
        f"adapter is damaged, and is made anew from the last checkpoint: {WEIGHTS}" in caplog.text
    )
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
    growing = {**options, "stages": "before", "max_steps": 8}
    assert recipe(**growing) == 2  # of a cosine schedule it would be another run anyway
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
