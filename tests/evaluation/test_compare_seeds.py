"""`medrm compare --seeds_of`: evaluations of made models, by hand and through the command."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_scorers import Judge, Rewards, make_benchmark, make_cases, oracle

from medrm.cli import main
from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.evaluation.report import read_json
from medrm.evaluation.seeds.seed_comparison import compare_seeds
from medrm.evaluation.seeds.seed_report import write_seed_exports
from medrm.evaluation.seeds.seed_tables import seed_lines
from medrm.schema import Case
from medrm.statistics.crossed import crossed_mean
from medrm.statistics.intervals import mean_interval

LETTERS = "AB" * 20
"""40 cases in 20 clusters of two."""

RIGHT = {0: range(34), 1: range(36), 2: range(40)}
"""The cases on which the model of each seed is right; the base is right on the first 20."""


def right_on(numbers: range, dimensions: tuple[str, ...] = ("accuracy",)) -> Rewards:
    def rule(case: Case) -> tuple[float, float]:
        first, second = oracle(case)
        return (first, second) if int(case.case_id[-3:]) in numbers else (second, first)

    return Rewards(rule, dimensions)


def judged(folder: Path, scorer: object, weights: str, letters: str = LETTERS) -> None:
    benchmark = make_benchmark(make_cases(letters))
    evaluate(scorer, benchmark, folder, NamedModel(folder.name, weights))


def made_seed(
    output: Path, seed: int, numbers: range, letters: str = LETTERS, **manifest: Any
) -> Path:
    """A finished run of one seed."""
    folder, half = output / f"seed-{seed}", range(len(letters) // 2)
    judged(folder / "evaluation" / "before", right_on(half), "base", letters)
    judged(folder / "evaluation" / "after", right_on(numbers), f"adapter {seed}", letters)
    contents = {"seed": seed, "config": {}, "data": {}, **manifest}
    (folder / "run.json").write_text(json.dumps(contents))
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished seeds; copied where a test changes them."""
    output = tmp_path_factory.mktemp("seeds") / "output"
    for seed, numbers in RIGHT.items():
        made_seed(output, seed, numbers)
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "output"))


def test_by_hand(output: Path) -> None:
    """20 of 40 right before; 34, 36 and 40 after: gains of 35, 40 and 50 points."""
    result = compare_seeds(output)
    assert read_json(output / "seeds.json") == result
    entry = result["dimensions"]["accuracy"]
    assert result["seeds"] == [0, 1, 2]
    assert (entry["before"], entry["after"]) == (0.5, pytest.approx(110 / 120))
    assert entry["delta"] == pytest.approx(5 / 12)
    assert entry["delta_spread"]["by_seed"] == pytest.approx([0.35, 0.4, 0.5])
    assert entry["after_spread"]["by_seed"] == [0.85, 0.9, 1.0]
    # Squares about the mean: 6.67^2 + 1.67^2 + 8.33^2 = 116.67 points^2, halved 58.33.
    assert entry["after_spread"]["sd"] == pytest.approx(0.5833333**0.5 / 10)
    assert (entry["after_spread"]["min"], entry["after_spread"]["max"]) == (0.85, 1.0)
    assert entry["before_spread"]["sd"] == 0.0
    assert entry["variance"]["seeds"] == pytest.approx(0.005833333 / 3)
    assert (entry["n"], entry["clusters"], entry["ceiling"]) == (40, 20, 0.96)


def test_the_interval_is_that_of_the_paired_differences(output: Path) -> None:
    """Of each seed on the same cases, crossed with clusters of two cases."""
    entry = compare_seeds(output)["primary"]
    base = [case < 20 for case in range(40)]
    values = [[(case in RIGHT[seed]) - base[case] for case in range(40)] for seed in RIGHT]
    clusters = [str(case // 2) for case in range(40)]
    differences = np.array(values, dtype=float)
    found = crossed_mean(differences, clusters)
    assert entry["ci95"] == pytest.approx(found.bounds)
    assert entry["p"] == pytest.approx(found.p)
    alone = mean_interval(differences.mean(axis=0).tolist(), clusters, span=(-1.0, 1.0))
    assert entry["ci95_cases"] == pytest.approx(alone.bounds)
    assert entry["ci95"][0] < entry["ci95_cases"][0]


def test_the_verdict_follows_the_interval_over_both(output: Path) -> None:
    """Every seed gains by itself, and so does the recipe."""
    result = compare_seeds(output)
    assert [run["verdict"] for run in result["by_seed"]] == ["Improved"] * 3
    assert result["verdict"] == "Improved"
    assert result["headline"].startswith(
        "Improved on accuracy: 50.0 % -> 91.7 % (SD over seeds 7.6), +41.7 points (95 % CI "
    )
    assert "over 3 seeds and 40 cases in 20 clusters" in result["headline"]


def test_seeds_that_disagree_show_nothing(tmp_path: Path) -> None:
    """Two seeds that gain and lose much by themselves: another may do either."""
    for seed, numbers in {0: range(40), 1: range(20, 22)}.items():
        made_seed(tmp_path, seed, numbers)
    result = compare_seeds(tmp_path)
    assert [run["verdict"] for run in result["by_seed"]] == ["Improved", "Regressed"]
    assert result["verdict"] == "Not shown"


def test_worse_in_all_seeds_is_a_regression(tmp_path: Path) -> None:
    for seed, numbers in {0: range(3), 1: range(2), 2: range(3, 4)}.items():
        made_seed(tmp_path, seed, numbers)
    assert compare_seeds(tmp_path)["verdict"] == "Regressed"


@pytest.mark.parametrize(("lost", "state"), [((4, 5, 6), "failed"), ((0, 8, 0), "held")])
def test_what_must_not_get_worse_is_measured_over_all_seeds(
    tmp_path: Path, lost: tuple[int, ...], state: str
) -> None:
    """A judge that is right where it reads: it fails where a new seed would lose as well."""

    def reads(cases: range) -> Judge:
        unread = {*cases}
        return Judge(lambda case, _: None if int(case.case_id[-3:]) in unread else oracle(case)[0])

    for seed, count in enumerate(lost):
        evaluations = tmp_path / f"seed-{seed}" / "evaluation"
        judged(evaluations / "before", reads(range(0)), "base")
        judged(evaluations / "after", reads(range(0, 2 * count, 2)), f"adapter {seed}")
    checks = compare_seeds(tmp_path)["guardrails"]
    assert checks["coverage"]["loss"] == pytest.approx(sum(lost) / 120)
    assert checks["coverage"]["state"] == state
    assert checks["halo"]["state"] == "skipped"


def test_the_command_writes_page_and_table(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--seeds_of", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "91.7 ± 7.6" in printed
    assert "Each seed by itself: Improved 3." in " ".join(printed.split())
    page = (output / "report.html").read_text("utf-8")
    assert "One recipe with 3 seeds" in page
    assert 'id="figure-seeds"' in page
    assert 'id="figure-seed_dimensions"' in page
    assert not re.search(r'(?:src|href)="https?:', page)
    for file in ("report.html", "seeds.json"):
        assert str(output.parent) not in (output / file).read_text("utf-8")
    assert "hand-made" in page
    assert main(["report", str(output), "--no_texts", "--export"]) == 0
    for file in (output / "report.html", *(output / "exports").glob("*.*")):
        assert "hand-made" not in file.read_text("utf-8")


def test_paper_tables(output: Path) -> None:
    """`medrm report --export` on the folder: mean ± SD, and every number unrounded."""
    assert main(["compare", "--seeds_of", str(output)]) == 0
    assert main(["report", str(output), "--export"]) == 0
    exports = output / "exports"
    assert "91.7 ± 7.6" in (exports / "dimensions.md").read_text("utf-8")
    assert r"91.7 $\pm$ 7.6" in (exports / "dimensions.tex").read_text("utf-8")
    assert "| 1 | 50.0 | 90.0 |" in (exports / "seeds.md").read_text("utf-8")
    rows = [*csv.DictReader((exports / "seeds.csv").read_text("utf-8").splitlines())]
    delta = next(row for row in rows if (row["row"], row["measure"]) == ("accuracy", "delta"))
    entry = read_json(output / "seeds.json")["primary"]
    assert float(delta["mean"]) == entry["delta"]
    assert [float(delta[f"seed_{seed}"]) for seed in RIGHT] == entry["delta_spread"]["by_seed"]
    assert [float(delta["ci95_low"]), float(delta["ci95_high"])] == entry["ci95"]
    assert {path.name for path in (exports / "plots").iterdir()} == {
        f"{name}.{form}" for name in ("seeds", "seed_dimensions") for form in ("svg", "png")
    }


def test_exports_are_replaced_whole(output: Path, tmp_path: Path) -> None:
    """What another name still holds of an earlier file stays as it was."""
    compare_seeds(output)
    exports = write_seed_exports(output)
    names = ("dimensions.md", "seeds.tex", "seeds.csv")
    for name in names:
        os.link(exports / name, tmp_path / name)
    earlier = {name: (tmp_path / name).read_bytes() for name in names}
    compare_seeds(output, only=[0, 1])
    write_seed_exports(output)
    for name in names:
        assert (tmp_path / name).read_bytes() == earlier[name] != (exports / name).read_bytes()
    assert not [*exports.glob("*.partial")]


def test_one_cluster_has_neither_interval_nor_p(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, numbers in {0: range(1), 1: range(2)}.items():
        made_seed(tmp_path, seed, numbers, "AB")
    assert main(["compare", "--seeds_of", str(tmp_path)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    result = read_json(tmp_path / "seeds.json")
    assert (result["primary"]["ci95"], result["primary"]["p"]) == (None, None)
    assert result["headline"] == (
        "Not shown on accuracy: 50.0 % -> 75.0 % (SD over seeds 35.4), +25.0 points (no interval "
        "below two clusters; over 2 seeds and 2 cases in 1 clusters)."
    )
    assert main(["report", str(tmp_path), "--export"]) == 0


def test_trained_models_that_agree_show_that_they_do(tmp_path: Path) -> None:
    """The base is one model, so that it has no spread; two trainings have one, of 0."""
    for seed, numbers in {0: range(30), 1: range(2, 32)}.items():
        made_seed(tmp_path, seed, numbers)
    compare_seeds(tmp_path)
    table = (write_seed_exports(tmp_path) / "dimensions.md").read_text("utf-8")
    assert "| 50.0 | 75.0 ± 0.0 |" in table


@pytest.mark.parametrize(
    ("seeds", "cases", "shown"), [(5, 0.03, True), (4, 0.03, False), (5, 0.0, False)]
)
def test_the_part_of_the_seeds_is_told_where_it_is_known(
    output: Path, seeds: int, cases: float, shown: bool
) -> None:
    """From five seeds on, where the other part was not cut at 0."""
    result = compare_seeds(output)
    primary = {**result["primary"], "variance": {"seeds": 0.01, "cases": cases}}
    lines = seed_lines({**result, "seeds": [*range(seeds)], "primary": primary})
    part = "The part of this gain's variance that more seeds make smaller is estimated at 25 %."
    assert (part in lines) is shown
    assert any("more seeds" in line for line in lines) is shown
    assert any(line.startswith("For these very seeds: 95 % CI +") for line in lines)


def test_a_page_of_a_seed_is_linked(output: Path) -> None:
    assert main(["compare", "--seeds_of", str(output)]) == 0
    assert 'href="seed-1/report.html"' not in (output / "report.html").read_text("utf-8")
    (output / "seed-1" / "report.html").write_text("a page")
    assert main(["report", str(output)]) == 0
    assert 'href="seed-1/report.html"' in (output / "report.html").read_text("utf-8")


def test_controls_are_compared_over_all_seeds(output: Path) -> None:
    """Those that the runs asked for and all have: here one that is right on the first 10 cases."""
    for seed in RIGHT:
        folder = output / f"seed-{seed}"
        judged(folder / "evaluation" / "frozen_probe", right_on(range(10)), f"probe {seed}")
    controls = compare_seeds(output)["controls"]
    assert [*controls] == ["frozen_probe"]
    assert (controls["frozen_probe"]["before"], controls["frozen_probe"]["after"]) == (
        0.25,
        pytest.approx(110 / 120),
    )
    assert controls["frozen_probe"]["delta_spread"]["by_seed"] == pytest.approx([0.6, 0.65, 0.75])
    contents = {"seed": 1, "config": {"controls": []}, "data": {}}
    (output / "seed-1" / "run.json").write_text(json.dumps(contents))
    assert compare_seeds(output)["controls"] == {}


def test_unfinished_seeds_are_named_and_left_out(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "seed-1" / "evaluation" / "after" / "report.json").unlink()
    (output / "seed-7").mkdir()
    (output / "seed-x").mkdir()
    result = compare_seeds(output)
    assert result["seeds"] == [0, 2]
    assert result["left_out"] == {
        "seed-1": "no evaluation after yet",
        "seed-7": "no evaluation before and after yet",
    }
    (output / "seed-0" / "evaluation" / "before" / "report.json").unlink()
    assert main(["compare", "--seeds_of", str(output)]) == 2
    message = capsys.readouterr().err
    assert "holds 1 finished run in seed-<n>/" in message
    assert "seed-2: finished; seed-0: no evaluation before yet" in message


def wrong_seed(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"seed": 0}))


def same_weights(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    shutil.copytree(folder.parent / "seed-0" / "evaluation", folder / "evaluation")


def other_base(folder: Path) -> None:
    report = read_json(folder / "evaluation" / "before" / "report.json")
    contents = json.dumps({**report, "weights": "another"})
    (folder / "evaluation" / "before" / "report.json").write_text(contents)


def other_cases(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    for side, numbers in {"before": range(10), "after": range(20)}.items():
        judged(folder / "evaluation" / side, right_on(numbers), side, "AB" * 10)


def other_settings(folder: Path) -> None:
    report = read_json(folder / "evaluation" / "after" / "report.json")
    contents = {**report, "settings": {**report["settings"], "dtype": "bfloat16"}}
    (folder / "evaluation" / "after" / "report.json").write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_seed, "seed-1 was trained with seed 0"),
        (same_weights, "seed-1 has the weights of seed-0: one training twice"),
        (other_base, "seed-1 has another base than seed-0"),
        (other_cases, "seed-1 differs from seed-0 before in cases"),
        (other_settings, "seed-1 differs from seed-0 after in dtype"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(
    output: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    change(output / "seed-1")
    assert main(["compare", "--seeds_of", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not (output / "seeds.json").exists()


def config(**options: object) -> dict[str, Any]:
    judge = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    return {"config": {**judge, "learning_rate": 1.0, **options}, "data": {}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (config(learning_rate=2.0), "seed-0 and seed-1 differ in learning_rate: 1.0 and 2.0"),
        (config(gradient_accumulation_steps=4), "differ in rows of a step: 8 and 16"),
        ({**config(), "data": {"train": {"digest": "b"}}}, "data, train digest: a and b"),
        (config(logging_steps=3, output_dir="b", seed=1), None),
        ({**config(gradient_accumulation_steps=1), "processes": 2}, None),
    ],
)
def test_runs_of_two_recipes_are_refused(
    output: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], message: str | None
) -> None:
    """By their run.json: what changes no number may differ, as when a run goes on."""
    first = config(logging_steps=1, output_dir="a", seed=0)
    manifests = [{**first, "data": {"train": {"digest": "a"}}}, changed, first]
    for seed, manifest in enumerate(manifests):
        contents = json.dumps({"seed": seed, **manifest})
        (output / f"seed-{seed}" / "run.json").write_text(contents)
    assert main(["compare", "--seeds_of", str(output)]) == (0 if message is None else 2)
    assert (message or "") in capsys.readouterr().err


def test_what_differs_from_the_base_must_be_declared(output: Path) -> None:
    """As in one comparison; what the runs declared beforehand counts."""
    for seed in RIGHT:
        folder = output / f"seed-{seed}"
        other_settings(folder)
    assert not compare_seeds(output)["comparable"]
    assert compare_seeds(output, allowed_differences=["dtype"])["comparable"]
    for seed in RIGHT:
        contents = {"seed": seed, "config": {"allowed_differences": ["dtype"]}}
        (output / f"seed-{seed}" / "run.json").write_text(json.dumps(contents))
    result = compare_seeds(output)
    assert result["comparable"]
    assert result["verdict"] == "Improved"


@pytest.mark.parametrize(
    "words", [[], ["a"], ["a", "b", "--seeds_of", "c"], ["a", "--seeds_of", "c"]]
)
def test_the_two_forms_exclude_each_other(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == 2
    assert "either two folders, BEFORE AFTER, or --seeds_of OUTPUT" in capsys.readouterr().err


def test_gate(tmp_path: Path) -> None:
    for seed, numbers in {0: range(3), 1: range(2), 2: range(3, 4)}.items():
        made_seed(tmp_path, seed, numbers)
    assert main(["compare", "--seeds_of", str(tmp_path)]) == 0
    assert main(["compare", "--seeds_of", str(tmp_path), "--gate"]) == 1
