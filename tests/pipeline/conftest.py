"""A tiny base model and small phantom sets for whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline.entry import Recipe, load_main
from tiny import save_tiny

from medrm.cli import main as medrm_command
from medrm.data.phantom.phantom_set import write_phantom


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("base") / "tiny-base")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=40, seed=11)
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that shares nothing with `phantom`, written by the command."""
    folder = tmp_path_factory.mktemp("other")
    arguments = ["data", "phantom", "--cases", "16", "--seed", "12", "--output", str(folder)]
    assert medrm_command(arguments) == 0
    return folder


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Recipe:
    """Runs train_rm.py on the tiny base with a few steps; options override."""

    def run(**options: object) -> int:
        judge = str(options.get("objective", "")).startswith("judge")
        answers = options.get("dpo_pairs") == "answers"
        arguments = {
            "model_name_or_path": base,
            "output_dir": tmp_path / "run",
            "max_steps": 4,
            **({} if judge else {"global_batch_cases": 8}),
            **({"max_new_tokens": 8} if judge and not answers else {}),
            "save_steps": 2,
            "eval_steps": 2,
            "logging_steps": 1,
            "controls": "blank_images" if judge else "zero_shot_likelihood",
            "report_to": "none",
            **options,
        }
        return load_main("recipes/train_rm.py")(
            [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        )

    return run
