"""The before/after comparison against numbers worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mock_scorers import Judge, Rewards, make_benchmark, make_cases, oracle

from medrm.cli import main
from medrm.errors import ConfigError, DataError
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.pages.report_page import write_page
from medrm.schema import Case

Z = 1.959963984540054

ENTRY = ("dimension", "before", "after", "delta", "ci95", "p")


def right_on(numbers: range, dimensions: tuple[str, ...] = ("accuracy",)) -> Rewards:
    """A reward model that is right on these cases and wrong on the others."""

    def rule(case: Case) -> tuple[float, float]:
        first, second = oracle(case)
        return (first, second) if int(case.case_id[-3:]) in numbers else (second, first)

    return Rewards(rule, dimensions)


def run(folder: Path, scorer: object, letters: str = "AB" * 20) -> Path:
    evaluate(scorer, make_benchmark(make_cases(letters)), folder, folder.name)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evaluation"


def test_improvement_by_hand(tmp_path: Path, folder: Path) -> None:
    """20 of 40 right before, 36 after: 16 fixed in 8 clusters of two, none broken."""
    before, after = (
        run(folder / "before", right_on(range(20))),
        run(folder / "after", right_on(range(36))),
    )
    result = compare(before, after)
    assert result["verdict"] == "Improved"
    assert result["comparable"]
    assert result["differences"] == {}
    entry = result["primary"]
    assert [entry[key] for key in ENTRY[:4]] == ["accuracy", 0.5, 0.9, pytest.approx(0.4)]
    assert (entry["n"], entry["clusters"], entry["ceiling"]) == (40, 20, 0.96)
    assert entry["p"] == pytest.approx(2 / 2**8, abs=0.003)
    # S - n_c m is 1.2 in 8 clusters and -0.8 in 12: V = 20/19 * (8 * 1.44 + 12 * 0.64) / 1600.
    half = 2.093024054408263 * (20 / 19 * 19.2 / 1600) ** 0.5
    assert entry["ci95"] == pytest.approx([0.4 - half, 0.4 + half])
    dimension = result["dimensions"]["accuracy"]
    assert (dimension["fixed"], dimension["broken"]) == (16, 0)
    assert dimension["p"] == dimension["p_unadjusted"] == entry["p"]
    assert result["headline"].startswith("Improved on accuracy: 50.0 % -> 90.0 %, +40.0")
    assert json.loads((tmp_path / "comparison.json").read_text("utf-8")) == result


def test_where_a_comparison_lies_is_said(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In AFTER; a run's own comparison, with its controls, is replaced only on request."""
    caplog.set_level("INFO")
    before, after = (run(folder / name, right_on(range(20))) for name in ("before", "after"))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "comparison.json").write_text("the run's own")
    other = run(tmp_path / "other", Rewards(oracle))
    asked = {after: [], other: [], tmp_path: ["--output_dir", str(tmp_path)]}
    for place, options in asked.items():
        caplog.clear()
        later = str(other if place == other else after)
        assert main(["compare", str(before), later, *options]) == 0
        assert caplog.messages[-1] == f"comparison: {place / 'comparison.json'}"
        assert "verdict" in json.loads((place / "comparison.json").read_text("utf-8"))
        own = (tmp_path / "comparison.json").read_text("utf-8") == "the run's own"
        assert own == (place != tmp_path)
    write_page(other)  # of this evaluation alone, whatever lies beside it


def test_regression_and_no_change(folder: Path) -> None:
    good, bad = run(folder / "good", right_on(range(36))), run(folder / "bad", right_on(range(20)))
    assert compare(good, bad)["verdict"] == "Regressed"
    same = compare(good, good)
    assert (same["verdict"], same["primary"]["p"]) == ("Not shown", 1.0)
    slightly = run(folder / "slightly", right_on(range(37)))
    assert compare(good, slightly)["verdict"] == "Not shown"


def test_an_interval_above_zero_is_not_enough(folder: Path) -> None:
    """All cases of five clusters are fixed, but five signs are alike with p 2 / 2^5."""
    before, after = (
        run(folder / name, scorer, "AB" * 5)
        for name, scorer in (("before", right_on(range(0))), ("after", Rewards(oracle)))
    )
    result = compare(before, after)
    assert result["primary"]["ci95"] == pytest.approx([(5 - Z**2) / (5 + Z**2), 1.0])
    assert result["primary"]["ci95"][0] > 0
    assert result["primary"]["p"] == pytest.approx(2 / 2**5, abs=0.01)
    assert result["verdict"] == "Not shown"


def test_a_readout_must_be_declared(folder: Path) -> None:
    """A judge of both orders, right in one of them, against an oracle of one order."""
    judge = run(folder / "before", Judge(lambda case, order: float(order == "forward")))
    after = run(folder / "after", Rewards(oracle))
    blocked = compare(judge, after)
    assert (blocked["comparable"], blocked["verdict"]) == (False, "Not shown")
    assert blocked["differences"] == {
        "readout": {"before": "verdict_probability", "after": "reward"}
    }
    declared = compare(judge, after, allowed_differences=["readout"])
    assert declared["verdict"] == "Improved"
    assert declared["primary"]["before"] == 0.5
    assert "readout (verdict_probability -> reward)" in declared["headline"]
    assert declared["guardrails"]["consistency"]["state"] == "skipped"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"digest": "e" * 64}, "benchmark"),
        ({"letters": "AB" * 19}, "cases"),
        ({"letters": "BA" * 20}, "labels"),
        ({"settings": {"dtype": "bfloat16"}}, "dtype"),
    ],
)
def test_other_differences_block_the_headline(folder: Path, change: dict, name: str) -> None:
    before = run(folder / "before", right_on(range(20)))
    settings = change.pop("settings", {})
    benchmark = make_benchmark(make_cases(change.pop("letters", "AB" * 20)))
    benchmark = replace(benchmark, source=replace(benchmark.source, **change))
    evaluate(Rewards(oracle), benchmark, folder / "after", "m", "both", settings)
    result = compare(before, folder / "after")
    assert list(result["differences"]) == [name]
    assert (result["comparable"], result["verdict"]) == (False, "Not shown")
    assert name in result["headline"]
    assert compare(before, folder / "after", allowed_differences=[name])["comparable"]


def test_dimensions_are_adjusted_and_the_unscored_stay_empty(folder: Path) -> None:
    cases = make_cases("AB" * 20, "AB" * 20)
    benchmark = make_benchmark(cases, ("accuracy", "creativity", "overall"))
    both = ("accuracy", "overall")
    evaluate(right_on(range(20), both), benchmark, folder / "before", "b")
    evaluate(right_on(range(30), both), benchmark, folder / "after", "a")
    result = compare(folder / "before", folder / "after")
    assert result["primary"]["dimension"] == "overall"
    assert list(result["dimensions"]) == ["accuracy", "creativity", "overall"]
    assert result["dimensions"]["creativity"]["delta"] is None
    assert result["dimensions"]["creativity"]["fixed"] is None
    # Both dimensions move together, so looking at two costs nothing.
    overall = result["dimensions"]["overall"]
    assert overall["p"] == overall["p_unadjusted"] == result["primary"]["p"]
    assert compare(folder / "before", folder / "after", "accuracy")["primary"]["n"] == 40
    with pytest.raises(ConfigError, match="Did you mean 'overall'"):
        compare(folder / "before", folder / "after", "overal")


def test_controls_have_the_trained_model_after(folder: Path) -> None:
    before, after = (
        run(folder / "before", right_on(range(20))),
        run(folder / "after", right_on(range(36))),
    )
    probe = run(folder / "frozen_probe", right_on(range(24)))
    control = compare(before, after, controls={"frozen_probe": probe})["controls"]["frozen_probe"]
    assert set(ENTRY) <= set(control)
    assert (control["before"], control["after"]) == (0.6, 0.9)
    assert control["delta"] == pytest.approx(0.3)
    other = run(folder / "other", right_on(range(2)), letters="AB")
    with pytest.raises(DataError, match="frozen_probe"):
        compare(before, after, controls={"frozen_probe": other})


def test_a_failed_guardrail_blocks_improved(folder: Path) -> None:
    """Labels 36 A, 12 B: the model gains 24 A but loses all B, which it had."""
    letters = "A" * 36 + "B" * 12
    before = run(folder / "before", right_on({*range(12), *range(36, 48)}), letters=letters)
    after = run(folder / "after", right_on(range(36)), letters=letters)
    result = compare(before, after)
    assert result["primary"]["delta"] == pytest.approx(12 / 48)
    rail = result["guardrails"]["balanced_accuracy"]
    assert (rail["state"], rail["loss"]) == ("failed", pytest.approx(1 / 6))
    assert result["verdict"] == "Not shown"
    assert "balanced_accuracy" in result["headline"]


def test_one_cluster_shows_nothing(folder: Path) -> None:
    before = run(folder / "before", right_on(range(0)), letters="AB")
    result = compare(before, run(folder / "after", right_on(range(2)), letters="AB"))
    assert (result["primary"]["ci95"], result["verdict"]) == (None, "Not shown")


def test_comparing_again_and_row_order_change_nothing(tmp_path: Path, folder: Path) -> None:
    before, after = (
        run(folder / "before", right_on(range(20))),
        run(folder / "after", right_on(range(33))),
    )
    compare(before, after)
    first = (tmp_path / "comparison.json").read_bytes()
    rows = (after / "verdicts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (after / "verdicts.jsonl").write_text("".join(reversed(rows)), encoding="utf-8")
    compare(before, after, output_dir=tmp_path)
    assert (tmp_path / "comparison.json").read_bytes() == first


def test_folders_that_cannot_be_compared(tmp_path: Path, folder: Path) -> None:
    after = run(folder / "after", Rewards(oracle))
    with pytest.raises(DataError, match=r"no report\.json"):
        compare(tmp_path, after)
    evaluate(Rewards(oracle), make_benchmark(make_cases("AB")), folder / "o", "m", "official")
    with pytest.raises(DataError, match="robust protocol"):
        compare(folder / "o", after)
    ties = run(folder / "ties", Rewards(oracle), letters="tt")
    with pytest.raises(DataError, match="no dimension with labels"):
        compare(ties, ties)
    evaluate(Rewards(oracle), make_benchmark(make_cases("A" * 50)[40:]), folder / "x", "m")
    with pytest.raises(DataError, match="no case in common"):
        compare(folder / "x", after, "accuracy")


def test_comparing_and_scoring_again_need_no_torch() -> None:
    names = ("compare", "pages.report_page", "tables", "records.jsonl", "measures.accuracy")
    modules = ", ".join(f"medrm.evaluation.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
