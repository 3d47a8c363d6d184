"""The list of a leaderboard is read strictly; its table ranks, and says what is missing and why."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medrm.data.case_set import CaseSet
from medrm.errors import ConfigError
from medrm.evaluation.benchmark import RULES, Benchmark
from medrm.evaluation.leaderboard.leaderboard_tables import (
    human_table,
    leaderboard_csv,
    leaderboard_markdown,
    leaderboard_page,
    print_leaderboard,
    write_leaderboard,
)
from medrm.evaluation.leaderboard.standings import (
    Judged,
    ListedModel,
    ModelResult,
    chosen_entries,
    leaderboard_names,
    primary_dimension,
    read_leaderboard,
    standings,
)

DIMENSIONS = ("accuracy", "overall")


def benchmark(dimensions: tuple[str, ...] = DIMENSIONS) -> Benchmark:
    source = CaseSet(
        name="small",
        revision="r1",
        digest="d1",
        cases=(),
        excluded=(),
        dimensions=dimensions,
        agreement={},
        ceiling={},
        synthetic=True,
    )
    return Benchmark("small", source)


def report(accuracy: float | None, overall: float | None) -> dict[str, Any]:
    def measures(value: float | None) -> dict[str, Any] | None:
        if value is None:
            return None
        bounds = [value - 0.1, value + 0.1]
        return {
            "accuracy": value, "ci95": bounds, "n": 8, "coverage": 0.9, "consistency": 0.8,
        }  # fmt: skip

    values = {"accuracy": accuracy, "overall": overall}
    human = {"accuracy": 0.8, "ci95": [0.7, 0.9], "n": 12, "clusters": 6}
    of_model = {"model": {"accuracy": overall, "ci95": None}}
    beside = {"difference": {"delta": (overall or 0) - 0.8, "ci95": None}}
    return {
        "readout": "generate",
        "human_ceiling": {"overall": {**human, **of_model, **beside}, "accuracy": None},
        "settings": {},
        "baselines": {name: {"accuracy": 0.4, "overall": 0.5} for name in RULES}
        | {"longer": {"accuracy": 0.4, "overall": 0.62}},
        "protocols": {
            "robust": {"dimensions": {name: measures(value) for name, value in values.items()}},
            "official": {"micro": values, "macro": {"accuracy": 0.11, "overall": 0.22}},
        },
    }


def judged(accuracy: int, overall: int | None) -> Judged:
    """A model that is right on the first cases of 40."""
    right = {"accuracy": accuracy, "overall": overall}
    return Judged(
        scores={
            name: {f"c{i}": float(i < count) for i in range(40)}
            for name, count in right.items()
            if count is not None
        },
        clusters={f"c{i}": f"k{i}" for i in range(40)},
    )


def table(primary: str = "overall") -> dict[str, Any]:
    strong = {"judged": judged(accuracy=24, overall=38)}
    note = {"note": "a | note"}
    outcomes = [
        ModelResult(ListedModel("weak", "mock:a"), "done", report(0.9, 0.5), judged=judged(36, 20)),
        ModelResult(ListedModel("strong", "mock:b", **note), "done", report(0.6, 0.95), **strong),
        ModelResult(ListedModel("also strong", "mock:c"), "done", report(0.6, 0.95), **strong),
        ModelResult(
            ListedModel("narrow", "mock:d"), "done", report(0.7, None), judged=judged(28, None)
        ),
        ModelResult(
            ListedModel("broken", "x/y"), "failed", reason="Error: <b>no</b>\nsecond | line"
        ),
        ModelResult(ListedModel("closed", None), "skipped", reason="not published"),
    ]
    return standings("mine", benchmark(), primary, outcomes)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_models_are_ranked_by_the_primary_dimension() -> None:
    ranked = [(row["rank"], row["name"]) for row in table()["models"]]
    assert ranked == [(1, "also strong"), (1, "strong"), (3, "weak"), (None, "narrow")]
    by_accuracy = [row["name"] for row in table("accuracy")["models"]]
    assert by_accuracy == ["weak", "narrow", "also strong", "strong"]


def test_a_row_holds_both_protocols_and_what_was_read() -> None:
    row = table()["models"][1]
    human = row["dimensions"]["overall"].pop("human_ceiling")
    assert (human["accuracy"], human["model"]["accuracy"]) == (0.8, 0.95)
    assert row["dimensions"]["accuracy"]["human_ceiling"] is None
    assert row["dimensions"]["overall"] == {
        "accuracy": 0.95,
        "ci95": [0.85, 1.05],
        "n": 8,
        "coverage": 0.9,
        "consistency": 0.8,
        "official_micro": 0.95,
        "official_macro": 0.22,
        "rank_range": [1, 2],
        "to_best": {"delta": 0.0, "ci95": pytest.approx([-0.0876, 0.0876], abs=1e-4), "p": 1.0},
    }
    assert table()["benchmark"]["digest"] == "d1"


def test_failed_and_skipped_models_are_listed_apart() -> None:
    found = table()
    assert [(one["name"], one["reason"]) for one in found["skipped"]] == [
        ("closed", "not published")
    ]
    assert [one["name"] for one in found["failed"]] == ["broken"]


def test_csv_holds_every_measure_unrounded() -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(table()))))
    assert [row["name"] for row in rows] == [
        "also strong", "strong", "weak", "narrow", "broken", "closed",
    ]  # fmt: skip
    assert rows[1]["overall_accuracy"] == "0.95"
    assert rows[1]["overall_ci95_high"] == "1.05"
    assert (rows[1]["overall_rank_best"], rows[1]["overall_rank_worst"]) == ("1", "2")
    assert (rows[2]["overall_rank_best"], rows[2]["overall_to_best"]) == ("3", "-0.45")
    assert float(rows[2]["overall_to_best_ci95_high"]) < -0.25
    assert float(rows[2]["overall_to_best_p"]) < 0.001
    assert rows[0]["overall_to_best_p"] == ""  # the best itself
    assert (rows[3]["overall_accuracy"], rows[3]["overall_rank_best"]) == ("", "")
    assert rows[5]["state"] == "skipped: not published"
    assert (rows[2]["overall_reader"], rows[2]["overall_by_other_readers"]) == ("0.8", "0.5")
    assert float(rows[2]["overall_to_reader"]) == pytest.approx(-0.3)
    assert rows[2]["accuracy_reader"] == ""


def test_readers_stand_beside_the_models() -> None:
    found = table()
    readers = human_table(found)
    assert readers is not None
    assert readers.columns == ["model", "a reader (95 % CI)", "the model", "difference", "n"]
    assert readers.rows[2] == ["weak", "80.0 (70.0, 90.0)", "50.0", "-30.0", "12"]
    console = Console(file=io.StringIO(), width=120)
    print_leaderboard(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (shown, leaderboard_markdown(found), leaderboard_page(found)):
        assert "Human ceiling: by the label of the other readers" in text
    assert human_table(table("accuracy")) is None
    assert "Human ceiling" not in leaderboard_markdown(table("accuracy"))


def test_markdown_is_neither_broken_nor_driven_by_data() -> None:
    page = leaderboard_markdown(table())
    lines = page.splitlines()
    assert "| 1-2 | strong | 95.0 (85.0, 100.0) | 60.0 | 95.0 | 22.0 | 90.0 | 80.0 |" in lines
    assert "| - | narrow | - | 70.0 | - | 22.0 | - | - |" in lines
    assert "| weak | -45.0 (-61.1, -28.9) | &lt;0.001 |" in lines
    assert "| broken | Error: &lt;b&gt;no&lt;/b&gt; second \\| line |" in lines
    assert "- strong: a \\| note" in lines


def test_the_terminal_table_is_not_driven_by_data() -> None:
    outcomes = [ModelResult(ListedModel("[red]x[/red]", "m"), "done", report(0.5, 0.5))]
    outcomes += [ModelResult(ListedModel("bad", "m"), "failed", reason="\x1b[2J[bold]gone")]
    stream = io.StringIO()
    print_leaderboard(
        standings("mine", benchmark(), "overall", outcomes), Console(file=stream, width=80)
    )
    assert "[red]x[/red]" in stream.getvalue()
    assert "50.0 (40.0, 60.0)" in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "…" not in stream.getvalue()
    assert "failed: bad" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_page_says_what_the_ranks_leave_open() -> None:
    page = leaderboard_page(table())
    assert (
        "The cases leave open which of 2 models is the best on overall: also strong, strong."
        in page
    )
    assert '>strong</th><td data-name="rank">1-2</td>' in page
    assert "<td>skipped: not published</td>" in page
    assert '<td data-name="to the best">-45.0 (-61.1, -28.9)</td>' in page
    assert "the longer answer, 62.0 %" in page
    assert "weak is the best of 4 models on accuracy, with 95 % confidence." in leaderboard_page(
        table("accuracy")
    )


def test_a_model_alone_is_not_the_best() -> None:
    outcomes = [
        ModelResult(ListedModel("one", "m"), "done", report(0.5, 0.5), judged=judged(20, 20))
    ]
    page = leaderboard_page(standings("mine", benchmark(), "overall", outcomes))
    assert "1 model judged all cases on overall: nothing is ranked." in page
    page = leaderboard_page(standings("mine", benchmark(), "overall", []))
    assert "No model judged all cases" in page


def test_the_page_is_one_file_that_data_cannot_drive() -> None:
    hostile = ListedModel("<script>alert(1)</script>", "m", note='"><img src=x onerror=alert(1)>')
    outcomes = [
        ModelResult(hostile, "done", report(0.5, 0.5), judged=judged(20, 20)),
        ModelResult(ListedModel("bad", "m"), "failed", reason="\x1b[2J</td><script>x</script>"),
    ]
    page = leaderboard_page(standings("mine", benchmark(), "overall", outcomes))
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "default-src &#39;none&#39;" in page
    assert re.findall(r'(?:src|href)="([^"#])', page) == []


def test_four_files_are_written(tmp_path: Path) -> None:
    write_leaderboard(tmp_path / "out", table())
    assert json.loads((tmp_path / "out" / "leaderboard.json").read_text())["primary"] == "overall"
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {
        ".json",
        ".csv",
        ".md",
        ".html",
    }


def test_all_problems_of_a_list_are_reported_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.yaml",
        """
benchmark: phantom
modles: 1
models:
  - {name: a, model: x, remote_coed: true}
  - {name: b, model: x, remote_code: "yes"}
  - {name: c, model: x, engine: vlm}
  - {name: d}
  - {name: e, model: x, options: {max_pixels: 3, votes: two, prompt_file: x, readout: generat}}
  - {name: "..", model: x}
  - {name: f, model: x, revision: "--upload"}
  - {name: Same One, model: x}
  - {name: same/one, model: x}
  - just text
""",
    )
    with pytest.raises(ConfigError) as error:
        read_leaderboard(path)
    message = str(error.value)
    for part in (
        "unknown key 'modles'. Did you mean 'models'?",
        "entry 1: unknown key 'remote_coed'. Did you mean 'remote_code'?",
        "entry 2: remote_code is 'yes'; give bool",
        "entry 3: engine is 'vlm'",
        "entry 4: key 'model' is missing",
        "entry 5: options: unknown key 'max_pixels'",
        "entry 5: options: unknown key 'prompt_file'",
        "entry 5: options: votes is 'two'; give int",
        "entry 5: options: readout is 'generat'; accepted: generate, skeleton",
        "entry 6: name is '..'",
        "entry 7: revision is '--upload'",
        "'Same One' and 'same/one' would share the folder 'same-one'",
        "entry 10: 'just text' is not a mapping",
    ):
        assert part in message


@pytest.mark.parametrize(
    "text", ["", "a: [", "benchmark: phantom", "- 1", "models: []", "models: {a: 1}"]
)
def test_what_is_no_leaderboard_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"list\.yaml"):
        read_leaderboard(write(tmp_path / "list.yaml", text))


@pytest.mark.parametrize("name", ["med_rewardbnch", "../benchmarks/phantom", "none.yaml"])
def test_an_unknown_leaderboard_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_leaderboard(name)


def test_no_name_leaves_the_output_folder() -> None:
    for name in ("../../etc/passwd", "..\\x", "/abs", "a/../b", "C:\\x", "leaderboard.json", "A b"):
        slug = ListedModel(name, "m").slug
        assert Path(slug).name == slug
        assert not set(slug) & set("./\\: ")


def test_entries_are_chosen_by_name() -> None:
    board = read_leaderboard("med_rewardbench")
    names = [entry.name for entry in chosen_entries(board, ["Qwen2.5-VL-7B", "LLaVA-1.5-7B"])]
    assert names == ["LLaVA-1.5-7B", "Qwen2.5-VL-7B"]
    assert chosen_entries(board, []) == board.entries
    with pytest.raises(ConfigError, match=r"Did you mean 'Qwen2.5-VL-7B'"):
        chosen_entries(board, ["Qwen2.5-VL-7"])


def test_the_primary_dimension_must_be_labelled() -> None:
    assert primary_dimension(benchmark(), None) == "overall"
    assert primary_dimension(benchmark(("accuracy", "relevance")), None) == "accuracy"
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        primary_dimension(benchmark(), "acuracy")


def test_the_shipped_leaderboard_names_the_released_registry() -> None:
    assert leaderboard_names() == ["med_rewardbench"]
    board = read_leaderboard("med_rewardbench")
    assert board.benchmark == "med_rewardbench"
    by_name = {entry.name: entry for entry in board.entries}
    assert {"BLIP-2", "HuatuoGPT", "Qwen2-VL-7B-dpo", "R1-Reward", "MedMO-8B"} <= by_name.keys()
    assert len(by_name) == 42
    assert sum(entry.proprietary for entry in board.entries) == 3
    for entry in board.entries:
        assert entry.model or entry.note, f"{entry.name} has neither a model nor a reason"
        assert not (entry.remote_code and entry.engine == "transformers"), entry.name
        assert entry.proprietary == (entry.engine == "openai"), entry.name


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, medrm.evaluation.leaderboard.leaderboard_tables as t;"
        "import medrm.evaluation.leaderboard.standings as b;"
        "b.read_leaderboard('med_rewardbench'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
