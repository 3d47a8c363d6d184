"""The page: complete, self-contained, and safe with hostile text; every part of it optional."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle, ranked_case
from PIL import Image

from medrm.cli import main
from medrm.errors import DataError
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.pages import samples
from medrm.evaluation.pages.document import safe_json
from medrm.evaluation.pages.report_page import write_page
from medrm.schema import DIMENSIONS, Case, ImageRef

HOSTILE = "</script><script>alert('x')</script><!--<img src=x onerror=alert(1)>\u2028\u2029&lt;"
VOID = {"meta", "line", "circle", "path", "br", "img", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes, text and scripts; checks that the tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[Mapping[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0][1])

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def picture(name: str, grey: int) -> ImageRef:
    file = BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    content = file.getvalue()
    return ImageRef(name, hashlib.sha256(content).hexdigest(), lambda: content)


def hostile_cases() -> list[Case]:
    """Every text is hostile; two cases share each picture."""
    return [
        replace(
            case,
            case_id=f"{HOSTILE}{number:03d}",
            question=HOSTILE,
            answers=(HOSTILE, f"{HOSTILE} and more than thirty characters of an answer"),
            groups={"organ": HOSTILE if number % 2 else "brain", "department": "d"},
            images=(picture(HOSTILE, number // 2),),
        )
        for number, case in enumerate(make_cases("AB" * 20))
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose texts are hostile: cases, organ, model name, exclusion reason, configuration."""
    folder = tmp_path_factory.mktemp("run")
    benchmark = make_benchmark(hostile_cases())
    first = benchmark.cases[0].case_id
    scorers = {
        "before": Judge(lambda case, order: None if case.case_id == first else 0.7),
        "after": Rewards(oracle),
        "blank_images": Rewards(lambda case: (1.0, 0.0)),
    }
    for name, scorer in scorers.items():
        where = folder / "evaluation" / name
        evaluate(scorer, benchmark, where, HOSTILE, images=name == "after")
    compare(
        folder / "evaluation/before",
        folder / "evaluation/after",
        controls={"blank_images": folder / "evaluation/blank_images"},
        allowed_differences=["readout"],
        notes=["One seed of three."],
    )
    excluded = [{"case_id": "x", "reason": HOSTILE}] * 3
    manifest = {"config": {"seed": HOSTILE}, "data": {"excluded": excluded}}
    (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [
        {"step": 5, "loss": 0.7, "accuracy_accuracy": 0.5},
        {"step": 10, "loss": 0.35, "accuracy_accuracy": 0.75, "eval_accuracy_accuracy": 0.8},
    ]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    write_page(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Before the judge refuses in half of the cases; after it answers, hostile text around."""
    folder = tmp_path_factory.mktemp("judged")
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
    write_page(folder)
    return folder


def test_page_is_complete_and_self_contained(made: Path) -> None:
    page = read(made / "report.html")
    comparison = json.loads((made / "comparison.json").read_text("utf-8"))
    assert comparison["verdict"] == "Improved"
    assert comparison["headline"].replace("->", "\u2192") in page.words
    assert page.words.count(comparison["pictures"]["sentence"]) == 2  # headline and controls
    assert page.words.index("One seed of three.") < page.words.index("Every dimension")
    for piece in (
        "Comparable: besides the weights this differs: readout (declared beforehand).",
        "trained, blank images",
        "rule: the longer answer",
        "By organ, on accuracy",
        "By department, on accuracy",
        "too_long 1",
        "Training cases set aside",
        "synthetic",
        "not for patient care",
        "1.0000",
        "Minimum detectable difference",
    ):
        assert piece in page.words, piece
    assert all(link.startswith("#") for link in page.values("href"))
    assert page.values("src") == []
    raw = (made / "report.html").read_text("utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)", raw)
    assert "@import" not in raw
    assert "url(http" not in raw


def test_sections_stand_in_their_order_and_are_listed(made: Path) -> None:
    page = read(made / "report.html")
    order = ("headline", "groups", "changed", "bias", "controls", "cases", "others", "method")
    found = [one for one in page.values("id") if one in order]
    assert found == [name for name in order if name in found]
    assert {"headline", "groups", "changed", "controls", "training", "cases"} <= set(
        page.values("id")
    )
    listed = [link[1:] for link in page.values("href") if link[1:] in page.values("id")]
    assert set(found) <= set(listed)
    assert "format" not in page.values("id")  # a reward model wrote nothing


def test_no_text_of_the_run_becomes_markup(made: Path) -> None:
    page = read(made / "report.html")
    assert page.tags.count("script") == 2
    assert page.scripts[0][0] == {"type": "application/json", "id": "data"}
    assert page.scripts[1][0] == {}
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count(HOSTILE) >= 4
    assert not re.search(r"[<>&\u2028\u2029]", page.scripts[0][1])
    first = page.data["cases"][0]
    assert first["id"] == f"{HOSTILE}000"
    assert first["q"] == first["a"][0] == HOSTILE
    assert page.data["groups"]["organ"] == sorted({HOSTILE, "brain"})


def test_the_policy_allows_our_script_alone(made: Path) -> None:
    page = read(made / "report.html")
    [policy] = [one for one in page.values("content") if "default-src" in one]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = hashlib.sha256(page.scripts[1][1].encode()).digest()
    assert rules["script-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for forbidden in ("innerHTML", "insertAdjacent", "document.write", "eval(", "fetch("):
        assert forbidden not in page.scripts[1][1]


def test_json_of_the_script_is_read_back_whole() -> None:
    value = {HOSTILE: [HOSTILE, 1.5, None, "\ud83d", "\u00e4"]}
    assert json.loads(safe_json(value)) == value
    assert safe_json(value).isascii()


def test_each_picture_is_there_once_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read(folder / "report.html")
    assert len(page.data["images"]) == 20
    assert all(one.startswith("data:image/webp;base64,") for one in page.data["images"])
    assert page.data["cases"][0]["i"][0][0] == page.data["cases"][1]["i"][0][0] == 0
    size = len(base64.b64decode(page.data["images"][0].partition(",")[2]))
    monkeypatch.setattr(samples, "ALL_IMAGES", 3 * size)
    assert "17 images are left out" in read(write_page(folder)).words
    text = write_page(folder, images=False).read_text("utf-8")
    assert "data:image" not in text
    without = read(folder / "report.html")
    assert "Made without pictures" in without.words
    digest = hostile_cases()[0].images[0].digest
    assert without.data["cases"][0]["i"] == [[None, digest, None]]
    shutil.rmtree(folder / "evaluation" / "after" / "images")
    assert "Of 20 images no copy is kept" in read(write_page(folder)).words


def test_the_command_leaves_pictures_out(folder: Path) -> None:
    assert main(["report", str(folder), "--no_images"]) == 0
    assert "data:image" not in (folder / "report.html").read_text("utf-8")
    assert main(["report", str(folder)]) == 0
    assert "data:image" in (folder / "report.html").read_text("utf-8")


def test_what_the_browser_shows_of_a_reward_model(made: Path) -> None:
    data = read(made / "report.html").data
    assert data["sides"] == ["before", "after"]
    assert data["primary"] == "accuracy"
    first, second = data["cases"][:2]
    assert first["l"]["accuracy"] == {"c": "A", "s": [1.0, 0.0, 0.0], "n": 3}
    assert first["v"][0]["accuracy"] == [["unread", 0.0, "too_long"]] * 2
    assert first["v"][1]["accuracy"] == [["A", 1.0, None, 0.7311, [1.0, 0.0]]]
    assert second["v"][0]["accuracy"] == [["A", 0.0, None, 0.7]] * 2
    assert first["r"][0][0]["e"] == "too_long"


def test_what_a_judge_wrote(judged: Path) -> None:
    page = read(judged / "report.html")
    for piece in (
        "Before: m, generate, prompt json 1 After: m, generate, prompt json 1",
        "Official scorer, medrm prompt. Its rules",
        "+0.0 points come from judging better what was read, +50.0 points from how much",
        "read by rule: json 40 80",
        "not wholly read: no JSON object 40 0",
        "read by rule: json 20 40",
        "voided but readable 0 0",
    ):
        assert piece in page.words, piece
    assert page.tags.count("script") == 2
    first, last = page.data["cases"][0], page.data["cases"][-1]
    reply = first["r"][1][0]
    assert reply["t"].startswith(f"</pre>{HOSTILE}\ud83d")
    assert (reply["o"], reply["s"][0], reply["f"][0]) == ("forward", "json", "json")
    assert "f" not in first["r"][1][1]  # the official parser reads the stored order alone
    assert last["r"][0][0]["s"] == ["none", "no JSON object"]
    assert last["v"][0]["accuracy"][0][:2] == ["unread", 0.0]


def test_long_replies_are_cut(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "LONGEST_REPLY", 10)
    reply = read(write_page(judged)).data["cases"][0]["r"][1][0]["t"]
    assert re.fullmatch(r"(?s).{10} \[\d+ more characters\]", reply)


def test_suspect_readings_are_marked(tmp_path: Path) -> None:
    text = "\n".join(
        f"{name.capitalize()}: Answer A is better than Answer B" for name in DIMENSIONS
    )
    letters = json.dumps(dict.fromkeys(DIMENSIONS, "A"))
    benchmark = make_benchmark(make_cases("AB"))

    def rule(case: Case, *_: object) -> str:
        return text if case.case_id == "case-000" else letters

    report = evaluate(Writer(rule, DIMENSIONS), benchmark, tmp_path, "m")
    data = read(write_page(tmp_path)).data
    marked = sum(reply.get("x", 0) for one in data["cases"] for reply in one["r"][0])
    assert marked == report["parsing"]["official"]["suspect"] == 1


def test_page_of_one_evaluation(made: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(made / "evaluation" / "after", tmp_path / "alone"))
    page = read(write_page(alone))
    assert page.data["sides"] == ["model"]
    assert "Accuracy: 100.0 % right" in page.words
    assert "before" not in page.words.lower().split()
    for absent in ("changed", "training"):
        assert absent not in page.values("id")


def test_page_can_be_rebuilt_from_less(folder: Path) -> None:
    first = write_page(folder).read_bytes()
    assert write_page(folder).read_bytes() == first
    (folder / "metrics.jsonl").write_text('{"step": 3, "lo', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl is not what a run writes"):
        write_page(folder)
    for name in ("run.json", "metrics.jsonl", "evaluation/after/cases.jsonl"):
        (folder / name).unlink()
    page = read(write_page(folder))
    assert "By optimiser step" not in page.words
    assert "cases" not in page.values("id")
    assert page.scripts == []
    assert "script-src 'none'" in " ".join(page.values("content"))
    assert not [link for link in page.values("href") if link.startswith("#show")]


def test_page_without_what_may_be_missing(folder: Path) -> None:
    """Optional entries of both files are null or absent."""
    path = folder / "comparison.json"
    comparison = json.loads(path.read_text("utf-8"))
    for name in ("pictures", "minimum_detectable", "mean", "official", "forward_only", "gain"):
        comparison[name] = None
    comparison |= {"notes": [], "cells": {}, "controls": {}}
    path.write_text(json.dumps(comparison), encoding="utf-8")
    for side in ("before", "after"):
        path = folder / "evaluation" / side / "report.json"
        report = json.loads(path.read_text("utf-8"))
        report |= {"structure": None, "length": {}, "weights": None, "published": []}
        report["protocols"].pop("official", None)
        for entry in report["protocols"]["robust"]["dimensions"].values():
            entry["calibration"] = None
        path.write_text(json.dumps(report), encoding="utf-8")
    page = read(write_page(folder))
    assert "Every dimension" in page.words
    assert "calibration" not in page.values("id")
    assert "released scorer" not in page.words


def test_page_of_more_than_two_answers(tmp_path: Path) -> None:
    benchmark = make_benchmark([ranked_case(number, number % 4) for number in range(12)])
    scorer = Rewards(lambda case: [float(answer == "b") for answer in case.answers])
    evaluate(scorer, benchmark, tmp_path, "m", "robust")
    page = read(write_page(tmp_path))
    first = page.data["cases"][0]
    assert first["a"] == ["a", "b", "c", "d"]
    assert first["v"][0]["accuracy"] == [[1, 0.0, None, None, [0.0, 1.0, 0.0, 0.0]]]
    assert first["l"]["accuracy"]["c"] == 0
    assert len(first["l"]["accuracy"]["k"]) == first["l"]["accuracy"]["n"] == 3


def test_an_unfinished_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"comparison\.json"):
        write_page(tmp_path)


def test_files_of_an_earlier_version_are_named(folder: Path) -> None:
    path = folder / "comparison.json"
    content = json.loads(path.read_text("utf-8"))
    del content["cells"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"comparison\.json .*earlier version"):
        write_page(folder)
