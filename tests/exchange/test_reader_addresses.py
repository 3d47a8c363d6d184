"""Where only the e-mail address of a reader is known, it stays in the user's own set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tool_exports as exports
from exported_set import drafts, export
from planted import found, word

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.data.labels import LabelRules
from medrm.errors import ConfigError
from medrm.exchange.exporters import EXPORTERS

ANNA = f"{word('annotator')}.anna@clinic.test"
READERS = (ANNA, f"ben@{word('annotator')}.test", "Dr. Carla")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was imported from Label Studio's CSV, which has addresses alone."""
    folder = tmp_path_factory.mktemp("addresses")
    data = {"prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}

    def said(rater: int) -> dict[str, Any]:
        return exports.result("overall", "choices", ["AB"[rater % 2]])

    tasks = [
        exports.task(
            n,
            data | {"case_id": f"c{n}"},
            *(exports.annotation(10 * n + r, reader, said(r)) for r, reader in enumerate(READERS)),
        )
        for n in range(3)
    ]
    (folder / "project.csv").write_text(exports.table(tasks), encoding="utf-8")
    argv = ["data", "import", str(folder / "project.csv"), "--output", str(folder / "set")]
    assert main(argv) == 0
    return folder


def test_an_address_leaves_in_nothing_that_may_be_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, left = folder / "set", tmp_path / "left"
    assert ANNA in (source / "votes.jsonl").read_text("utf-8")
    shown_as = json.loads((source / "import_report.json").read_text("utf-8"))["shown_as"]
    assert {*shown_as} == {*READERS[:2]}
    left.mkdir()
    weights = json.dumps(dict.fromkeys(READERS, 2))
    for command in ("agreement", "audit"):
        argv = ["data", command, str(source), "--output", str(left / f"{command}.json")]
        assert main(argv + ["--annotator_weights", weights] * (command == "agreement")) == 0
    for form in EXPORTERS:
        export(source, form, left / form)
    export(source, "sheet", left / "votes", "--with_votes", "--table", "csv")
    assert not found([left], [word("annotator")])
    assert word("annotator") not in "".join(capsys.readouterr())
    agreement = json.loads((left / "agreement.json").read_text("utf-8"))
    named = {of["reader"] for of in agreement["dimensions"]["overall"]["by_reader"]}
    assert named == {"Dr. Carla", *shown_as.values()}
    assert all(name.startswith("reader-") for name in shown_as.values())


def test_votes_that_are_refused_or_dropped_name_no_address(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = (folder / "set" / "votes.jsonl").read_text("utf-8").splitlines()
    shown_as = json.loads((folder / "set" / "import_report.json").read_text("utf-8"))["shown_as"]
    rows = [json.loads(text) | {"images": [], "seconds": 2} for text in lines]
    fast = tmp_path / "fast.jsonl"
    fast.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    rules = LabelRules(min_seconds=10)
    examples = read_set(str(fast), rules).fast_votes.examples
    assert f"case 'c0', overall: '{shown_as[ANNA]}' took 2 s" in examples
    assert f"{shown_as[ANNA]} 3" in caplog.text
    with pytest.raises(ConfigError, match=f"no weight is given for .*{shown_as[ANNA]}") as caught:
        read_set(str(fast), LabelRules(weights={"Dr. Carla": 1.0}))
    twice = tmp_path / "twice.jsonl"
    twice.write_text(f"{fast.read_text('utf-8')}{json.dumps(rows[0])}\n", "utf-8")
    assert main(["data", "audit", str(twice), "--output", str(tmp_path / "audit.json")]) == 2
    audit = (tmp_path / "audit.json").read_text("utf-8")
    assert "votes twice on" in audit
    told = [audit, caplog.text, *examples, str(caught.value), *capsys.readouterr()]
    assert word("annotator") not in "".join(told)


def test_a_sheet_with_the_votes_so_far_comes_back_to_the_readers(
    folder: Path, tmp_path: Path
) -> None:
    source = folder / "set"
    export(source, "sheet", tmp_path / "p", "--with_votes", "--table", "csv")
    rows = (tmp_path / "p" / "votes.csv").read_text("utf-8-sig").splitlines(True)
    (tmp_path / "p" / "more.csv").write_text(rows[0] + rows[1], "utf-8")
    first = (source / "votes.jsonl").read_text("utf-8").splitlines(True)[1:]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "votes.jsonl").write_text("".join(first), "utf-8")
    argv = ["data", "import", str(tmp_path / "p" / "more.csv"), "--join", str(tmp_path / "first")]
    assert main([*argv, "--output", str(tmp_path / "all")]) == 0
    readers = {vote.annotator for vote in drafts(tmp_path / "all")["c0"].votes["overall"]}
    assert readers == {*READERS}


def test_readers_of_two_servers_with_one_number_stay_two(tmp_path: Path) -> None:
    data = {"prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}

    def join(name: str, case: str, people: dict[int, str], *joined: str) -> set[str]:
        said = exports.result("overall", "choices", ["A"])
        of = [exports.annotation(n, n, said) for n in people]
        for one, (number, address) in zip(of, people.items(), strict=True):
            one["completed_by"] = {"id": number, "email": address}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([exports.task(1, data | {"case_id": case}, *of)]), "utf-8")
        argv = ["data", "import", str(path), "--output", str(tmp_path / name)]
        assert main([*argv, *joined]) == 0
        return {line["annotator"] for line in read(name) if line["case_id"] == case}

    def read(name: str) -> list[dict[str, Any]]:
        text = (tmp_path / name / "votes.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    assert join("one", "c1", {1: "ada@x.test"}) == {"1"}
    both = join("two", "c2", {1: "ben@y.test", 2: "Ada@x.test"}, "--join", str(tmp_path / "one"))
    assert both == {"1", "ben@y.test"}
    again = join("three", "c3", {7: "BEN@y.test", 3: "eva@y.test"}, "--join", str(tmp_path / "two"))
    assert again == {"ben@y.test", "3"}
    report = json.loads((tmp_path / "three" / "import_report.json").read_text("utf-8"))
    assert report["reader_addresses"] == {"1": "ada@x.test", "3": "eva@y.test"}
    assert any("'7' of this file is 'reader-" in note for note in report["notes"])
