"""Batches by a budget of tokens: no batch has more, and no step is another for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preferences import Recipe, make_recipe, preferences
from test_plan import steps
from test_training import one_step_gradients
from tiny import SOME_FAMILIES, make_tiny

from medrm.data.images import examine
from medrm.errors import ConfigError
from medrm.objectives import load_objective
from medrm.objectives.objective import BradleyTerryConfig
from medrm.objectives.step_plan import Draw, StepPlan, TokenBudget
from medrm.objectives.trainer import layout_of
from medrm.scorer.collator import Collator

COUNT = 203
LENGTHS = 40 + (37 * np.arange(COUNT)) % 300
ROWS = 2 + 2 * (np.arange(COUNT) % 7 == 0)
IMAGE_COUNTS = (np.arange(COUNT) % 5 == 0).astype(int)
ONE_STEP = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": False}  # fmt: skip

Build = Callable[..., Recipe]


def plan_with(
    tokens: int | None, rows: Any, processes: int = 1, image_counts: Any = IMAGE_COUNTS
) -> StepPlan:
    budget = None if tokens is None else TokenBudget(tokens, rows, epochs=3)
    return StepPlan(LENGTHS, np.ones(COUNT), image_counts, 32, 32, processes, 5, budget)


def tokens_of(draws: list[Draw], rows: Any) -> int:
    indices = [draw.case for draw in draws]
    if rows is None:
        return int(LENGTHS[indices].sum())
    return int(LENGTHS[indices].max() * rows[indices].sum())


@pytest.mark.parametrize("rows", [None, ROWS], ids=["packed", "rows"])
@pytest.mark.parametrize("processes", [1, 3])
def test_no_batch_exceeds_the_budget_and_no_step_changes(rows: Any, processes: int) -> None:
    free = plan_with(None, rows)
    for tokens in (1356, 2500, 10_000):
        plan = plan_with(tokens, rows, processes)
        for epoch in range(3):
            planned = steps(plan, epoch)
            assert {len(rounds) for rounds in planned} == {plan.rounds}
            batches = [[draws for row in rounds for draws in row] for rounds in planned]
            real = [sorted(d.case for b in step for d in b if d.scale > 0) for step in batches]
            assert real == [sorted(cases) for cases in free.step_cases(epoch)]
            assert max(tokens_of(draws, rows) for step in batches for draws in step) <= tokens


def test_rounds_are_the_fewest_that_every_step_can_keep() -> None:
    alike = np.zeros(COUNT, int)
    plan = plan_with(2500, None, image_counts=alike)
    needed = []
    for epoch in range(3):
        for cases in plan.step_cases(epoch):
            batches, room = 0, 0
            for length in sorted(LENGTHS[cases], reverse=True):
                batches, room = (
                    (batches, room - length) if length <= room else (batches + 1, 2500 - length)
                )
            needed.append(batches)
    assert plan.rounds == max(needed) > min(needed)
    # A step that needs fewer spreads its cases over all rounds, evenly, and runs no case in vain.
    for rounds in steps(plan)[:-1]:
        costs = [tokens_of(draws, None) for (draws,) in rounds]
        assert all(draw.scale > 0 for (draws,) in rounds for draw in draws)
        assert max(costs) - min(costs) <= LENGTHS.max()


def test_rounds_of_many_cases_and_processes() -> None:
    count = 50_000
    plan = StepPlan(
        np.resize(LENGTHS, count), np.ones(count), np.zeros(count, int), 64, 64, 4, 0,
        TokenBudget(4096, None, 2),
    )  # fmt: skip
    first = next(iter(plan.micro_batches(1, 0)))
    assert sum(LENGTHS[draw.case % COUNT] for draw in first) <= 4096


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_tokens_are_those_of_rows_and_of_forks(family: str) -> None:
    _, processor = make_tiny(family)
    cases = [*preferences(2), *preferences(1, 5, answers=3)]
    for orders in (0, 2):
        collator = Collator(processor, contextual_orders=orders)
        counts = collator.tokens(cases, examine(cases))
        forks = [collator.shared_rows([case])["shared_prefix"] for case in cases]
        longest = [fork.prefix_lengths[0] + max(fork.branch_lengths[0]) for fork in forks]
        assert counts["longest"].tolist() == longest
        computed = [sum(fork.prefix_lengths) + sum(fork.branch_lengths[0]) for fork in forks]
        assert counts["unique"].tolist() == computed


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_loss_and_gradients_are_those_without_a_budget(shared_prefix: bool, tmp_path: Path) -> None:
    options = {"shared_prefix": shared_prefix, **ONE_STEP}
    gradients, loss = one_step_gradients(make_recipe(tmp_path / "free", **options))
    probe = make_recipe(tmp_path / "cut", **options)
    field = "unique" if shared_prefix else "longest"
    longest = max(int(n[field]) for n in probe.lengths.values()) * (1 if shared_prefix else 2)
    cut = make_recipe(
        tmp_path / "cut", **options, max_tokens_per_batch=longest, per_device_train_batch_size=None
    )
    assert layout_of(cut.model.get_base_model()) == ("packed" if shared_prefix else "answers")
    cut_gradients, cut_loss = one_step_gradients(cut)
    trainer = cut.trainer()
    assert trainer.args.gradient_accumulation_steps == trainer.plan.rounds > 2
    for batch in trainer.get_train_dataloader():
        rows = batch["rows"]
        assert rows["input_ids"].numel() <= longest
    assert cut_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, atol=2e-6, rtol=1e-4)


def test_development_batches_keep_to_the_budget(recipe: Build) -> None:
    free = recipe()
    longest = max(int(count["unique"]) for count in free.lengths.values())
    built = recipe(max_tokens_per_batch=2 * longest, per_device_eval_batch_size=None)
    trainer = built.trainer()
    sizes = [batch["rows"]["input_ids"].numel() for batch in trainer.get_eval_dataloader()]
    assert max(sizes) <= 2 * longest
    assert len(sizes) < len(built.development)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        free.trainer().evaluate()["eval_loss"], abs=1e-5
    )


def test_the_probe_keeps_to_the_budget(tmp_path: Path, monkeypatch: Any) -> None:
    free = make_recipe(tmp_path / "free", frozen=True)
    longest = max(int(count["unique"]) for count in free.lengths.values())
    built = make_recipe(tmp_path / "cut", frozen=True, max_tokens_per_batch=longest)
    sizes = []
    forks = built.collator.shared_rows
    monkeypatch.setattr(
        built.collator, "shared_rows", lambda cases: sizes.append(len(cases)) or forks(cases)
    )
    built.trainer()
    assert max(sizes) == 1


@pytest.mark.parametrize("length", [{"max_steps": 2}, {"max_steps": -1, "num_train_epochs": 0.35}])
def test_the_probe_computes_what_it_learns_from_and_leaves_no_file(
    tmp_path: Path, monkeypatch: Any, length: dict[str, Any]
) -> None:
    """Two steps of five: eight of twenty training cases, and those that are measured."""
    built = make_recipe(tmp_path, frozen=True, global_batch_cases=4, **length)
    seen: list[str] = []
    forks = built.collator.shared_rows
    monkeypatch.setattr(
        built.collator, "shared_rows",
        lambda cases: seen.extend(case.case_id for case in cases) or forks(cases),
    )  # fmt: skip
    trainer = built.trainer()
    assert len(seen) == len(set(seen)) == 8 + len(built.development)
    assert not list(tmp_path.rglob("*.bin"))
    assert trainer.train().global_step == 2
    states = trainer.data_collator.args[0].__self__
    assert states.of(built.development[0]).shape[0] == 2
    with pytest.raises(KeyError):
        states.of(next(case for case in built.train if case.case_id not in seen))


def test_a_case_over_the_budget_is_an_error_before_any_model(recipe: Build) -> None:
    built = recipe(max_tokens_per_batch=30)
    check = load_objective("bradley_terry").check_lengths
    assert check is not None
    with pytest.raises(ConfigError, match=r"30, but 20 cases .* 'case-\d+', has .* max_length"):
        check(built.run, built.train, built.lengths)
    with pytest.raises(ConfigError, match="max_tokens_per_batch is 30"):
        built.trainer()


def test_sizes_that_are_left_out(tmp_path: Path) -> None:
    def sizes(**options: Any) -> tuple[int | None, int | None]:
        config = BradleyTerryConfig(output_dir=str(tmp_path), use_cpu=True, **options)
        return config.per_device_train_batch_size, config.per_device_eval_batch_size

    assert sizes() == (8, 8)
    assert sizes(per_device_train_batch_size=2) == (2, 2)
    assert sizes(max_tokens_per_batch=4096, global_batch_cases=48) == (48, 48)
    assert sizes(max_tokens_per_batch=4096, per_device_eval_batch_size=4) == (32, 4)
    with pytest.raises(ConfigError, match="max_tokens_per_batch is 0; give 1 or more"):
        sizes(max_tokens_per_batch=0)
