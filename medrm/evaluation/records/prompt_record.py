"""The prompts of a judge, kept beside its evaluation: `prompt.txt` for readers, and templates.

`prompt.txt` holds every call about the first case as it was sent: rendered where the engine renders
it, else the conversation that a service was given. `prompts.json` holds each kind of call (order,
dimension, number of images) with marks where question and answers stand, so that the prompt of any
case can be shown; only one whose SHA-256 is that of the response is. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medrm.chat_template import Message
from medrm.data.store.indexed_cases import column
from medrm.errors import DataError
from medrm.evaluation.report import read_json, write_json
from medrm.files import write_atomically
from medrm.schema import Case, ImageRef, Response
from medrm.scorer import AsksInPairs
from medrm.scorer.engines.base import conversation_digest, text_digest

PROMPT_FILE = "prompt.txt"
TEMPLATES_FILE = "prompts.json"

_MARKS = ("MEDRM0QUESTION", "MEDRM1ANSWER", "MEDRM2ANSWER")
"""Stand for the question and both answers, as stored; no template changes such words."""

_MARK = re.compile("|".join(_MARKS))

Pieces = list[str | int]
"""A text in which 0 stands for the question, 1 and 2 for the answers as stored."""


def write_prompts(folder: Path, judge: AsksInPairs, cases: Sequence[Case]) -> None:
    """Writes `prompt.txt` of the first case, and the templates of all kinds of calls."""
    sections = []
    for request, text in judge.prompts(cases[0]):
        about = ", ".join(filter(None, (request.order, request.dimension)))
        prompt_text = text or json.dumps(request.messages, indent=2, ensure_ascii=False)
        sections.append(f"===== case {request.case.case_id}, {about} =====\n{prompt_text}\n")
    write_atomically(folder / PROMPT_FILE, ["\n".join(sections).encode()])
    templates = []
    for count in np.unique(column(cases, "image_count")).tolist():
        images = (ImageRef("", "", bytes),) * count
        marked = Case("", images, _MARKS[0], _MARKS[1:])
        templates += [
            {
                **{"order": request.order, "dimension": request.dimension, "images": count},
                **{"text": text, "messages": request.messages},
            }
            for request, text in judge.prompts(marked)
        ]
    write_json(folder / TEMPLATES_FILE, {"templates": templates})


class PromptTemplates:
    """The templates of one evaluation, and the prompts that they give exactly.

    Attributes:
        used: the pieces of each prompt that `index_of` has found.

    Args:
        folder: of the evaluation; earlier versions keep no templates there.

    Raises:
        DataError: the file is not one of ours.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / TEMPLATES_FILE
        self.used: list[Pieces] = []
        try:
            templates = read_json(path)["templates"] if path.is_file() else []
            self._templates = {
                (record["order"], record["dimension"], record["images"]): record
                for record in templates
            }
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is not one of ours: {error}. Evaluate again.") from error

    def index_of(self, case: Case, response: Response) -> int | None:
        """Returns which of `used` was sent; None where it cannot be told exactly."""
        template = self._templates.get((response.order, response.dimension, len(case.images)))
        if template is None:
            return None
        first, second = response.pair or (0, 1)
        fields = (case.asked, case.answers[first], case.answers[second])
        text, messages = template["text"], template["messages"]
        if text and text_digest([(_filled(text, fields), case.images)]) == response.prompt_digest:
            return self._add(_pieces(text))
        digest = conversation_digest(_filled_messages(messages, fields), case.images)
        return self._add(_pieces(_readable(messages))) if digest == response.prompt_digest else None

    def _add(self, pieces: Pieces) -> int:
        if pieces not in self.used:
            self.used.append(pieces)
        return self.used.index(pieces)


def _filled(text: str, fields: Sequence[str]) -> str:
    """Returns a template with question and answers in place of their marks, in one pass."""
    return _MARK.sub(lambda mark: fields[_MARKS.index(mark[0])], text)


def _filled_messages(messages: Sequence[Message], fields: Sequence[str]) -> list[Message]:
    return [
        {**turn, "content": [_filled_block(block, fields) for block in turn["content"]]}
        for turn in messages
    ]


def _filled_block(block: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {**block, "text": _filled(block["text"], fields)} if "text" in block else dict(block)


def _readable(messages: Sequence[Message]) -> str:
    """Returns a conversation as plain text: who speaks, images in their place."""
    turns = []
    for turn in messages:
        blocks = [block.get("text", "<image>") for block in turn["content"]]
        turns.append("\n".join([f"{turn['role']}:", *blocks]))
    return "\n\n".join(turns)


def _pieces(text: str) -> Pieces:
    """Returns a template cut at its marks."""
    pieces: Pieces = []
    end = 0
    for mark in _MARK.finditer(text):
        pieces += [text[end : mark.start()], _MARKS.index(mark[0])]
        end = mark.end()
    return [*pieces, text[end:]]
