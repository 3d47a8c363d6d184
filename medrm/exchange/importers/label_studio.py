"""Label Studio's exports, JSON, JSON_MIN and CSV -> one row for each annotation that counts.

All become rows as JSON_MIN has them: the task's data, a column for each control, and `ANNOTATION`.
The formats are those of label-studio-sdk 97fcff19, `converter/converter.py` and
`converter/exports/csv2.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from medrm.data.row_tables import LocatedRow, Row
from medrm.exchange.imported import Opened, unread
from medrm.exchange.importers.tool_rows import Tally, decoded, newest, single
from medrm.exchange.project_form import CONTEXT, DIMENSIONS, LOCAL_FILES, strength_control
from medrm.exchange.sheet_words import role_of

ANNOTATION = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""The columns of JSON_MIN and CSV that every project has."""

_RESULTS: dict[str, Any] = {
    "choices": list,
    "selected": str,
    "rating": int | float,
    "text": list | str,
    "number": int | float,
}
"""The key of a result's value, by Choices, Pairwise, Rating, TextArea and Number: what it holds."""

_RENAMED = "_data_"
"""What Label Studio's CSV puts before the name of a data field that is a control's as well."""

_TASK = "\0task"
"""The column of what tells tasks apart, which no field of a task is named after."""

_NO_ANNOTATION = "tasks without an annotation"
_UPLOADS = "/data/upload/"


def is_label_studio(opened: Opened) -> bool:
    """Returns whether a file is an export of Label Studio."""
    if {*ANNOTATION} <= {*opened.columns}:
        return True
    _, first = next(iter(opened.records), ("", {}))
    return annotations_of(first) is not None


def annotations_of(row: Row) -> list[Any] | None:
    """Returns the annotations of a task of the JSON export; None: the row is no task."""
    annotations = row.get("annotations", row.get("completions"))
    is_task = isinstance(row.get("data"), dict) and isinstance(annotations, list)
    return annotations if is_task else None


def annotation_rows(opened: Opened, tally: Tally) -> Iterator[LocatedRow]:
    """Yields the annotations that count, with what their columns hold."""
    for place, row in counted_annotations(opened, tally, _with_contents):
        yield place, _with_roles(row, tally)


def counted_annotations(
    opened: Opened, tally: Tally, of_flat_row: Callable[[Row, Tally], Row]
) -> Iterator[LocatedRow]:
    """Yields the annotations that count, of several by one rater on a task the newest.

    Args:
        opened: the export.
        tally: takes what does not count.
        of_flat_row: returns the cells of a row of JSON_MIN or CSV.
    """
    numbers = _numbers(opened)
    tally.addresses.update((str(number), address) for address, number in numbers.items())

    def rows(tally: Tally) -> Iterator[LocatedRow]:
        for place, row in opened.records:
            annotations = annotations_of(row)
            if annotations is not None:
                located = _of_task(f"{place} (task {row.get('id')})", row, annotations, tally)
                task = _task_of(row)
            elif row.get("annotation_id") in (None, ""):
                tally.remarks[_NO_ANNOTATION] += 1
                continue
            else:
                flat = of_flat_row(row, tally)
                located, task = iter([(place, flat)]), flat.get("id")
            for where, flat in located:
                rater = flat.get("annotator")
                rater = numbers.get(rater, rater) if isinstance(rater, str) else rater
                yield where, {**flat, "annotator": rater, _TASK: task}

    for place, row in newest(rows, tally, _TASK, "updated_at"):
        del row[_TASK]
        yield place, row


def _task_of(row: Row) -> Any:
    """Returns what tells a task from others, also of other projects, whose numbers start anew."""
    try:
        content = json.dumps([row.get("project"), row.get("data")], sort_keys=True, default=str)
    except RecursionError:  # of what could just be read
        content = ""
    return f"{row.get('id')} {hashlib.sha256(content.encode()).hexdigest()}"


def _numbers(opened: Opened) -> dict[str, Any]:
    """Returns the number of each rater's e-mail address that the file names with one."""
    numbers = {}
    for _, row in opened.records:
        for annotation in annotations_of(row) or ():
            person = annotation.get("completed_by") if isinstance(annotation, dict) else None
            if not isinstance(person, dict) or person.get("id") is None:
                continue
            if isinstance(person.get("email"), str):
                numbers[person["email"]] = person["id"]
    return numbers


def _of_task(place: str, task: Row, annotations: list[Any], tally: Tally) -> Iterator[LocatedRow]:
    for name in ("drafts", "predictions"):
        listed = task.get(name)
        tally.remarks[f"{name}, left out"] += len(listed) if isinstance(listed, list) else 0
    if not annotations:
        tally.remarks[_NO_ANNOTATION] += 1
    for number, annotation in enumerate(annotations, start=1):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            reason = "an annotation is an object with a list 'result'"
            tally.unread.append(unread(f"{place}, annotation {number}", reason, annotation))
        elif annotation.get("was_cancelled") or annotation.get("skipped"):
            tally.remarks["annotations that were cancelled (skipped), left out"] += 1
        else:
            where = f"{place}, annotation {annotation.get('id', number)}"
            yield where, _annotation_row(task, annotation, tally)


def _annotation_row(task: Row, annotation: Row, tally: Tally) -> Row:
    """Returns an annotation as JSON_MIN has it."""
    results: dict[str, list[Any]] = defaultdict(list)
    for result in annotation["result"]:
        name = result.get("from_name") if isinstance(result, dict) else None
        if not isinstance(name, str) or _key_of(result.get("value")) is None:
            tally.remarks["results that are no choice, rating or text, left out"] += 1
            continue
        results[name].append(result["value"])
        if result.get("origin") == "prediction":
            tally.remarks["results that are a model's prediction, left as it was"] += 1
    for name, values in results.items():
        _say_what_it_is(name, values[0], tally)
    if annotation.get("ground_truth") is True:
        tally.remarks["annotations that are marked as ground truth, taken as any other"] += 1
    return {
        **{_RENAMED * (name in results) + name: value for name, value in task["data"].items()},
        **{name: _cell(values) for name, values in results.items()},
        "id": task.get("id"),
        "annotator": _rater(annotation.get("completed_by")),
        "annotation_id": annotation.get("id"),
        **{name: annotation.get(name) for name in ANNOTATION[2:]},
    }


def _say_what_it_is(control: str, value: Row, tally: Tally) -> None:
    """Notes whether a control holds votes, or numbers."""
    key = _key_of(value)
    if key != "text":
        tally.controls.add(control)
        tally.dimensions.setdefault(control, control)
    if key in ("rating", "number"):
        tally.rated.add(control)


def _rater(person: Any) -> Any:
    """Returns the number of a rater, which stays the same, or the address where there is none."""
    if not isinstance(person, dict):
        return person
    number = person.get("id")
    return person.get("email") if number is None else number


def _key_of(value: Any) -> str | None:
    """Returns under which key a result holds what was chosen, rated or written; None: nowhere."""
    if not isinstance(value, dict):
        return None
    return next((key for key, kind in _RESULTS.items() if isinstance(value.get(key), kind)), None)


def _cell(values: list[Row]) -> Any:
    """Returns the one thing that the results of a control say, or a list of them."""
    said: list[Any] = []
    for value in values:
        content = value[_key_of(value) or ""]
        said += content if isinstance(content, list) else [content]
    if all("text" in value for value in values):
        return "\n".join(map(str, said))
    return single(said)


def _with_contents(row: Row, tally: Tally) -> Row:
    """Returns the cells of a row of JSON_MIN or CSV, in place of results what they say."""
    tally.knows_controls = False  # but for those whose results have kept their form
    cells = {}
    for name, cell in row.items():
        is_json = isinstance(cell, str) and cell.startswith(("[{", '{"'))
        results = decoded(cell) if is_json else cell
        results = [results] if isinstance(results, dict) else results
        is_result = isinstance(results, list) and results and all(map(_key_of, results))
        is_structured = name in (CONTEXT, DIMENSIONS) or role_of(name) == "image"
        cells[name] = _cell(results) if is_result else decoded(cell) if is_structured else cell
        if is_result:
            _say_what_it_is(name, results[0], tally)
    return cells


def _with_roles(row: Row, tally: Tally) -> Row:
    """Returns a row with its case's id, its images as paths, and votes with their strength."""
    row.setdefault("case_id", row.get("id"))
    controls = decoded(row.pop(DIMENSIONS, None))
    if isinstance(controls, dict):
        tally.dimensions |= {name: str(dimension) for name, dimension in controls.items()}
    for name in [name for name in row if name.endswith(strength_control(""))]:
        control = name.removesuffix(strength_control(""))
        if isinstance(row.get(control), str):
            strength = row.pop(name)
            if strength:
                row[control] = f"{strength} {row[control]}"
    row.pop("id", None)
    return {name: local_path(cell) for name, cell in row.items()}


def local_path(cell: Any) -> Any:
    """Returns addresses of Label Studio's own files as paths in its folders."""
    if isinstance(cell, list):
        return [local_path(image) for image in cell]
    if not isinstance(cell, str) or not cell.startswith((LOCAL_FILES, _UPLOADS)):
        return cell
    address = urlsplit(cell)
    (path,) = parse_qs(address.query).get("d", [unquote(address.path.removeprefix("/data/"))])[:1]
    return path
