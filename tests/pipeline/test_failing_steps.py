"""A whole run whose step fails ends in words, and goes on; a part of a run says what is left."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeline.entry import Recipe
from pipeline.test_two_processes import read, started, words
from safetensors.torch import load_file

from medrm.integrity import damage
from medrm.objectives.judge import judge_grpo
from medrm.objectives.training_faults import NAN_FILE

WEIGHTS = "adapter/adapter_model.safetensors"


def by_letters(completions: Any, **columns: Any) -> list[float]:
    """Rewards some letters more than others, so that a random model has something to learn."""
    return [sum(map(ord, completion[0]["content"])) % 17 / 17 for completion in completions]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Returns a function that lets the loss of one micro-batch, counted from 1, be no number."""
    step = transformers.Trainer.training_step

    def at(number: int | None) -> None:
        counted = 0

        def training_step(self: Any, *args: Any) -> torch.Tensor:
            nonlocal counted
            counted += 1
            loss = step(self, *args)
            return loss * torch.nan if counted == number else loss

        monkeypatch.setattr(transformers.Trainer, "training_step", training_step)

    return at


@pytest.mark.slow
def test_grpo_stops_at_a_loss_that_is_no_number_and_goes_on(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    failing: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [by_letters])
    common = {"train_data": phantom, "stages": "train", "controls": "none"}
    first = {"objective": "judge_sft", "output_dir": tmp_path / "sft", "max_steps": 2}
    assert recipe(**common, **first) == 0
    grpo = {
        "objective": "judge_grpo", "init_adapter": tmp_path / "sft" / "adapter", "max_steps": 4,
        "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4,
        "gradient_accumulation_steps": 1, "steps_per_generation": 1, "save_steps": 1,
        "learning_rate": 1e-3,
    }  # fmt: skip
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert recipe(**common, **grpo, output_dir=straight) == 0
    failing(3)
    capsys.readouterr()
    assert recipe(**common, **grpo, output_dir=run) == 1
    told = capsys.readouterr().err
    assert "Training stopped at step 3 of 4: the loss is nan" in told
    assert "Traceback" not in told
    record = read(run / NAN_FILE)
    assert record["step"] == 3
    assert record["micro_batches"][0]["loss"] == "nan"
    assert all(case.startswith("phantom-") for case in record["micro_batches"][0]["case_ids"])
    assert sorted(path.name for path in run.glob("checkpoint-*"))[-1] == "checkpoint-2"
    assert not (run / "adapter").exists()
    failing(None)
    assert recipe(**common, **grpo, output_dir=run) == 0
    assert not (run / NAN_FILE).exists()
    assert (run / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_a_run_without_enough_memory_says_what_to_lower_and_goes_on(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    objective: str,
) -> None:
    """As a GPU says it; `MemoryError` of a CPU likewise, in tests/objectives."""
    options = {"objective": objective, "train_data": phantom, "stages": "train", "max_steps": 2}
    options |= {"per_device_train_batch_size": 4, "controls": "none"}

    def full(*unused: Any, **also_unused: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", full)
        assert recipe(**options) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in told
    assert re.search(r"Learned from at once: (cases|examples) \d+, tokens", told), told
    assert "--per_device_train_batch_size from 4 to 2" in told
    less = {"per_device_train_batch_size": 2}
    less |= {} if objective == "bradley_terry" else {"gradient_accumulation_steps": 2}
    assert recipe(**{**options, **less}) == 0  # the same run, as it says


@pytest.mark.slow
def test_each_part_of_a_run_says_what_is_left(
    recipe: Recipe, phantom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"train_data": phantom, "controls": "none", "max_steps": 1}
    caplog.set_level("INFO")
    for stages, left in (
        ("before", "train,after,compare"),
        ("train", "after,compare"),
        ("before,after", "compare"),
        ("after,compare", None),
    ):
        caplog.clear()
        assert recipe(**options, stages=stages) == 0
        if left is None:
            assert "still to do" not in caplog.text
        else:
            told = f"still to do: {left}. The same command with --stages {left} does it"
            assert told in caplog.text, stages


@pytest.mark.distributed
def test_under_deepspeed_the_checkpoint_before_is_whole_and_the_run_goes_on(
    root: Path, base: Path, phantom: Path, tmp_path: Path
) -> None:
    """It changes weights and looks at gradients at once: what was changed is in no file."""
    pytest.importorskip("deepspeed", reason="deepspeed is a dependency on Linux only")
    options = words({
        "model_name_or_path": base, "train_data": phantom, "max_steps": 4, "global_batch_cases": 8,
        "bf16": "false", "report_to": "none", "controls": "none", "stages": "train",
        "save_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 4,
    })  # fmt: skip
    script = "tests/pipeline/as_faulty.py"
    for name in ("straight", "run"):
        (tmp_path / name).mkdir()
    straight = started(root, tmp_path / "straight", "zero3", [script, "0", *options])
    assert straight.returncode == 0, straight.stderr[-4000:]
    stopped = started(root, tmp_path / "run", "zero3", [script, "3", *options])
    assert stopped.returncode != 0
    assert "Training stopped at step 3 of 4: the loss is nan" in stopped.stderr
    run = tmp_path / "run" / "zero3"
    assert read(run / NAN_FILE)["step"] == 3
    newest = sorted(run.glob("checkpoint-*"))[-1]
    assert newest.name == "checkpoint-2"
    assert damage(newest) == []
    assert not (run / "adapter").exists()
    again = started(root, tmp_path / "run", "zero3", [script, "0", *options])
    assert again.returncode == 0, again.stderr[-4000:]
    expected = load_file(tmp_path / "straight" / "zero3" / WEIGHTS)
    for name, tensor in load_file(run / WEIGHTS).items():
        assert torch.equal(tensor, expected[name]), name
