"""Losses and gradients that are no numbers end a training; too little memory says what to lower."""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from judging import by_letters, judged_cases, make_judging
from preferences import make_recipe
from torch import Tensor

from medrm.config.options import AdapterOptions
from medrm.errors import RunFailed
from medrm.failures import GOES_ON, failure_of
from medrm.objectives.judge import judge_grpo
from medrm.objectives.training_faults import NAN_FILE, MicroBatch, fewer_rows

STEPS: dict[str, Any] = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None,
    "logging_steps": 1, "warmup_steps": 0, "eval_strategy": "no", "load_best_model_at_end": False,
}  # fmt: skip

OBJECTIVES: dict[str, dict[str, Any]] = {
    "bradley_terry": {"global_batch_cases": 8, "per_device_train_batch_size": 4},
    "judge_sft": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "judge_dpo": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "judge_grpo": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2,
        "max_completion_length": 4,
    },
}  # fmt: skip
"""Steps of two micro-batches."""

FAST_AND_SLOW = [
    *("bradley_terry", "judge_sft"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("judge_dpo", "judge_grpo")),
]

ANOTHER = "As another run (--overwrite_output_dir true or another --output_dir)"
SMALLER = "fewer --max_pixels, a lower --max_length, or --load_in_4bit true"

FAULTY = 6
"""The micro-batch that fails: the second of the third step."""

Fault = Callable[[torch.nn.Module, Tensor], Tensor]
"""What happens to a model and to its loss after a backward pass; returns the loss."""


def nan_loss(model: torch.nn.Module, loss: Tensor) -> Tensor:
    return loss * torch.nan


def infinite_gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    next(p.grad for p in model.parameters() if p.grad is not None).fill_(torch.inf)
    return loss


def out_of_memory(model: torch.nn.Module, loss: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(autouse=True)
def _rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [by_letters])


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Any]:
    """Returns a function from an objective, a name and options to a tiny training."""

    def make(objective: str, name: str = "run", **options: Any) -> Any:
        options = {**STEPS, **OBJECTIVES[objective], **options}
        if objective == "bradley_terry":
            return make_recipe(tmp_path / name, **options)
        cases = {"train": judged_cases(4), "development": judged_cases(1, 100)}
        return make_judging(
            objective, tmp_path / name, adapter=AdapterOptions(lora_r=4), **cases, **options
        )

    return make


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault, int], None]:
    """Returns a function that lets a micro-batch fail, counted from 1."""
    step = transformers.Trainer.training_step

    def inject(fault: Fault, number: int) -> None:
        counted = 0

        def training_step(self: Any, model: Any, *args: Any) -> Tensor:
            nonlocal counted
            counted += 1
            loss = step(self, model, *args)
            return fault(model, loss) if counted == number else loss

        monkeypatch.setattr(transformers.Trainer, "training_step", training_step)

    return inject


def state_of(built: Any) -> dict[str, Tensor]:
    named = built.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("fault", [nan_loss, infinite_gradient])
@pytest.mark.parametrize("objective", FAST_AND_SLOW)
def test_a_step_that_is_no_number_changes_nothing(
    tmp_path: Path,
    build: Callable[..., Any],
    faulty: Callable[[Fault, int], None],
    objective: str,
    fault: Fault,
) -> None:
    before = build(objective, "two", max_steps=2, lr_scheduler_type="constant")
    before.trainer().train()
    built = build(objective, lr_scheduler_type="constant")
    faulty(fault, FAULTY)
    trainer = built.trainer()
    with pytest.raises(RunFailed) as raised:
        trainer.train()
    assert_same(state_of(built), state_of(before))
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    record = json.loads((folder / NAN_FILE).read_text(encoding="utf-8"))
    assert record["step"] == 3
    first, second = record["micro_batches"]
    is_loss = fault is nan_loss
    assert isinstance(first["loss"], float)
    assert (second["loss"] == "nan") == is_loss
    ids = {case.case_id for case in built.train}
    assert first["case_ids"]
    assert {*first["case_ids"], *second["case_ids"]} <= ids
    message = str(raised.value)
    assert message.startswith("Training stopped at step 3 of 4: the ")
    assert ("the loss is nan" if is_loss else "the gradient is not finite") in message
    named = {*re.findall(r"'(case-\d+)'", message)}
    assert named == {*second["case_ids"]} if is_loss else named >= {*second["case_ids"]}
    assert "lower --learning_rate (now 0.005)" in message
    assert failure_of(raised.value).status == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_the_run_goes_on_from_the_checkpoint_before(
    tmp_path: Path,
    build: Callable[..., Any],
    faulty: Callable[[Fault, int], None],
    objective: str,
) -> None:
    straight = build(objective, "straight")
    straight.trainer().train()
    faulty(infinite_gradient, FAULTY)
    with pytest.raises(RunFailed):
        build(objective).trainer().train()
    again = build(objective)
    again.trainer().train(str(tmp_path / "run" / "checkpoint-2"))
    assert_same(state_of(again), state_of(straight))
    assert not (tmp_path / "run" / NAN_FILE).exists()
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "run")]
    assert lines[0] == lines[1]


def test_a_scaler_of_float16_is_left_to_lower_its_scale(build: Callable[..., Any]) -> None:
    trainer = build("bradley_terry").trainer()
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.grad = torch.full_like(weight, torch.inf)
    trainer._micro_batches.append(MicroBatch([0], torch.tensor(1.0)))
    trainer.accelerator.scaler = object()
    trainer.check_step(trainer.model)
    assert not trainer._micro_batches


def test_a_measurement_that_is_no_number_is_no_checkpoint(
    tmp_path: Path, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build("bradley_terry", eval_strategy="steps", eval_steps=2)
    trainer = built.trainer()
    measure = trainer.compute_metrics
    trainer.compute_metrics = lambda prediction: {**measure(prediction), "loss": float("nan")}
    with pytest.raises(RunFailed, match="after step 2 of 4: the loss on the development split"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


MEMORY = {
    "bradley_terry": ({}, r"cases 4, tokens \d+ x \d+", "batch_size from 4 to 2: the steps stay"),
    "judge_sft": (
        {},
        r"examples 2, tokens 2 x \d+",
        "size from 2 to 1 and raise --gradient_accumulation_steps from 2 to 4: the steps stay",
    ),
    "judge_dpo": ({"gradient_checkpointing": True}, r"examples 2, tokens 4 x \d+", "from 2 to 1"),
    "judge_grpo": ({}, "examples 4", "--per_device_train_batch_size from 2 to 1"),
}


@pytest.mark.parametrize("objective", FAST_AND_SLOW)
def test_too_little_memory_in_training(
    build: Callable[..., Any], faulty: Callable[[Fault, int], None], objective: str
) -> None:
    options, held, lower = MEMORY[objective]
    faulty(out_of_memory, 1)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        build(objective, **options).trainer().train()
    failure = failure_of(raised.value)
    assert failure is not None
    assert failure.status == 1
    assert re.search(f"Learned from at once: {held}", failure.message)
    assert lower in failure.message
    recomputes = "gradient_checkpointing" in options
    assert ("Set --gradient_checkpointing true" in failure.message) != recomputes


def test_a_budget_of_tokens_is_lowered_to_what_the_longest_case_needs(
    build: Callable[..., Any], faulty: Callable[[Fault, int], None]
) -> None:
    faulty(out_of_memory, 1)
    built = build("bradley_terry", max_tokens_per_batch=4000, per_device_train_batch_size=None)
    trainer = built.trainer()
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer.train()
    said = re.search(r"--max_tokens_per_batch from 4000 to (\d+)", str(raised.value.__notes__))
    assert said is not None
    lower = int(said[1])
    assert lower >= trainer.plan.most_tokens
    again = build(
        "bradley_terry", "again", max_tokens_per_batch=lower, per_device_train_batch_size=None
    )
    again.trainer().train()
    at_floor = build(
        "bradley_terry",
        "floor",
        max_tokens_per_batch=trainer.plan.most_tokens,
        per_device_train_batch_size=None,
    )
    assert at_floor.trainer().plan.rounds > trainer.plan.rounds


def test_too_little_memory_in_measuring(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build("bradley_terry", per_device_eval_batch_size=4)
    trainer = built.trainer()
    monkeypatch.setattr(trainer, "prediction_step", lambda *a, **k: out_of_memory(*a[:2]))
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer.evaluate()
    assert raised.value.__notes__ == [
        "Measuring the development split.",
        "Lower --per_device_eval_batch_size from 4 to 2.",
        f"Then {GOES_ON}.",
        f"{ANOTHER}: {SMALLER}.",
    ]


def test_a_judge_measures_otherwise_in_smaller_batches(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("judge_sft", per_device_eval_batch_size=4).trainer()
    monkeypatch.setattr(trainer, "prediction_step", lambda *a, **k: out_of_memory(*a[:2]))
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer.evaluate()
    assert raised.value.__notes__ == [
        "Measuring the development split.",
        f"{ANOTHER}: lower --per_device_eval_batch_size from 4 to 2; or {SMALLER}.",
    ]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    ("objective", "draws"),
    [("bradley_terry", ["lora_dropout"]), ("judge_sft", ["lora_dropout"]), ("judge_sft", [])],
)
def test_what_changes_numbers_is_another_run(
    build: Callable[..., Any],
    faulty: Callable[[Fault, int], None],
    objective: str,
    draws: list[str],
    recomputes: bool,
) -> None:
    faulty(out_of_memory, 1)
    options = {} if draws else {"per_device_train_batch_size": 3}
    trainer = build(objective, gradient_checkpointing=recomputes, **options).trainer()
    trainer.draws = draws
    assert draws or len(trainer.train_dataset) % 3
    with pytest.raises(torch.OutOfMemoryError) as raised:
        trainer.train()
    _, *advice, last = raised.value.__notes__
    assert last.startswith(f"{ANOTHER}: lower --per_device_train_batch_size from ")
    recompute = "Set --gradient_checkpointing true: the same numbers, in more time."
    assert advice == ([] if recomputes else [recompute, f"Then {GOES_ON}."])


@pytest.mark.parametrize(
    ("size", "accumulation", "said"),
    [(8, 1, "from 8 to 4 and raise"), (9, 2, "from 9 to 3 and raise"), (7, 1, "from 7 to 1 and")],
)
def test_a_judges_step_keeps_its_rows(size: int, accumulation: int, said: str) -> None:
    text = fewer_rows(size, accumulation)
    assert text is not None
    assert said in text
    _, lower, _, higher = map(int, re.findall(r"\d+", text))
    assert lower * higher == size * accumulation
    assert fewer_rows(1, 4) is None


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_a_worker_that_cannot_send_its_batch_ends_the_training(
    build: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    """It sends by way of a socket, whose path may have about a hundred characters."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(vars(multiprocessing.current_process())["_config"], "tempdir", False)
    trainer = build(objective, dataloader_num_workers=1, ddp_timeout=120).trainer()
    started = time.monotonic()
    with pytest.raises(RunFailed) as raised:
        trainer.train()
    assert time.monotonic() - started < 60
    failure = failure_of(raised.value)
    assert failure is not None
    assert failure.message.startswith(
        "A process that loads images cannot send its batch: AF_UNIX path too long. Mostly"
    )
    assert "Lower --dataloader_num_workers (0: none)" in failure.message
    assert "Traceback" not in failure.message


@pytest.mark.slow
def test_a_worker_that_gives_nothing_is_not_waited_for_without_end(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("bradley_terry", dataloader_num_workers=1, ddp_timeout=1).trainer()
    monkeypatch.setattr(trainer, "data_collator", lambda drawn: time.sleep(60))
    with pytest.raises(RuntimeError, match="timed out") as raised:
        trainer.train()
    failure = failure_of(raised.value)
    assert failure is not None
    assert failure.message.startswith("The processes that load images gave no batch: DataLoader")
    assert "raise --ddp_timeout" in failure.message


@pytest.mark.gpu
@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_too_little_memory_of_a_gpu(build: Callable[..., Any], objective: str) -> None:
    """The driver's own error, which a limit on this process's share of the memory provokes."""
    trainer = build(objective, use_cpu=False).trainer()
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(used)
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    failure = failure_of(raised.value)
    assert failure is not None
    assert "Learned from at once: " in failure.message
    assert "Set --gradient_checkpointing true" in failure.message
