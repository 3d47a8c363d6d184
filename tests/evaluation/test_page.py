"""The report page: complete, self-contained, and safe with hostile text."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.errors import DataError
from medrm.evaluation.charts import step_chart
from medrm.evaluation.compare import compare
from medrm.evaluation.page import write_page
from medrm.evaluation.run import evaluate
from medrm.schema import DIMENSIONS, Case

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "line", "circle", "path", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; checks that the tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose texts are hostile: organ, model name, exclusion reason, configuration."""
    cases = [
        replace(case, groups={"organ": HOSTILE if number % 2 else "brain", "department": "d"})
        for number, case in enumerate(make_cases("AB" * 20))
    ]
    benchmark = make_benchmark(cases)
    scorers = {
        "before": Judge(lambda case, order: None if case.case_id == "case-000" else 0.7),
        "after": Rewards(oracle),
        "blank_images": Rewards(lambda case: (1.0, 0.0)),
    }
    for name, scorer in scorers.items():
        evaluate(scorer, benchmark, tmp_path / "evaluation" / name, HOSTILE)
    compare(
        tmp_path / "evaluation/before",
        tmp_path / "evaluation/after",
        controls={"blank_images": tmp_path / "evaluation/blank_images"},
        allowed_differences=["readout"],
    )
    excluded = [{"case_id": "x", "reason": HOSTILE}] * 3
    manifest = {"config": {"seed": HOSTILE}, "data": {"excluded": excluded}}
    (tmp_path / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [
        {"step": 5, "loss": 0.7, "accuracy_accuracy": 0.5},
        {"step": 10, "loss": 0.35, "accuracy_accuracy": 0.75, "eval_accuracy_accuracy": 0.8},
    ]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    return tmp_path


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_page_is_complete_and_self_contained(folder: Path) -> None:
    page = read(write_page(folder))
    text = " ".join(" ".join(page.text).split())
    comparison = json.loads((folder / "comparison.json").read_text("utf-8"))
    assert comparison["verdict"] == "Improved"
    assert comparison["headline"] in text
    for piece in (
        "trained, blank images",
        "rule: the longer answer",
        "Accuracy on accuracy",
        "development (last 0.800)",
        "By organ, on accuracy",
        "By department, on accuracy",
        "too_long 1",
        "Training cases set aside",
        "synthetic",
        "not for patient care",
        "1.0000",
    ):
        assert piece in text, piece
    assert page.links == []
    raw = (folder / "report.html").read_text("utf-8")
    assert "http" not in raw
    assert "@import" not in raw
    assert "url(" not in raw


def test_no_text_of_the_run_becomes_markup(folder: Path) -> None:
    page = read(write_page(folder))
    assert "script" not in page.tags
    assert "".join(page.text).count(HOSTILE) >= 4


def test_what_a_judge_wrote(folder: Path) -> None:
    """Before it refuses in half of the cases; after it answers, with hostile text around."""
    benchmark = make_benchmark(make_cases("AB" * 20))

    def rule(case: Case, order: str, *_: object) -> str:
        letter = "A" if (oracle(case)[0] == 1.0) == (order == "forward") else "B"
        return f"</pre>{HOSTILE}\ud83d {json.dumps(dict.fromkeys(DIMENSIONS, letter))}"

    def refusing(case: Case, order: str, *_: object) -> str:
        return rule(case, order) if int(case.case_id[-3:]) < 20 else "I can't."

    settings = {"prompt": "json 1"}
    for name, written in {"before": refusing, "after": rule}.items():
        scorer = Writer(written, DIMENSIONS)
        evaluate(scorer, benchmark, folder / "evaluation" / name, "m", settings=settings)
    compare(folder / "evaluation/before", folder / "evaluation/after")
    page = read(write_page(folder))
    text = " ".join(" ".join(page.text).split())
    assert "script" not in page.tags
    for piece in (
        "Before: generate, prompt json 1. After: generate, prompt json 1.",
        "Official scorer, medrm prompt. Its rules",
        "+0.0 points come from judging better what was read, +50.0 points from how much",
        "read by rule: json 40 80",
        "not wholly read: no JSON object 40 0",
        "read by rule: json 20 40",
        "voided but readable 0 0",
        "Replies after training, read (6 shown)",
        "case-000, forward, vote 0 : accuracy A",
    ):
        assert piece in text, piece
    assert "not wholly read (" not in text
    assert "".join(page.text).count(f"</pre>{HOSTILE}") == 6


def test_page_can_be_rebuilt_from_less(folder: Path) -> None:
    first = write_page(folder).read_bytes()
    assert write_page(folder).read_bytes() == first
    (folder / "run.json").unlink()
    (folder / "metrics.jsonl").unlink()
    text = " ".join(read(write_page(folder)).text)
    assert "By optimiser step" not in text


def test_page_without_an_official_table(folder: Path) -> None:
    benchmark = make_benchmark(make_cases("AB" * 20))
    for name in ("before", "after"):
        evaluate(Rewards(oracle), benchmark, folder / "evaluation" / name, "m", "robust")
    compare(folder / "evaluation/before", folder / "evaluation/after")
    text = " ".join(read(write_page(folder)).text)
    assert "Only the weights differ" in text
    assert "released scorer" not in text


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"comparison\.json"):
        write_page(tmp_path)


def test_chart_positions() -> None:
    """Step 10 of 20 is the middle; 0.25 of 0.5 is half way up, which is 50 from the top."""
    metrics = [{"step": 10, "loss": 0.25}, {"step": 20, "loss": 0.5, "eval_loss": 0.1}]
    chart = step_chart("Loss", metrics, {"loss": "training", "eval_loss": "development"})
    assert chart is not None
    assert [line.path for line in chart.lines] == [
        "M 50.00 50.00 L 100.00 0.00",
        "M 100.00 80.00 h 0",
    ]
    assert [tick.label for tick in chart.x_ticks] == ["0", "5", "10", "15", "20"]
    assert step_chart("None", metrics, {"accuracy": "training"}) is None
    share = step_chart("A", [{"step": 1, "a": 1.0}], {"a": "x"}, share=True, references={"c": 0.5})
    assert share is not None
    assert share.references[0].at == 50.0
    assert share.y_ticks[-1].label == "100 %"
