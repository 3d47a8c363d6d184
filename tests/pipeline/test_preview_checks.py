"""What `--dry_run` of a training refuses: as the run itself would, launched as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline.entry import Recipe

from medrm.pipeline import context as run_context
from medrm.pipeline import memory_plan, train, training_preview
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.pipeline.manifest import sharding
from medrm.pipeline.processes import FSDP_SETTINGS

CPU = {"use_cpu": True, "dry_run": True}


def by_zero3(monkeypatch: pytest.MonkeyPatch, *, is_installed: bool = True) -> None:
    """The environment of a launch, with or without DeepSpeed."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("medrm.pipeline.run_needs._is_installed", lambda module: is_installed)


@pytest.mark.parametrize(
    ("options", "status"), [({"gradient_checkpointing": True, "lora_vision": True}, 2), ({}, 0)]
)
def test_what_the_launch_forbids_is_refused(
    options: dict[str, Any],
    status: int,
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_zero3(monkeypatch)
    assert recipe(train_data=phantom, **options, **CPU) == status
    captured = capsys.readouterr()
    assert ("DeepSpeed ZeRO-3, 8 processes" in captured.out) == (status == 0)
    assert ("under ZeRO-3" in captured.err) == (status == 2)


def test_a_run_under_way_by_zero3_goes_on(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its checkpoint is read by the sharding of the launch, not of the process that looks."""
    by_zero3(monkeypatch)
    manifests: list[dict[str, Any]] = []

    def plan(folder: Path, manifest: dict[str, Any], *rest: object) -> Any:
        manifests.append(manifest)
        return SimpleNamespace(goes_on=False)

    output = tmp_path / "run"
    (output / "checkpoint-1").mkdir(parents=True)
    (output / "run.json").write_text("{}")
    options = {"train_data": phantom, **CPU}
    with monkeypatch.context() as patched:
        patched.setattr(train, "plan_start", plan)
        assert recipe(**options) == 0
    launch = LaunchSettings.read(os.environ)
    manifest = {**manifests[0], "sharding": sharding(launch)}  # as the run itself records it
    (output / "run.json").write_text(json.dumps(manifest))
    assert recipe(**options) == 0
    assert "goes on with the run" in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    assert recipe(**options) == 2
    assert "is under way with sharding ZeRO-3" in capsys.readouterr().err


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "WORLD_SIZE": "8",
    **{name.upper(): value for name, (value, _) in FSDP_SETTINGS.items()},
}


@pytest.mark.parametrize(
    ("environment", "options", "text"),
    [
        (FSDP2, {}, ""),
        (FSDP2, {"load_in_4bit": True}, "whole on every GPU under FSDP"),
        ({**FSDP2, "FSDP_VERSION": "1"}, {}, "fsdp_version is 1 in the launch file"),
        (FSDP2, {"objective": "judge_grpo", "init_adapter": "."}, "never run under FSDP"),
    ],
)
def test_what_the_launch_file_says_is_checked(
    environment: dict[str, str],
    options: dict[str, Any],
    text: str,
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("medrm.pipeline.run_needs._is_installed", lambda module: True)
    monkeypatch.setattr(run_context, "check_init_adapter", lambda run: None)
    monkeypatch.setattr(training_preview, "refuse_seen_init_adapter", lambda *a: None)
    assert recipe(train_data=phantom, **options, **CPU) == (2 if text else 0)
    assert text in capsys.readouterr().err
    assert all(os.environ[name] == value for name, value in environment.items())


def test_packages_of_the_launch_are_looked_for(
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_zero3(monkeypatch, is_installed=False)
    assert recipe(train_data=phantom, **CPU) == 2
    captured = capsys.readouterr()
    assert "Memory of each device" in captured.out
    assert "deepspeed is not installed" in captured.err


def test_an_optimiser_that_is_not_installed_is_missing(
    recipe: Recipe, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"optim": "galore_adamw", "optim_target_modules": "q_proj"}
    assert recipe(train_data=phantom, **options, **CPU) == 2
    captured = capsys.readouterr()
    assert "Activations are not counted" in captured.out
    assert "galore-torch is not installed" in captured.err
    assert "training: ImportError: " in captured.err


def test_a_model_that_cannot_be_built_leaves_the_rest(
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lacks(*args: object) -> None:
        raise ImportError("flash_attn seems to be not installed")

    monkeypatch.setattr(memory_plan, "empty_base", lacks)
    assert recipe(train_data=phantom, **CPU) == 2
    captured = capsys.readouterr()
    assert "Evaluations" in captured.out
    assert "cannot be built here: ImportError: flash_attn seems" in captured.err


def test_of_several_seeds_the_first_is_shown(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"train_data": phantom, "seeds": "3,1", **CPU}
    assert recipe(**options) == 0
    text = capsys.readouterr().out
    line = "2 runs, one for each seed (3, 1); what follows is of seed 3."
    assert line in " ".join(text.split())
    assert f"writtento{tmp_path / 'run' / 'seed-3'}." in "".join(text.split())  # lines are broken
    assert recipe(**options, push_to_hub=True) == 2
    assert "do not go with --seeds" in capsys.readouterr().err
