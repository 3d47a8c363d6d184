"""Exports of annotation tools, in their exact forms: what is taken, what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tool_exports as exports

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.errors import ConfigError, DataError
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.importers.tool_rows import in_stored_order
from medrm.exchange.mapping_file import load_mapping
from medrm.exchange.open_source import open_source
from medrm.exchange.write_votes import write_votes
from medrm.pipeline.data_import import importer_of


def imported(
    path: Path, content: Any, mapping: str | None = None
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    """Imports an export; returns its lines by case and annotator, and the report."""
    if not isinstance(content, str):
        rows = [f"{json.dumps(row)}\n" for row in content]
        content = "".join(rows) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(content, encoding="utf-8")
    opened = open_source(path, None, load_mapping(mapping) if mapping else None)
    importer = importer_of(opened)
    report = write_votes(path.parent / "set", opened, importer, overwrite=True)
    assert report["importer"] == importer.name
    read_set(str(path.parent / "set"))
    written = (path.parent / "set" / "votes.jsonl").read_text(encoding="utf-8")
    lines = map(json.loads, written.splitlines())
    return {(line["case_id"], line["annotator"]): line for line in lines}, report


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {row["place"]: row["reason"] for row in report["unread"]}


def test_label_studio_takes_what_counts_and_lists_the_rest(tmp_path: Path) -> None:
    lines, report = imported(tmp_path / "project.json", exports.project())
    assert set(lines) == {("17", "16"), ("17", "9"), ("18", "16")}
    first = lines["17", "16"]
    assert first["votes"] == {"accuracy": "A", "pick": "B", "clarity": "tie"}
    assert (first["answer_a"], first["answer_b"], first["question"]) == ("No.", "Yes.", "Só?")
    assert (first["seconds"], first["reason"]) == (2.849, "Blurred.\nLate.")
    assert (first["patient"], first["extra"]["ward"], len(first["images"])) == ("p1", 3, 1)
    assert lines["17", "9"]["votes"] == {"accuracy": "B"}  # the newer of two
    assert report["importer"] == "label_studio"
    assert set(report["notes"]) == {
        "Drafts, left out: 1.",
        "Predictions, left out: 2.",
        "Annotations that were cancelled (skipped), left out: 1.",
        "Annotations that are marked as ground truth, taken as any other: 1.",
        "Results that are a model's prediction, left as it was: 1.",
        "Results that are no choice, rating or text, left out: 1.",
        "Tasks without an annotation: 1.",
        "Not interpreted, and kept in `extra` (lines): 'ward' (3), 'annotation_id' (3), "
        "'created_at' (3), 'updated_at' (3).",
    }
    assert reasons(report) == {
        "row 1 (task 6141), annotation 2": "the same rater answered this task again (row 1 (task "
        "6141), annotation 3); the newest counts",
        "row 1 (task 6141), annotation 5": "an annotation is an object with a list 'result'",
    }


@pytest.mark.parametrize("name", ["project", "ordered_project", "ranked_project"])
def test_all_three_exports_of_label_studio_are_one_set(tmp_path: Path, name: str) -> None:
    tasks = getattr(exports, name)()
    whole, _ = imported(tmp_path / "whole.json", tasks)
    for path, content in (("min.json", exports.flat(tasks)), ("t.csv", exports.table(tasks))):
        lines, report = imported(tmp_path / path, content)
        assert report["importer"] == ("exported_project" if "ordered" in name else "label_studio")
        for line in (*lines.values(), *whole.values()):
            line.pop("extra", None)
        for case, rater in [*lines]:
            if rater == "anna@clinic.test":  # only JSON has the number as well
                lines[case, "16"] = lines.pop((case, rater)) | {"annotator": "16"}
        assert lines == whole


def test_the_order_in_which_answers_were_shown_is_undone(tmp_path: Path) -> None:
    others = exports.ordered_project()
    for task in others:
        del task["data"]["seed"]  # one who orders answers as medrm does, in a project of his own
    for tasks, name in ((exports.ordered_project(), "exported_project"), (others, "label_studio")):
        lines, report = imported(tmp_path / "p.json", tasks)
        assert report["importer"] == name
        assert lines["a", "1"]["answer_a"] == "second shown"
        assert lines["a", "1"]["votes"] == {"accuracy": "strongly_b", "Klinik, <b>": "neither"}
        assert lines["b", "1"]["answer_a"] == "first shown"
        assert lines["b", "1"]["votes"] == {"accuracy": "strongly_a", "Klinik, <b>": "neither"}
        assert lines["b", "1"]["confidence"] == "low"
    lines, _ = imported(tmp_path / "p.json", exports.ranked_project())
    assert lines["a", "16"]["answers"] == ["s0", "s1", "s2"]
    assert lines["a", "16"]["votes"] == {"accuracy": [[0, 1], [2]]}
    asked_more = exports.ordered_project()[:1]
    asked_more[0]["annotations"][0]["result"].append(exports.result("mood", "choices", ["good"]))
    lines, _ = imported(tmp_path / "p.json", asked_more)
    assert lines["a", "1"]["extra"] == {"mood": "good"}
    asked_more[0]["annotations"][0]["result"][-1] = exports.result("score", "number", 0)
    lines, _ = imported(tmp_path / "p.json", asked_more)
    assert lines["a", "1"]["extra"] == {"score": 0}
    damaged = exports.ordered_project()
    damaged[0]["data"]["order"] = [1, 1]
    lines, report = imported(tmp_path / "p.json", damaged)
    assert [*lines] == [("b", "1")]
    assert "'order' is [1, 1], which does not name its 2" in next(iter(reasons(report).values()))


def test_tasks_of_two_projects_are_others_though_their_numbers_are_the_same(tmp_path: Path) -> None:
    one, other = exports.project()[:2], exports.project()[:2]
    for task in other:
        task["data"] |= {"case_id": f"x{task['data']['case_id']}", "answer_1": "Maybe."}
    lines, _ = imported(tmp_path / "both.json", one + other)
    assert {*lines} == {
        (f"{x}{n}", r) for x in ("", "x") for n, r in (("17", "16"), ("17", "9"), ("18", "16"))
    }
    assert lines["x17", "16"]["answer_a"] == "Maybe."


def test_a_control_that_collides_with_a_field_and_addresses_of_its_own_files(
    tmp_path: Path,
) -> None:
    data = {"accuracy": "of the case", "prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}
    data["image"] = "/data/local-files/?d=images%2Fa%20b.png"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").write_bytes(exports.png(90))
    choice = exports.result("accuracy", "choices", ["B"])
    lines, _ = imported(
        tmp_path / "p.json", [exports.task(7, data, exports.annotation(1, 3, choice))]
    )
    assert lines["7", "3"]["votes"] == {"accuracy": "B"}
    assert lines["7", "3"]["extra"]["_data_accuracy"] == "of the case"
    assert len(lines["7", "3"]["images"]) == 1


def test_nobody_is_taken_for_the_rater_without_an_address(tmp_path: Path) -> None:
    data = {"prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}
    said = [exports.result("overall", "choices", [letter]) for letter in "AB"]
    of = [exports.annotation(n, 3, one) for n, one in enumerate(said)]
    of[0]["completed_by"], of[1]["completed_by"] = {"id": 3, "email": None}, None
    assert imported(tmp_path / "p.json", [exports.task(7, data, *of)])[0].keys() == {("7", "3")}


@pytest.mark.parametrize("name", ["side", "class", "grade", "fewer_errors"])
def test_votes_under_a_name_of_something_else_are_asked_for(tmp_path: Path, name: str) -> None:
    data = {"prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}
    said = [exports.result(control, "choices", ["A"]) for control in ("overall", name)]
    tasks = [exports.task(7, data, exports.annotation(1, 3, *said))]
    with pytest.raises(ConfigError, match=f"'{name}' may hold votes: about which dimension"):
        imported(tmp_path / "p.json", tasks)


def test_answers_and_fields_that_read_like_votes_are_none(tmp_path: Path) -> None:
    data = {"prompt": "Which one?", "answer_1": "A", "answer_2": "B", "gold": "B"}
    data |= {"score_1": 3, "score_2": 4}
    choice = exports.result("overall", "choices", ["A"])
    tasks = [exports.task(7, data, exports.annotation(1, 3, choice))]
    lines, _ = imported(tmp_path / "p.json", tasks)
    line = lines["7", "3"]
    assert (line["votes"], line["answer_a"], line["answer_b"]) == ({"overall": "A"}, "A", "B")
    assert (line["extra"]["gold"], line["extra"]["score_2"]) == ("B", 4)
    with pytest.raises(ConfigError, match="'gold' may hold votes: about which dimension"):
        imported(tmp_path / "min.json", exports.flat(tasks))  # it does not tell fields and controls


def test_what_an_export_does_not_say_is_asked_for_and_never_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"vignette": "Q?", "model_x": "No.", "model_y": "Yes."}
    said = [exports.result("better", "choices", [value]) for value in ("x wins", "y wins", "B")]
    said += [exports.result("quality", "choices", ["good"])]
    tasks = [
        exports.task(n, data, exports.annotation(n, 3, *said[n : n + 1], said[3])) for n in range(3)
    ]
    path = tmp_path / "foreign.json"
    with pytest.raises(ConfigError, match="no column is recognised as question") as refused:
        imported(path, tasks)
    assert "no column is recognised as answer_a" in str(refused.value)
    assert "there are 'better' ('x wins', 'y wins', 'B')" in str(refused.value)
    with pytest.raises(DataError, match="no annotation in it counts") as refused:
        imported(tmp_path / "nobody.json", [exports.task(1, data, drafts=[{}])])
    assert "Drafts, left out: 1.\n- Tasks without an annotation: 1." in str(refused.value)
    argv = ["data", "import", str(path), "--mapping", str(tmp_path / "map.yaml")]
    assert main([*argv, "--suggest"]) == 0
    assert "question: '?'" in (tmp_path / "map.yaml").read_text()
    columns = "{case_id: case_id, question: vignette, answer_a: model_x, answer_b: model_y, "
    columns += "annotator: annotator, seconds: lead_time}"
    votes = "[{column: better, dimension: overall}]"
    values = "{x wins: A, y wins: B}"
    mapping = f"columns: {columns}\nvotes: {votes}\nvalues: {values}\n"
    lines, report = imported(path, tasks, mapping)
    assert [line["votes"] for line in lines.values()] == [{"overall": "A"}, {"overall": "B"}]
    assert lines["0", "3"]["extra"]["quality"] == "good"
    (reason,) = reasons(report).values()
    assert reason.startswith("'better' is 'B', which the mapping's values do not name")


def test_argilla_takes_what_was_submitted_and_keeps_equal_ranks(tmp_path: Path) -> None:
    lines, report = imported(tmp_path / "flat.json", exports.argilla_flat())
    anna, ben = lines["r1", exports.ANNA], lines["r1", exports.BEN]
    assert anna["votes"] == {"preference": "tie", "clarity": "A", "accuracy": "A"}
    assert ben["votes"] == {"preference": "B", "clarity": "tie", "accuracy": "tie"}
    assert (anna["reason"], anna["extra"]) == ("Blurred.", {"flaws": ["vague", "long"]})
    assert (len(lines), len(anna["images"]), anna["patient"]) == (2, 1, "p1")
    assert reasons(report)["row 3"].startswith("its responses are no lists of values and users")
    notes = "\n".join(report["notes"])
    assert "Responses that are draft, left out: 1." in notes
    assert "Records without a response: 1." in notes
    assert "'flaws'" in notes
    assert "without their status" not in notes
    rows = exports.argilla_flat()[:2]
    rows = [row | {"scan": {"bytes": exports.png(90), "path": None}} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "flat.parquet")
    opened = open_source(tmp_path / "flat.parquet")
    report = write_votes(tmp_path / "parquet", opened, IMPORTERS["argilla"])
    assert importer_of(opened).name == "argilla"
    assert (report["lines"], report["images"], report["not_taken"]) == (2, 1, 0)


def test_argilla_nested_says_that_the_status_is_lost(tmp_path: Path) -> None:
    lines, report = imported(tmp_path / "nested.json", exports.argilla_nested())
    anna = lines["r1", exports.ANNA]
    assert anna["votes"] == {"preference": "B", "clarity": "A", "accuracy": "A"}
    assert (anna["question"], [turn["role"] for turn in anna["context"]]) == (
        "Só?",
        ["user", "assistant"],
    )
    notes = "\n".join(report["notes"])
    assert "Responses without their status, among which drafts may be: 10." in notes
    assert "Rankings that have lost their ranks, and so which are equal: 1." in notes


def test_prodigy_takes_accepted_tasks_in_any_order_of_options(tmp_path: Path) -> None:
    lines, report = imported(tmp_path / "out.jsonl", exports.prodigy()[:-1])
    assert set(lines) == {("23", "set-anna"), ("23", "set-ben")}
    assert lines["23", "set-anna"]["votes"] == {"accuracy": "tie"}  # the newer of two
    assert lines["23", "set-ben"]["votes"] == {"accuracy": "B"}
    assert lines["23", "set-ben"]["answer_b"] == "Yes."
    assert "Tasks that are answered 'ignore', left out: 1." in report["notes"]
    assert "Tasks that are answered 'reject', left out: 1." in report["notes"]
    assert [*reasons(report)] == ["line 1", "line 6"]
    shown = exports.prodigy()[0] | {"answer_1": "No.", "answer_2": "Yes."}
    shown["options"] = [{"id": n, "text": t} for n, t in ((1, "A"), (2, "gleich"), (3, "B"))]
    tasks = [shown | {"accept": [n], "_task_hash": n} for n in (1, 2, 3)]
    lines, _ = imported(tmp_path / "numbered.jsonl", tasks)
    assert [line["votes"]["accuracy"] for line in lines.values()] == ["A", "tie", "B"]
    lines, _ = imported(tmp_path / "compared.jsonl", exports.prodigy()[-1:])
    assert lines["24", "set-anna"]["votes"] == {"overall": "B"}
    assert lines["24", "set-anna"]["answer_b"] == "Bad."
    several = exports.prodigy()[0] | {"options": [{"id": n, "text": str(n)} for n in (3, 1, 2)]}
    lines, _ = imported(tmp_path / "best.jsonl", [several])
    assert lines["23", "set-anna"]["votes"] == {"accuracy": [[1], [0, 2]]}
    both = several | {"accept": [1, 2], "_task_hash": 24}
    lines, report = imported(tmp_path / "both.jsonl", [several, both])
    assert (len(lines), [*reasons(report)]) == (1, ["line 2"])
    assert reasons(report)["line 2"].startswith("it accepts 2 of 3 answers")
    alone = {key: several[key] for key in several if key != "meta"} | {
        "options": several["options"][:2]
    }
    with pytest.raises(ConfigError, match="'accept' may hold votes: about which dimension"):
        imported(tmp_path / "alone.jsonl", [alone | {"accept": [1]}])


def test_a_task_of_prodigy_that_is_ignored_at_last_has_no_vote(tmp_path: Path) -> None:
    first, *_, compared = exports.prodigy()
    last = first | {"_timestamp": 1707211050, "answer": "ignore"}
    lines, report = imported(tmp_path / "set.jsonl", [first, last, compared])
    assert {*lines} == {("24", "set-anna")}
    assert "the newest counts" in reasons(report)["line 1"]
    assert "Tasks that are answered 'ignore', left out: 1." in report["notes"]


def test_doccano_says_that_it_names_no_annotator(tmp_path: Path) -> None:
    lines, report = imported(tmp_path / "anna.jsonl", exports.doccano())
    assert lines["20", "anna"]["votes"] == {"accuracy": "A", "overall": "tie"}
    assert lines["20", "anna"]["comment"] == "Blurred."
    assert lines["21", "anna"]["votes"] == {"overall": "B"}
    assert "the name of the file stands, 'anna': 2." in " ".join(report["notes"])
    assert "spans of a text are no votes" in reasons(report)["line 4"]


def several_labels() -> dict[str, list[dict[str, Any]]]:
    """Of each tool: one answer with one label (case 1), and one with both (case 2)."""
    data = {"prompt": "Q?", "answer_1": "No.", "answer_2": "Yes."}
    chosen = {"1": ["B"], "2": ["A", "B"]}
    tasks = [
        exports.task(
            n,
            data | {"case_id": case},
            exports.annotation(n, 3, exports.result("overall", "choices", labels)),
        )
        for n, (case, labels) in enumerate(chosen.items())
    ]
    users = {"overall.responses.users": ["anna"], "overall.responses.status": ["submitted"]}
    session = {"_task_hash": 1, "_annotator_id": "anna", "answer": "accept", "dimension": "overall"}
    options = [{"id": name, "text": text} for name, text in (("A", "No."), ("B", "Yes."))]
    return {
        "label_studio": tasks,
        "label_studio_min": exports.flat(tasks),
        "argilla": [
            {"id": case, **data, "overall.responses": [labels], **users}
            for case, labels in chosen.items()
        ],
        "argilla_nested": [
            {
                "id": case,
                "fields": data,
                "responses": {"overall": [{"value": labels, "user_id": "anna"}]},
            }
            for case, labels in chosen.items()
        ],
        "prodigy": [
            {**session, "text": "Q?", "options": options, "accept": labels, "_task_hash": int(case)}
            for case, labels in chosen.items()
        ],
        "doccano": [
            {"id": case, "text": "Q?", "answer_1": "No.", "answer_2": "Yes.", "label": labels}
            for case, labels in chosen.items()
        ],
    }


@pytest.mark.parametrize("name", several_labels())
def test_several_labels_are_no_vote_and_no_ranking(tmp_path: Path, name: str) -> None:
    lines, report = imported(tmp_path / "e.json", several_labels()[name])
    (line,) = lines.values()
    assert (line["case_id"], line["votes"]) == ("1", {"overall": "B"})
    (reason,) = reasons(report).values()
    assert "names several at once (A, B); a vote is one" in reason


def test_bare_lists_of_argilla_are_a_ranking_only_in_other_orders_than_the_options(
    tmp_path: Path,
) -> None:
    fields = {"prompt": "Q?", "response1": "No.", "response2": "Yes."}

    def records(*orders: list[str]) -> list[dict[str, Any]]:
        return [
            {"id": n, "fields": fields, "responses": {"overall": [{"value": o, "user_id": "u"}]}}
            for n, o in enumerate(orders)
        ]

    both, turned = ["response1", "response2"], ["response2", "response1"]
    lines, _ = imported(tmp_path / "ranking.json", records(both, turned, both))
    assert [line["votes"]["overall"] for line in lines.values()] == ["A", "B", "A"]
    lines, report = imported(tmp_path / "labels.json", records(both, ["response2"]))
    assert [line["votes"]["overall"] for line in lines.values()] == ["B"]
    assert [*reasons(report)] == ["row 1, user u"]


def test_labels_that_compare_answers_name_no_dimension(tmp_path: Path) -> None:
    shown = {"text": "Q?", "answer_1": "No.", "answer_2": "Yes.", "Comments": []}
    labels = ("A=B", "A>B", "left = right", "accuracy: A")
    documents = [{"id": n, **shown, "label": [label]} for n, label in enumerate(labels)]
    lines, _ = imported(tmp_path / "anna.jsonl", documents)
    assert [line["votes"] for line in lines.values()] == [
        {"overall": "tie"},
        {"overall": "A"},
        {"overall": "tie"},
        {"accuracy": "A"},
    ]
    documents += [{"id": 9, **shown, "label": ["B >> A"]}, {"id": 10, **shown, "label": ["A>=B"]}]
    lines, _ = imported(tmp_path / "anna.jsonl", documents)
    assert [line["votes"].get("overall") for line in lines.values()] == [
        *("tie", "A", "tie", None, "strongly_b", "slightly_a")
    ]


def test_ratings_with_decimals_are_turned_with_their_answers() -> None:
    row = {"answer_1": "second", "answer_2": "first", "score_1": 3, "score_2": "4.5"}
    stored = in_stored_order({**row, "order": [1, 0]})
    assert (stored["answer_1"], stored["score_1"], stored["score_2"]) == ("first", "4.5", 3)


FORMS: dict[str, Callable[[], Any]] = {
    "label_studio": exports.project,
    "argilla": exports.argilla_flat,
    "prodigy": exports.prodigy,
    "doccano": exports.doccano,
}


def test_each_form_is_recognised_by_its_own_importer_alone(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(form()))
        opened = open_source(path)
        recognised = [other for other, one in IMPORTERS.items() if one.recognises(opened)]
        assert recognised in ([name], [name, "sheet"])
