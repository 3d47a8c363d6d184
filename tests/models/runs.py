"""Trainings of two steps on a CPU, as the command line gives them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors.torch import load_file

from medrm.config.parse import parse_run
from medrm.files import asset
from medrm.objectives import argument_classes
from medrm.pipeline.context import RunContext
from medrm.pipeline.prepare_data import prepare_data


def context_of(base: Path, data: Path, objective: str, folder: Path) -> RunContext:
    """All that a training of two steps needs."""
    settings = {
        "model_name_or_path": base, "objective": objective, "train_data": data,
        "output_dir": folder / "run", "max_steps": 2, "per_device_train_batch_size": 2,
        "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", "warmup_steps": 0,
        "dataloader_num_workers": 0, "report_to": "none", "lora_r": 4, "bf16": False,
        **({"global_batch_cases": 4} if objective == "bradley_terry" else {}),
    }  # fmt: skip
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    recipe = "bradley_terry" if objective == "bradley_terry" else "judge_sft"
    path = asset(f"recipes/quickstart/{recipe}.yaml")
    run = parse_run(words, argument_classes(), path)
    return RunContext.prepare(run, prepare_data(run), folder / "run")


def check_two_steps(output: Path) -> None:
    """Checks that both steps had a finite loss and that the adapter moved."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    tensors = load_file(output / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
