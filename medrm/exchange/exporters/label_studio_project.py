"""A Label Studio project: its labelling configuration, its tasks, and how they come back.

Every case is one task. A reader sees images, question and answers, the answers in an order that is
drawn and kept in the task, and nothing of who wrote them or how others voted.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from medrm.data.sources import CaseDraft
from medrm.errors import DataError
from medrm.exchange.case_files import CASES_FILE, IMAGES_FOLDER, add_case, case_line, turn_record
from medrm.exchange.exported import Export
from medrm.exchange.project_form import (
    CASE,
    CONFIDENCE,
    CONTEXT,
    DIMENSIONS,
    IMAGE,
    IMAGES,
    LOCAL_FILES,
    ORDER,
    QUESTION,
    REASON,
    RESERVED,
    SEED,
    answer_field,
    rank_controls,
    strength_control,
)
from medrm.exchange.shown_order import (
    CONFIDENCES,
    STRENGTHS,
    VOTES,
    letter_of,
    shown_order,
)
from medrm.schema import ImageRef

_SHOWN = {"neither": "both unacceptable"}
"""What a reader sees of a vote, where it is not the vote itself."""

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_project(export: Export) -> None:
    """Writes a project, one for each number of answers that cases have."""
    controls = control_names(export.dimensions)
    for answers in export.facts.answers:
        ending = f"_{answers}_answers" if len(export.facts.answers) > 1 else ""
        configuration = ElementTree.tostring(_configuration(export, controls, answers), "utf-8")
        export.write(f"labelling_config{ending}.xml", [configuration])
        export.write(f"tasks{ending}.json", _tasks(export, controls, answers))
    export.write("README.md", [_README.encode()])


def control_names(dimensions: Sequence[str]) -> dict[str, str]:
    """Returns a control's name for each dimension, by which the dimension is found again.

    >>> control_names(["accuracy", "order", "<b>"])
    {'accuracy': 'accuracy', 'dimension_2': 'order', 'dimension_3': '<b>'}
    """
    return {
        name
        if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) and not RESERVED.fullmatch(name)
        else f"dimension_{number}": name
        for number, name in enumerate(dimensions, start=1)
    }


def _configuration(export: Export, controls: dict[str, str], answers: int) -> ElementTree.Element:
    """Returns the labelling configuration of cases with so many answers."""
    view = ElementTree.Element("View")
    if export.facts.images == (1, 1):
        _add(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
    elif export.facts.images[1]:
        each = _add(view, "Repeater", on=f"${IMAGES}", indexFlag="{{idx}}", mode="list")
        _add(each, "Image", name=IMAGE + "_{{idx}}", value=f"${IMAGES}" + "[{{idx}}]", zoom="true")
    if export.facts.has_context:
        speakers = {"nameKey": "role", "textKey": "content", "layout": "dialogue"}
        _add(view, "Paragraphs", name=CONTEXT, value=f"${CONTEXT}", **speakers)
    _add(view, "Header", value="Question")
    _add(view, "Text", name=QUESTION, value=f"${QUESTION}")
    columns = _add(view, "View", style="display: flex; gap: 1em")
    for number in range(1, answers + 1):
        column = _add(columns, "View", style="flex: 1; border: 1px solid #ccc; padding: 0.5em")
        _add(column, "Header", value=f"Answer {letter_of(number - 1)}")
        _add(column, "Text", name=answer_field(number), value=f"${answer_field(number)}")
    for control, dimension in controls.items():
        _add(view, "Header", value=dimension)
        if answers == 2:
            _choices(view, control, VOTES)
            when = {"visibleWhen": "choice-selected", "whenTagName": control}
            _choices(view, strength_control(control), STRENGTHS, **when, whenChoiceValue="A,B")
        for number, ranks in enumerate(rank_controls(control, answers) if answers > 2 else ()):
            _add(view, "Header", value=f"Rank of answer {letter_of(number)} (1: best)", size="5")
            _choices(view, ranks, list(map(str, range(1, answers + 1))))
    _add(view, "Header", value="How sure are you?")
    _choices(view, CONFIDENCE, CONFIDENCES)
    _add(view, "Header", value="Why?")
    _add(view, "TextArea", name=REASON, toName=QUESTION, rows="3", maxSubmissions="1")
    return view


def _choices(
    view: ElementTree.Element, name: str, values: Sequence[str], **attributes: str
) -> None:
    attributes = {"choice": "single-radio", "showInline": "true", **attributes}
    choices = _add(view, "Choices", name=name, toName=QUESTION, **attributes)
    for value in values:
        if value in _SHOWN:
            _add(choices, "Choice", value=_SHOWN[value], alias=value)
        else:
            _add(choices, "Choice", value=value)


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    """Adds a tag, whose attributes are escaped when it is written."""
    valid = {name: _NO_XML.sub("\ufffd", value) for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, valid)


def _tasks(export: Export, controls: dict[str, str], answers: int) -> Iterator[bytes]:
    """Yields `tasks.json` of the cases with so many answers."""
    separator = "[\n"
    for draft in export.with_images(answers):
        try:
            images = [_address(export, ref) for ref in draft.images]
        except DataError:
            export.leave_out("an image cannot be decoded", draft.case_id)
            continue
        add_case(export.folder, case_line(draft, map(export.images.stored, draft.images)))
        task = {"data": _task_data(export, draft, images) | {DIMENSIONS: controls}}
        yield f"{separator}{json.dumps(task, ensure_ascii=False)}".encode()
        separator = ",\n"
        export.rows["tasks"] += 1
    yield b"\n]\n" if separator == ",\n" else b"[]\n"


def _task_data(export: Export, draft: CaseDraft, images: list[str]) -> dict[str, Any]:
    seed = export.options.seed
    order = shown_order(draft.case_id, len(draft.answers), seed)
    data: dict[str, Any] = {CASE: draft.case_id, ORDER: order, SEED: seed}
    if export.facts.images == (1, 1):
        data[IMAGE] = images[0]
    elif export.facts.images[1]:
        data[IMAGES] = images
    if export.facts.has_context:
        data[CONTEXT] = list(map(turn_record, draft.context))
    data[QUESTION] = draft.question
    return data | {answer_field(n): draft.answers[index] for n, index in enumerate(order, start=1)}


def _address(export: Export, ref: ImageRef) -> str:
    """Returns how a task names an image: its address below the document root, or itself."""
    name = export.images.shown(ref)
    if not export.options.embed_images:
        return f"{LOCAL_FILES}?d={name}"
    base64 = b64encode((export.folder / name).read_bytes()).decode()
    media_type = name.rpartition(".")[2].replace("jpg", "jpeg")
    return f"data:image/{media_type};base64,{base64}"


_README = f"""\
# A Label Studio project

Written by `medrm data export --to label_studio`. Nothing here tells which model wrote an answer.
The order of the answers is drawn for each case and kept in its task (`order`: numbers of the
stored answers, as shown).

1. Start Label Studio with this folder as the root of local files:

   ```
   export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
   export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/path/of/this/folder
   label-studio start
   ```

2. Make a project. Under *Labeling setup*, *Custom template*, *Code*, paste `labelling_config.xml`.
3. Under *Settings*, *Cloud storage*, add a source storage of type *Local files* with the path of
   `{IMAGES_FOLDER}` in this folder, and do not sync it: it allows the addresses in the tasks
   (`{LOCAL_FILES}?d={IMAGES_FOLDER}/...`). Not needed where images are inside the tasks
   (`--embed_images`), or there are none.
4. Import `tasks.json`. Where there are files `..._<K>_answers`, each pair of them is a project.
5. When readers are done, export as JSON, put the file into this folder, beside `{CASES_FILE}`, and

   ```
   medrm data import EXPORT.json --output VOTES
   ```

   turns the order back and gives every case its stored images again, and patient and study as
   keyed hashes; with `--join SET` as they stand in the set.

Of two answers a reader says, for each dimension, A, tie, B, or that both are unacceptable, and how
far one is better. More than two answers are ranked: each gets a rank, 1 is the best, equal ranks
are a tie.
"""
