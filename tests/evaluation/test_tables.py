"""The terminal tables: what they show, and that 80 columns hold it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from mock_scorers import Rewards, Writer, make_benchmark, make_cases, oracle
from rich.console import Console

from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.tables.terminal import print_comparison, print_report
from medrm.schema import DIMENSIONS, Case


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Everything right after, everything wrong before, on six dimensions."""
    cases = [
        replace(case, labels=dict.fromkeys(DIMENSIONS, case.labels["accuracy"]))
        for case in make_cases("AB" * 600)
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)
    rules = {"before": lambda case: oracle(case)[::-1], "after": oracle}
    for name, rule in rules.items():
        evaluate(Rewards(rule, DIMENSIONS[:5]), benchmark, tmp_path / name, "phantom-base")
    return {name: tmp_path / name for name in rules}


def shown(printer: object, content: dict) -> str:
    stream = io.StringIO()
    printer(content, Console(file=stream, width=80))
    return stream.getvalue()


def test_comparison_at_80_columns(folders: dict[str, Path]) -> None:
    controls = {"zero_shot_likelihood": folders["before"], "blank_images": folders["before"]}
    text = shown(print_comparison, compare(folders["before"], folders["after"], controls=controls))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    lines = [line.strip() for line in text.splitlines()]
    row = next(line for line in lines if line.startswith("comprehensiveness"))
    assert row.split() == [
        *("comprehensiveness", "0.0", "100.0", "+100.0", "(+98.7,", "+100.0)", "<0.001", "1200"),
        "-",
    ]
    assert next(line for line in lines if line.startswith("accuracy ")).endswith("96.0")
    assert next(line for line in lines if line.startswith("overall")).split()[1] == "-"
    assert "base, answer likelihood" in text
    assert "trained, blank images" in text
    assert "Improved on accuracy: 0.0 % -> 100.0 %" in " ".join(lines)


def test_report_at_80_columns(folders: dict[str, Path], tmp_path: Path) -> None:
    cases = make_cases("AB" * 600)
    report = evaluate(
        Rewards(lambda case: None if case.case_id == "case-000" else oracle(case)),
        make_benchmark(cases),
        tmp_path,
        "model",
    )
    text = shown(print_report, report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "99.9 (99.8, 100.0)" in text  # the interval is cut at 100 % for reading
    assert "bad_image 1" in text


def test_a_judge_at_80_columns(tmp_path: Path) -> None:
    """Right whenever it is read; every fifth reply is a refusal, every tenth names assistants."""
    cases = [
        replace(case, labels=dict.fromkeys(DIMENSIONS, case.labels["accuracy"]))
        for case in make_cases("AB" * 600)
    ]

    def rule(case: Case, order: str, *_: object) -> str:
        number = int(case.case_id[-3:])
        letter = "A" if (number % 2 == 0) == (order == "forward") else "B"
        if number % 5 == 0:
            return "I cannot help with that [/red]."
        return json.dumps(dict.fromkeys(DIMENSIONS, letter if number % 10 else "Assistant B"))

    writer = Writer(rule, DIMENSIONS)
    benchmark = make_benchmark(cases, DIMENSIONS)
    report = evaluate(writer, benchmark, tmp_path, "m", settings={"prompt": "json 1"})
    text = shown(print_report, report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "official scorer, medrm prompt" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["overall", "80.0", "50.0", "80.0", "0.667", "0.717"] in lines
    assert "no JSON object 240 (cases)" in text
    assert "strict parser: json 1920, none 480." in " ".join(text.split())


def test_names_are_neither_markup_nor_control_characters(folders: dict[str, Path]) -> None:
    comparison = compare(folders["before"], folders["after"])
    names = ("safety [strict]", "x[/red]", "y\x1b[2J")
    entry = comparison["dimensions"]["accuracy"]
    comparison["dimensions"] = dict.fromkeys(names, entry)
    comparison["benchmark"] = comparison["benchmark"] | {"name": "set [bold]"}
    text = shown(print_comparison, comparison)
    for name in ("safety [strict]", "x[/red]", "y\ufffd[2J", "set [bold]"):
        assert name in text
    assert "\x1b[2J" not in text
