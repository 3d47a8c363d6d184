"""The exports of a run: the reports' numbers, and text of data that stays text."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mock_scorers import Rewards, Writer, make_benchmark, make_cases, oracle, ranked_case
from pyarrow import parquet

from medrm.cli import main
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.exports import dataset_id, write_exports
from medrm.evaluation.records.jsonl import read_verdicts
from medrm.evaluation.report import read_json
from medrm.evaluation.tables import table as text
from medrm.schema import DIMENSIONS, Case, Order

FORMULA = "=HYPERLINK(1) & 50% of $x_1$ | a_b\\"
FILES = {
    *("summary.csv", "verdicts.parquet", "model_index.yaml", "eval_results.yaml"),
    *(f"{name}.{kind}" for name in ("dimensions", "organs", "official") for kind in ("md", "tex")),
}


def written(case: Case, order: Order, name: str | None, vote: int) -> str:
    """Unread for every fifth case, else the first stored answer's letter in that order."""
    if int(case.case_id[-3:]) % 5 == 0:
        return "I cannot say."
    letter = "A" if order == "forward" else "B"
    return json.dumps(dict.fromkeys(DIMENSIONS, letter))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge before and after, whose organs are hostile names."""
    folder = tmp_path_factory.mktemp("run")
    cases = [
        replace(
            case,
            groups={"organ": FORMULA if number % 2 else "brain"},
            labels={
                name: case.labels["overall" if name == "overall" else "accuracy"]
                for name in DIMENSIONS
            },
        )
        for number, case in enumerate(make_cases("AAAB" * 10, "ABA-" * 10))
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)
    evaluate(Writer(written, DIMENSIONS), benchmark, folder / "evaluation/before", FORMULA)
    after = Writer(
        lambda *given: written(*given).replace("I cannot", '{"accuracy": "A"}'), DIMENSIONS
    )
    evaluate(after, benchmark, folder / "evaluation/after", FORMULA)
    compare(folder / "evaluation/before", folder / "evaluation/after")
    write_exports(folder)
    return folder


def rates(folder: Path) -> list[dict[str, str]]:
    with (folder / "exports/summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_written(run: Path) -> None:
    found = {path.name for path in (run / "exports").iterdir()}
    assert found == FILES | {"plots"}
    assert (run / "exports/plots/forest.svg").is_file()


def test_a_rate_is_its_numerator_by_its_denominator(run: Path) -> None:
    found = rates(run)
    whole = [rate for rate in found if rate["value"]]
    assert len(whole) > 50
    for rate in whole:
        share = float(rate["numerator"]) / float(rate["denominator"])
        assert float(rate["value"]) == pytest.approx(share, abs=1e-12), rate
    measures = Counter(rate["measure"] for rate in found)
    for name in ("accuracy", "coverage", "consistency", "first_rate", "both_correct", "fixed"):
        assert measures[name], name


def test_the_summary_says_what_the_reports_say(run: Path) -> None:
    keys = ("side", "protocol", "measure", "dimension", "group", "member")
    found = {tuple(rate[key] for key in keys): rate for rate in rates(run)}
    for side in ("before", "after"):
        report = read_json(run / f"evaluation/{side}/report.json")["protocols"]
        for name, measures in report["robust"]["dimensions"].items():
            rate = found[side, "robust", "accuracy", name, "", ""]
            assert float(rate["value"]) == measures["accuracy"]
            assert [float(rate["ci95_low"]), float(rate["ci95_high"])] == measures["ci95"]
            assert int(rate["denominator"]) == measures["n"]
            for measure in ("coverage", "consistency", "first_rate", "both_correct"):
                shown = found[side, "robust", measure, name, "", ""]["value"]
                assert float(shown) == measures[measure]
            official = found[side, "official", "accuracy", name, "", ""]["value"]
            assert float(official) == report["official"]["micro"][name]
        brain = report["robust"]["groups"]["organ"]["brain"]["accuracy"]
        rate = found[side, "robust", "accuracy", "accuracy", "organ", "brain"]
        assert float(rate["value"]) == brain["accuracy"]
    for name, entry in read_json(run / "comparison.json")["dimensions"].items():
        rate = found["difference", "robust", "accuracy", name, "", ""]
        assert float(rate["value"]) == entry["delta"]
        assert float(rate["p_adjusted"]) == entry["p"]
        fixed = found["difference", "robust", "fixed", name, "", ""]["numerator"]
        assert int(fixed) == entry["fixed"]


def test_no_cell_is_a_formula(run: Path) -> None:
    cells = {rate["member"] for rate in rates(run)}
    assert f"'{FORMULA}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert text.spreadsheet_text("\t@SUM(1)") == "'@SUM(1)"


def test_verdicts_are_those_of_both_sides(run: Path) -> None:
    table = parquet.read_table(run / "exports/verdicts.parquet").to_pylist()
    rows = [
        (side, row)
        for side in ("before", "after")
        for row in read_verdicts(run / f"evaluation/{side}/verdicts.jsonl")
    ]
    assert len(table) == len(rows)
    for shown, (side, row) in zip(table, rows, strict=True):
        assert shown["side"] == side
        assert shown["group_organ"] == row.groups["organ"]
        for name in ("case_id", "dimension", "protocol", "order", "outcome", "label", "correct"):
            assert shown[name] == getattr(row, name)
        assert shown["label_shares"] == list(row.label_shares or ())


def test_tables_for_papers(run: Path) -> None:
    entry = read_json(run / "comparison.json")["dimensions"]["accuracy"]
    shown = (run / "exports/dimensions.md").read_text(encoding="utf-8")
    (line,) = [line for line in shown.splitlines() if line.startswith("| accuracy |")]
    assert f"| {100 * entry['before']:.1f} | {100 * entry['after']:.1f} |" in line
    assert f"| {entry['fixed']} / {entry['broken']} | {entry['n']} |" in line
    official = (run / "exports/official.tex").read_text(encoding="utf-8")
    micro = read_json(run / "evaluation/after/report.json")["protocols"]["official"]["micro"]
    cells = " & ".join(f"{micro[name]:.4f}" for name in DIMENSIONS)
    assert f"{cells} \\\\" in official
    for name in ("dimensions", "organs", "official"):
        lines = (run / f"exports/{name}.md").read_text(encoding="utf-8").splitlines()
        bars = {line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines[2:]}
        assert len(bars) == 1, "the bars of a table alone"


def test_names_are_text_in_latex_and_markdown(run: Path) -> None:
    tables = run / "exports"
    latex = (tables / "organs.tex").read_text(encoding="utf-8")
    assert r"=HYPERLINK(1) \& 50\% of \$x\_1\$ \textbar{} a\_b\textbackslash{}" in latex, (
        "no command, no comment, no formula"
    )
    markdown = (tables / "organs.md").read_text(encoding="utf-8")
    assert r"=HYPERLINK(1) \& 50% of \$x\_1\$ \| a\_b\\" in markdown
    assert text.latex_text("[2pt] *") == "{[}2pt] {*}", "no argument of the row before"
    assert text.markdown_text("<b>\n# x</b>\x1b[0m") == "&lt;b> # x&lt;/b>\ufffd\\[0m"


def test_entries_for_the_hub(run: Path) -> None:
    report = read_json(run / "evaluation/after/report.json")
    robust = report["protocols"]["robust"]["dimensions"]
    index = yaml.safe_load((run / "exports/model_index.yaml").read_text(encoding="utf-8"))
    (model,) = index["model-index"]
    (result,) = model["results"]
    assert model["name"] == FORMULA
    assert result["dataset"]["revision"] == report["benchmark"]["revision"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    micro = report["protocols"]["official"]["micro"]
    for name in DIMENSIONS:
        assert values[f"robust accuracy ({name})"] == robust[name]["accuracy"]
        assert values[f"official accuracy ({name})"] == micro[name]
    entries = yaml.safe_load((run / "exports/eval_results.yaml").read_text(encoding="utf-8"))
    assert {one["dataset"]["task_id"]: one["value"] for one in entries} == {
        name: round(100 * robust[name]["accuracy"], 4) for name in DIMENSIONS
    }
    assert "both orders" in entries[0]["notes"]
    assert dataset_id("med_rewardbench") == "Nandzy/Med-RewardBench"
    assert dataset_id("../secret") == "../secret"


def test_a_single_evaluation(run: Path) -> None:
    folder = run / "evaluation" / "after"
    assert write_exports(folder) == folder / "exports"
    assert {path.name for path in (folder / "exports").iterdir()} == FILES | {"plots"}
    assert {rate["side"] for rate in rates(folder)} == {"after"}
    shown = (folder / "exports/dimensions.md").read_text(encoding="utf-8")
    accuracy = read_json(folder / "report.json")["protocols"]["robust"]["dimensions"]["accuracy"]
    assert f"| accuracy | {100 * accuracy['accuracy']:.1f}" in shown


def test_scores_of_more_than_two_answers(tmp_path: Path) -> None:
    cases = [ranked_case(number, number % 3) for number in range(6)]
    scores = Rewards(lambda case: [float(len(answer)) for answer in case.answers])
    evaluate(scores, make_benchmark(cases), tmp_path, "m", protocol="robust")
    write_exports(tmp_path)
    table = parquet.read_table(tmp_path / "exports/verdicts.parquet").to_pylist()
    assert {row["protocol"] for row in table} == {"robust"}
    assert all(len(row["scores"]) == 4 for row in table)
    assert {row["label"] for row in table} == {"0", "1", "2"}


def test_the_command_writes_them(tmp_path: Path) -> None:
    evaluate(Rewards(oracle), make_benchmark(make_cases()), tmp_path, "m", protocol="both")
    assert main(["report", str(tmp_path)]) == 0
    assert not (tmp_path / "exports").exists()
    assert main(["report", str(tmp_path), "--export"]) == 0
    assert (tmp_path / "exports/summary.csv").is_file()


def test_exports_twice_are_the_same(run: Path) -> None:
    def contents() -> Iterator[bytes]:
        for path in sorted((run / "exports").glob("*.*")):
            yield path.read_bytes()

    early = list(contents())
    write_exports(run)
    assert list(contents()) == early


def test_an_evaluation_under_the_official_protocol_alone(tmp_path: Path) -> None:
    evaluate(Rewards(oracle), make_benchmark(make_cases()), tmp_path, "m", protocol="official")
    write_exports(tmp_path)
    assert {rate["protocol"] for rate in rates(tmp_path)} == {"official"}
    assert (tmp_path / "exports/official.md").is_file()
    assert not (tmp_path / "exports/organs.md").exists()
    assert yaml.safe_load((tmp_path / "exports/eval_results.yaml").read_text()) == []


def test_a_dimension_that_one_side_has_not_judged(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AB" * 20, "BA" * 20), ("accuracy", "overall"))
    both = Rewards(oracle, ("accuracy", "overall"))
    evaluate(both, benchmark, tmp_path / "evaluation/before", "m")
    evaluate(Rewards(oracle), benchmark, tmp_path / "evaluation/after", "m")
    compare(tmp_path / "evaluation/before", tmp_path / "evaluation/after")
    write_exports(tmp_path)
    shown = (tmp_path / "exports/dimensions.md").read_text(encoding="utf-8")
    (line,) = [line for line in shown.splitlines() if line.startswith("| overall |")]
    assert line.endswith("| - | - | - | - | 0 | - |")
    assert {rate["dimension"] for rate in rates(tmp_path) if rate["side"] == "difference"} == {
        "accuracy"
    }
