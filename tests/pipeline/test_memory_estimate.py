"""The estimated memory of a training step against the peak that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline.memory_shapes import (
    EVALUATED,
    MEASURED,
    Shape,
    evaluation_peaks,
    peaks,
    save_shape,
)
from torch import nn

from medrm.data.phantom.phantom_set import write_phantom
from medrm.models.memory_estimate import Rehearsal, rehearse_step
from medrm.pipeline.training_preview import MEASURED_ERROR, MOST_ABOVE_IN_GRPO


def compared(
    shape: Shape, options: dict[str, Any], folder: Path, device: str
) -> tuple[float, float]:
    write_phantom(folder / "data", cases=40, seed=3)
    return peaks(save_shape(shape, folder / "base"), folder / "data", options, device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [(shape, options) for title, shape, options in MEASURED if "wide" not in title],
    ids=[title for title, *_ in MEASURED if "wide" not in title],
)
def test_the_error_is_within_what_is_said(
    shape: Shape, options: dict[str, Any], tmp_path: Path
) -> None:
    estimate, measured = compared(shape, options, tmp_path, "cpu")
    above = MOST_ABOVE_IN_GRPO if options.get("objective") == "judge_grpo" else MEASURED_ERROR
    assert -MEASURED_ERROR <= estimate / measured - 1 <= above


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [(shape, options) for title, shape, options in EVALUATED if "wide" not in title],
    ids=[title for title, *_ in EVALUATED if "wide" not in title],
)
def test_the_error_of_evaluations_is_within_what_is_said(
    shape: Shape, options: dict[str, Any], tmp_path: Path
) -> None:
    write_phantom(tmp_path / "data", cases=40, seed=3)
    base = save_shape(shape, tmp_path / "base")
    estimate, measured = evaluation_peaks(base, tmp_path / "data", options)
    assert abs(estimate / measured - 1) <= MEASURED_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "options"),
    [(shape, options) for _, shape, options in MEASURED],
    ids=[title for title, *_ in MEASURED],
)
def test_the_error_on_a_gpu(shape: Shape, options: dict[str, Any], tmp_path: Path) -> None:
    estimate, measured = compared(shape, options, tmp_path, "cuda")
    assert estimate == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("accumulates", [False, True])
def test_a_step_that_can_be_counted_by_hand(accumulates: bool) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.Linear(200, 50, bias=False))
    model[0].requires_grad_(False)
    rehearsal = Rehearsal()
    rehearsal.pretend(model)

    def step() -> None:
        model(torch.ones(10, 100)).sum().backward()

    memory = rehearse_step(
        rehearsal, model, step, lambda: torch.optim.AdamW(model[1].parameters()), accumulates
    )
    assert memory.weights == 4 * 100 * 200
    assert memory.trained == memory.gradients == 4 * 200 * 50
    assert 2 * memory.trained <= memory.optimiser <= 2 * memory.trained + 8
    # What the second layer reads waits for its gradient, [10, 200]; the rest is smaller.
    least = 4 * 10 * 200 if accumulates else 0
    assert least <= memory.activations <= 4 * (10 * 100 + 10 * 200 + 3 * 200 * 50)


def test_a_mask_made_of_tokens_counts_too() -> None:
    """It is computed from integers, which are not fake."""
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    rehearsal = Rehearsal()
    rehearsal.pretend(model)
    tokens = torch.arange(700)

    def step() -> None:
        mask = (tokens[:, None] >= tokens).float()
        (model(torch.ones(700, 8)) @ torch.ones(8, 700) + mask).sum().backward()

    assert rehearse_step(rehearsal, model, step, 8, False).activations > 3 * 4 * 700 * 700


def test_offloaded_activations_are_not_on_the_device() -> None:
    found = {}
    for offloads in (False, True):
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
        rehearsal = Rehearsal()
        rehearsal.pretend(model)

        def step(model: nn.Module = model) -> None:
            model(torch.ones(512, 64)).sum().backward()

        found[offloads] = rehearse_step(rehearsal, model, step, 8, True, offloads)
    assert found[True].activations < found[False].activations / 2
    assert found[False].offloaded == 0
    assert found[True].offloaded >= 7 * 512 * 64 * 4
