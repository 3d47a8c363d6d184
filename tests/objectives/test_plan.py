"""The step planner: what a step is made of, and that no process, cut or kind changes it."""

from __future__ import annotations

import ast
import math
import sys
from collections import Counter
from pathlib import Path

import pytest

from medrm.objectives import step_plan as plan_module
from medrm.objectives.step_plan import Draw, StepPlan

COUNT = 75
LENGTHS = [20 + (37 * case) % 90 for case in range(COUNT)]
WEIGHTS = [1.0 + case % 3 for case in range(COUNT)]


def make(
    batch: int = 16, micro: int = 5, processes: int = 2, seed: int = 3, mixed: bool = False
) -> StepPlan:
    image_counts = [int(mixed and case % 4 == 0) for case in range(COUNT)]
    return StepPlan(LENGTHS, WEIGHTS, image_counts, batch, micro, processes, seed)


def steps(plan: StepPlan, epoch: int = 0) -> list[list[list[list[Draw]]]]:
    """Returns step, round, process -> draws."""
    dealt = [plan.micro_batches(epoch, process) for process in range(plan.processes)]
    rounds = list(zip(*dealt, strict=True))
    return [
        [list(row) for row in rounds[start : start + plan.rounds]]
        for start in range(0, len(rounds), plan.rounds)
    ]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("batch", "micro", "processes"), [(16, 5, 2), (16, 16, 1), (16, 1, 3), (7, 4, 4), (200, 9, 2)]
)
def test_every_step_has_its_cases_once_and_fillers_weigh_nothing(
    batch: int, micro: int, processes: int, mixed: bool
) -> None:
    plan = make(batch, micro, processes, mixed=mixed)
    planned = steps(plan)
    assert len(planned) == plan.steps == math.ceil(COUNT / batch)
    seen: Counter[int] = Counter()
    for rounds in planned:
        assert len(rounds) == plan.rounds
        real = [draw for row in rounds for cases in row for draw in cases if draw.scale > 0]
        assert len(real) == min(batch, COUNT - sum(seen.values()))
        assert math.fsum(draw.scale * WEIGHTS[draw.case] for draw in real) == pytest.approx(1)
        seen.update(draw.case for draw in real)
        assert all(1 <= len(cases) <= micro for row in rounds for cases in row)
    assert seen == Counter(range(COUNT))


def test_steps_do_not_depend_on_processes_or_accumulation() -> None:
    wanted = [sorted(cases) for cases in make().step_cases(1)]
    for micro, processes in [(16, 1), (1, 1), (3, 4), (8, 8)]:
        planned = steps(make(micro=micro, processes=processes), epoch=1)
        real = [
            sorted(d.case for row in rounds for cases in row for d in cases if d.scale > 0)
            for rounds in planned
        ]
        assert real == wanted


def test_a_round_never_mixes_kinds() -> None:
    plan = make(mixed=True)
    assert {plan.image_counts[case] for case in range(COUNT)} == {0, 1}
    for rounds in steps(plan):
        for row in rounds:
            assert len({plan.image_counts[draw.case] for cases in row for draw in cases}) == 1


def test_like_lengths_share_a_micro_batch() -> None:
    spread = [
        max(LENGTHS[d.case] for d in cases) - min(LENGTHS[d.case] for d in cases)
        for rounds in steps(make(batch=64, micro=4, processes=2))
        for row in rounds
        for cases in row
        if len(cases) > 1
    ]
    assert sum(spread) / len(spread) < 12


def test_order_follows_seed_and_epoch() -> None:
    assert make().step_cases(0) == make().step_cases(0)
    assert make().step_cases(0) != make().step_cases(1)
    assert make().step_cases(0) != make(seed=4).step_cases(0)


def test_imports_no_torch() -> None:
    tree = ast.parse(Path(plan_module.__file__).read_text(encoding="utf-8"))
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}
