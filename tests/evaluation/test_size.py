"""A benchmark of the released size is reported and compared in seconds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from mock_scorers import make_benchmark

from medrm.evaluation.benchmark import Setup
from medrm.evaluation.compare import compare
from medrm.evaluation.records.jsonl import write_rows
from medrm.evaluation.report import build_report, write_report
from medrm.schema import DIMENSIONS, Case, Order, PairLabel, Protocol, Verdict
from medrm.scorer.verdict_rules import labelled

SHOWN: tuple[tuple[Protocol, Order], ...] = (
    ("official", "forward"),
    ("robust", "forward"),
    ("robust", "reversed"),
)


def judged(cases: list[Case], skill: float, generator: random.Random) -> list[Verdict]:
    rows = []
    for case in cases:
        for dimension in DIMENSIONS:
            is_a = case.labels[dimension].choice == 0
            for protocol, order in SHOWN:
                says_a = is_a == (generator.random() < skill)
                chance = 0.5 + generator.random() / 2
                verdict = Verdict(
                    *(case.case_id, dimension, protocol, order, "A" if says_a else "B"),
                    probability_a=chance if says_a else 1 - chance,
                )
                rows.append(labelled(case, verdict))
    return rows


@pytest.mark.slow
def test_1026_cases_in_two_orders_on_six_dimensions(tmp_path: Path) -> None:
    """13 organs, 5 modalities, 8 departments; 3 seconds on an idle core, so 30 of processor time
    say that something grew with the square of the cases."""
    generator = random.Random(0)
    labels = [PairLabel((1.0, 0.0, 0.0), 3), PairLabel((0.0, 0.0, 1.0), 3)]
    cases = [
        Case(
            case_id=f"case-{number:04d}",
            images=(),
            question="Which?",
            answers=("a" * generator.randint(20, 400), "b" * generator.randint(20, 400)),
            labels={name: generator.choice(labels) for name in DIMENSIONS},
            cluster=f"cluster-{number // 2}",
            groups={
                "organ": f"organ-{number % 13}",
                "modality": f"modality-{number % 5}",
                "department": f"department-{number % 8}",
            },
        )
        for number in range(1026)
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)
    started = time.process_time()
    for name, skill in (("before", 0.6), ("after", 0.68)):
        rows = judged(cases, skill, generator)
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "verdicts.jsonl", rows)
        setup = Setup(name, None, "generate", DIMENSIONS, {}, "both")
        report = build_report(setup, benchmark, [], rows)
        write_report(tmp_path / name, report)
    result = compare(tmp_path / "before", tmp_path / "after")
    assert time.process_time() - started < 30
    assert result["verdict"] == "Improved"
    assert len(result["cells"]["organ"]) == 13 * 6
    assert sum(cell["n"] for cell in result["cells"]["organ"]) == 1026 * 6
