"""What a run that lacks memory is told to lower, and whether it then goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeline.entry import Recipe

from medrm.failures import GOES_ON


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_the_advice_is_taken_as_it_says(
    dropout: float,
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lacks(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    options: dict[str, Any] = {
        "train_data": phantom, "stages": "train", "use_cpu": True, "lora_dropout": dropout,
        "per_device_train_batch_size": 4, "gradient_checkpointing": True,
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(transformers.Trainer, "training_step", lacks)
        assert recipe(**options) == 1
    said = capsys.readouterr().err
    advice = re.search("(L|l)ower --per_device_train_batch_size from 4 to 2", said)
    assert advice is not None
    goes_on = advice[1] == "L"
    assert goes_on == (GOES_ON in said) == (not dropout)
    assert ("As another run (--overwrite_output_dir true" in said[: advice.start()]) != goes_on
    lower = {**options, "per_device_train_batch_size": 2, "dry_run": True}
    assert recipe(**lower) == (0 if goes_on else 2)
    assert recipe(**lower, overwrite_output_dir=True) == 0
    checkpointing = {**options, "gradient_checkpointing": False, "dry_run": True}
    assert recipe(**checkpointing) == 0  # which changes nothing
