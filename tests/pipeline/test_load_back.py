"""A saved adapter that scores otherwise than the trained model ends the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline.entry import Recipe

from medrm.errors import DeterminismError
from medrm.models import adapter
from medrm.pipeline import load_back, stages
from medrm.schema import Response, State


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"objective": "judge_sft"}, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16", "bf16": "true"}, marks=pytest.mark.slow),
    ],
)
def test_one_lost_bit_is_found(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    scored = []
    check = stages.check_load_back

    def recorded(context: Any, folder: Path, saved: Any, trained: Any) -> None:
        scored.append(trained)
        check(context, folder, saved, trained)

    monkeypatch.setattr(stages, "check_load_back", recorded)
    data = {"train_data": phantom / "votes.jsonl", "controls": "none"}
    # Warm: the first step of a warm-up would leave LoRA's B at zero, and A without effect.
    small = {**data, "max_steps": 2, "learning_rate": 0.01, "warmup_steps": 0, **options}
    assert recipe(**small) == 0
    assert [response.state for response in scored[0]] == ["ok"] * 4

    def in_less_precision(model: Any, state_dict: Any = None) -> dict[str, torch.Tensor]:
        tensors = kept(model, state_dict)
        return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}

    kept = adapter.tensors_of
    monkeypatch.setattr(adapter, "tensors_of", in_less_precision)
    assert recipe(**small, output_dir=tmp_path / "rounded") == 2
    assert "The saved adapter does not score as the trained model: case" in capsys.readouterr().err


def trained(
    monkeypatch: pytest.MonkeyPatch, responses: Iterator[Response], parted: bool = False
) -> Any:
    """Returns what is kept of a trained model that gives those responses."""
    accelerator = SimpleNamespace(unwrap_model=lambda *_, **__: torch.nn.Linear(1, 1))
    trainer: Any = SimpleNamespace(
        is_deepspeed_enabled=False,
        is_fsdp_enabled=parted,
        accelerator=accelerator,
        model_wrapped=None,
    )
    context: Any = SimpleNamespace(processor=None)
    monkeypatch.setattr(load_back, "_scores", lambda *_: responses)
    return load_back.trained_scores(context, trainer, None)  # type: ignore[arg-type]


def responses_of(*states: State) -> list[Response]:
    return [
        Response(str(number), "forward", None, 0, "reward", rewards={"overall": (0.0, 1.0)})
        if state == "ok"
        else Response(str(number), "forward", None, 0, "reward", state=state)
        for number, state in enumerate(states)
    ]


def no_kernel() -> Iterator[Response]:
    yield from responses_of("ok")
    raise DeterminismError("cumsum has no deterministic kernel")


@pytest.mark.parametrize(
    ("responses", "parted", "reason"),
    [
        (no_kernel(), False, "cumsum has no deterministic kernel"),
        (iter(()), True, "DeepSpeed or FSDP"),
        (iter(responses_of("too_long", "bad_image")), False, "2 cases are bad_image or too_long"),
    ],
)
def test_what_cannot_be_compared_is_said(
    responses: Iterator[Response],
    parted: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert trained(monkeypatch, responses, parted) is None
    assert "not compared bit by bit" in caplog.text
    assert reason in caplog.text


def test_cases_that_can_be_read_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[State] = ["too_long", "ok", "bad_image", "ok", "ok", "too_long", "ok"]
    responses = responses_of(*states)
    assert trained(monkeypatch, iter([*responses, *responses])) == responses
