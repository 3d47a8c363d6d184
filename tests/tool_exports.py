"""Exports of annotation tools, in the exact form in which each tool writes them; made up by hand.

Label Studio's follow `tests/custom/converter/data/` of HumanSignal/label-studio-sdk (Apache-2.0)
and what its `converter/` makes of them; Argilla's `records/_io/` of argilla 2.8.0 (Apache-2.0).
"""

from __future__ import annotations

import csv
import io
import json
from base64 import b64encode
from typing import Any

from released_samples import png

IMAGE = "data:image/png;base64," + b64encode(png(90)).decode()


def result(name: str, kind: str, said: Any, **changes: Any) -> dict[str, Any]:
    """One result of a control of Label Studio."""
    key = {"pairwise": "selected", "textarea": "text"}.get(kind, kind)
    return {
        "id": "d1uGfhDvN6",
        "type": kind,
        "value": {key: said},
        "origin": "manual",
        "to_name": "question",
        "from_name": name,
    } | changes


def annotation(number: int, rater: Any, *results: Any, **changes: Any) -> dict[str, Any]:
    """One annotation of Label Studio; a rater is a number, or a number with an e-mail address."""
    if isinstance(rater, str):
        rater = {"id": len(rater), "email": rater, "first_name": "", "last_name": ""}
    return {
        "id": number,
        "completed_by": rater,
        "result": list(results),
        "reviews": [],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-05-15T12:09:16.789536Z",
        "updated_at": f"2026-05-15T12:10:{number % 60:02d}.789563Z",
        "draft_created_at": None,
        "lead_time": 1.849 + number,
        "prediction": {},
        "result_count": 0,
        "unique_id": "de253957-8959-4e6f-9022-30d08bbea9f3",
        "import_id": None,
        "last_action": "submitted",
        "task": 6141,
        "project": 24,
        "updated_by": 14,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": 14,
    } | changes


def task(number: int, data: dict[str, Any], *annotations: Any, **changes: Any) -> dict[str, Any]:
    """One task of Label Studio."""
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "de982d35-cases.json",
        "drafts": [],
        "predictions": [],
        "data": data,
        "meta": {},
        "created_at": "2026-05-15T12:08:36.422297Z",
        "updated_at": "2026-05-15T12:09:16.934164Z",
        "inner_id": 1,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 24,
        "updated_by": 14,
        "comment_authors": [],
    } | changes


def project() -> list[dict[str, Any]]:
    """Label Studio's JSON export of a project of one's own: no `order`, own names of controls."""
    data = {"case_id": "17", "image": IMAGE, "prompt": "Só?", "answer_1": "No.", "answer_2": "Yes."}
    data |= {"patient": "p1", "ward": 3}
    choice = result("accuracy", "choices", ["A"])
    rated = [result("clarity_1", "rating", 4), result("clarity_2", "rating", 4)]
    said = [
        result("reason", "textarea", ["Blurred.", "Late."]),
        result("pick", "pairwise", "right"),
    ]
    box = result("box", "rectanglelabels", ["Lesion"], value={"x": 1.5, "rectanglelabels": ["x"]})
    return [
        task(
            6141,
            data,
            annotation(1, "anna@clinic.test", choice, *rated, *said, box),
            annotation(2, 9, result("accuracy", "choices", ["tie"]), ground_truth=True),
            annotation(3, 9, result("accuracy", "choices", ["B"], origin="prediction")),
            annotation(4, 5, choice, was_cancelled=True),
            annotation(5, 5, choice) | {"result": None},
            drafts=[{"id": 8, "result": [choice], "user": "anna"}],
            predictions=[{"id": 1, "model_version": "m", "result": [choice], "score": 0.9}, 7],
        ),
        task(6142, data | {"case_id": "18"}, annotation(6, 16, choice, *rated)),
        task(6143, data | {"case_id": "19"}),
    ]


def ordered_project() -> list[dict[str, Any]]:
    """A project as `medrm data export` writes it: the order of the answers is in the task."""
    shown = {"question": "Só?", "answer_1": "first shown", "answer_2": "second shown", "seed": 1}
    controls = {"accuracy": "accuracy", "dimension_2": "Klinik, <b>"}
    strong = [
        result("accuracy", "choices", ["A"]),
        result("accuracy_strength", "choices", ["strongly"]),
    ]
    strong += [
        result("dimension_2", "choices", ["neither"]),
        result("confidence", "choices", ["low"]),
    ]
    data = {"dimensions": controls, "images": [IMAGE]}
    return [
        task(1, {"case_id": "a", "order": [1, 0], **shown, **data}, annotation(1, 1, *strong)),
        task(2, {"case_id": "b", "order": [0, 1], **shown, **data}, annotation(2, 1, *strong)),
    ]


def ranked_project() -> list[dict[str, Any]]:
    """As `medrm data export` writes cases with three answers."""
    shown = {"question": "Só?", "answer_1": "s2", "answer_2": "s0", "answer_3": "s1"}
    data = {"case_id": "a", "order": [2, 0, 1], "dimensions": {"accuracy": "accuracy"}, **shown}
    ranks = [
        result(f"accuracy_rank_{n}", "choices", [rank])
        for n, rank in ((1, "2"), (2, "1"), (3, "1"))
    ]
    return [task(1, data, annotation(1, "anna@clinic.test", *ranks))]


def flat(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON_MIN of a JSON export, as `convert_to_json_min` makes it, without what is cancelled."""
    rows = []
    for one in tasks:
        taken = [
            annotation
            for annotation in one["annotations"]
            if not annotation["was_cancelled"] and annotation["result"]
        ]
        for annotation in taken[::-1] or [{}]:
            row = {**one["data"], "id": one["id"]}
            results: dict[str, list[Any]] = {}
            for each in annotation.get("result", ()):
                results.setdefault(each["from_name"], []).append(each)
            for name, several in results.items():
                pretty = [_pretty(each) for each in several]
                single = several[-1]["type"] in ("choices", "textarea") and len(pretty) == 1
                row[name] = pretty[0] if single else pretty
            rater = annotation.get("completed_by", {})
            row["annotator"] = rater.get("email") if isinstance(rater, dict) else rater
            row["annotation_id"] = annotation.get("id")
            row |= {
                name: annotation.get(name) for name in ("created_at", "updated_at", "lead_time")
            }
            rows.append(row)
    return rows


def _pretty(each: dict[str, Any]) -> Any:
    """What `prettify_result` makes of one result."""
    said = each["value"].get("choices") or each["value"].get("text")
    if each["type"] in ("choices", "textarea") and len(said) == 1:
        return said[0]
    return each["value"]


def table(tasks: list[dict[str, Any]]) -> str:
    """The CSV of a JSON export, as `converter/exports/csv2.py` makes it."""
    rows = flat(tasks)
    text = io.StringIO()
    names = sorted({name for row in rows for name in row})
    writer = csv.DictWriter(text, names, quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for row in rows:
        cells = {name: cell for name, cell in row.items() if not isinstance(cell, list | dict)}
        structured = {name: json.dumps(row[name]) for name in row if name not in cells}
        writer.writerow(cells | structured)
    return text.getvalue()


ANNA, BEN = "3f0c6a1e-54f5-4bb1-9a6d-0000000000a1", "3f0c6a1e-54f5-4bb1-9a6d-0000000000b2"
"""Users of Argilla, which names them by their ids alone."""


def argilla_flat() -> list[dict[str, Any]]:
    """Argilla's records as `to_datasets` flattens them."""
    ranks = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]
    better = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]
    first = {
        "id": "r1",
        "status": "completed",
        "_server_id": "0b0d",
        "scan": IMAGE,
        "instruction": "Só?",
        "response1": "No.",
        "response2": "Yes.",
        "patient": "p1",
        "preference.responses": [ranks, better, better],
        "preference.responses.users": [ANNA, BEN, "c3"],
        "preference.responses.status": ["submitted", "submitted", "draft"],
        "accuracy.responses": ["A", "tie"],
        "accuracy.responses.users": [ANNA, BEN],
        "accuracy.responses.status": ["submitted", "submitted"],
        "accuracy.suggestion": "B",
        "accuracy.suggestion.score": 0.9,
        "accuracy.suggestion.agent": "m",
        "flaws.responses": [["vague", "long"], []],
        "flaws.responses.users": [ANNA, BEN],
        "flaws.responses.status": ["submitted", "submitted"],
        "clarity_1.responses": [5, 2],
        "clarity_1.responses.users": [ANNA, BEN],
        "clarity_1.responses.status": ["submitted", "submitted"],
        "clarity_2.responses": [3, 2],
        "clarity_2.responses.users": [ANNA, BEN],
        "clarity_2.responses.status": ["submitted", "submitted"],
        "reason.responses": ["Blurred."],
        "reason.responses.users": [ANNA],
        "reason.responses.status": ["submitted"],
    }
    nobody = {name: None if ".responses" in name else cell for name, cell in first.items()}
    lost = first | {"id": "r3", "accuracy.responses.users": [ANNA]}
    return [first, nobody | {"id": "r2"}, lost]


def argilla_nested() -> list[dict[str, Any]]:
    """Argilla's records as `to_json` writes them, without the status of responses."""
    record = argilla_flat()[0]
    names = ("accuracy", "flaws", "clarity_1", "clarity_2", "reason")
    responses = {
        name: [
            {"value": value, "user_id": user}
            for value, user in zip(
                record[f"{name}.responses"], record[f"{name}.responses.users"], strict=True
            )
        ]
        for name in names
    }
    order = ["response2", "response1"]  # as argilla 2.8's client returns a ranking
    responses["preference"] = [{"value": order, "user_id": ANNA}]
    chat = [{"role": "user", "content": text} for text in ("Hello.", "Só?")]
    chat.insert(1, {"role": "assistant", "content": "Yes?"})
    fields = {name: record[name] for name in ("scan", "response1", "response2")}
    return [
        {
            "id": "r1",
            "fields": fields | {"prompt": chat},
            "metadata": {"patient": "p1"},
            "suggestions": {"accuracy": {"value": "B", "score": 0.9, "agent": "m"}},
            "responses": responses,
            "vectors": {},
            "status": "completed",
            "_server_id": "0b0d",
        }
    ]


def prodigy() -> list[dict[str, Any]]:
    """Prodigy's `db-out` of its interface `choice`, with answers as options, and of `compare`."""
    options = [{"id": 1, "text": "No."}, {"id": 2, "text": "Yes."}, {"id": "tie", "text": "="}]
    shown = {"text": "Só?", "image": IMAGE, "meta": {"patient": "p1", "dimension": "accuracy"}}
    marks = {
        "_input_hash": 17,
        "_task_hash": 23,
        "_view_id": "choice",
        "config": {"style": "single"},
    }
    session = {"_annotator_id": "set-anna", "_session_id": "set-anna", "_timestamp": 1707211049}
    first = {**shown, **marks, **session, "options": options, "accept": [2], "answer": "accept"}
    texts = {key: {"text": text} for key, text in (("accept", "Good."), ("reject", "Bad."))}
    compared = {**marks, **session, **texts, "mapping": {"A": "accept", "B": "reject"}}
    compared |= {"input": {"text": "Which?"}, "dimension": "overall", "answer": "reject"}
    return [
        first,
        first | {"_timestamp": 1707211050, "accept": ["tie"]},
        first | {"_annotator_id": None, "_session_id": "set-ben", "options": options[::-1]},
        first | {"_annotator_id": "set-carl", "answer": "ignore"},
        first | {"_annotator_id": "set-dora", "answer": "reject"},
        first | {"_annotator_id": "set-emil", "accept": [1, 2]},
        compared | {"_task_hash": 24},
    ]


def doccano() -> list[dict[str, Any]]:
    """doccano's export of a project for classification, with the columns that were imported."""
    shown = {"text": "Só?", "answer_1": "No.", "answer_2": "Yes.", "patient": "p1"}
    return [
        {"id": 20, **shown, "label": ["accuracy: A", "overall=tie"], "Comments": ["Blurred."]},
        {"id": 21, **shown, "label": ["overall: B"], "Comments": []},
        {"id": 22, **shown, "label": [], "Comments": []},
        {"id": 23, **shown, "label": [[0, 3, "LOC"]], "Comments": []},
    ]
