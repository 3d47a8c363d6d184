"""Questions about phantom images, and which answers to them are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from PIL import Image

from medrm.data.phantom import phantom_set as text
from medrm.data.phantom import pictures

Stated = dict[str, str | int]
"""Names of facts and what is said of them."""


class Question(NamedTuple):
    """A question about a phantom image.

    Attributes:
        words: of the question.
        image: that it is about.
        cluster: names the image; one image of nineteen has two questions.
        facts: that are true of the image.
        answers: two of them. In nine cases of ten one is true and the other is wrong in a single
            fact; in the tenth both are true or both wrong.
    """

    words: str
    image: Image.Image
    cluster: str
    facts: pictures.Facts
    answers: tuple[str, str]


def draw_questions(seed: int, count: int) -> list[Question]:
    """Returns the first `count` questions of a phantom seed."""
    return list(_questions(seed, count))


def _questions(seed: int, count: int) -> Iterator[Question]:
    for index in range(count):
        if text.owner(index) == index:
            readings, picture = text.draw_picture(seed, index)
            image = Image.fromarray(picture.pixels).convert("RGB")
        case = text.draw_case(seed, index, readings)
        cluster = f"{seed}-{case.owner}"
        yield Question(case.question, image, cluster, readings.true, case.answers)


def trl_row(question: Question) -> dict[str, Any]:
    """Returns a question as TRL's trainers read it."""
    turn = {"role": "user", "content": question.words}
    return {"prompt": [turn], "images": [question.image]}


class Said(NamedTuple):
    """What an answer says about its image.

    Attributes:
        is_true: it states a fact, and all that it says is true. A sentence that no phantom answer
            has, such as a garbled one, is not true.
        facts: how many of the six facts it states, truly or not.
    """

    is_true: bool
    facts: int


def said(answer: str, facts: pictures.Facts) -> Said:
    """Returns what an answer says about the image of which `facts` are true."""
    sentences = [
        sentence.strip().removeprefix("- ").removeprefix("Finding: ")
        for sentence in re.findall(r"[^.\n]+\.?", answer)
        if sentence.strip()
    ]
    told = [_STATEMENTS.get(sentence) for sentence in sentences]
    stated = {name for statement in told for name in statement or ()}
    known = _meaningful(facts).items()
    is_true = all(statement is not None and statement.items() <= known for statement in told)
    return Said(is_true and bool(stated), len(stated))


def _meaningful(facts: pictures.Facts) -> Stated:
    names = ("organ", "modality", "count", *(("side", "size", "shade") if facts.count else ()))
    return {name: getattr(facts, name) for name in names}


def _statements() -> Iterator[tuple[str, Stated]]:
    """Yields every sentence that a phantom answer can have, and the facts that it states."""
    for sentence in (*text.OFF_TOPIC, *text.INSIGHTS, "Done."):
        yield sentence, {}
    counts = range(pictures.MOST_LESIONS + 1)
    looks = (pictures.SIDES, pictures.SIZES, pictures.SHADES)
    for combination in product(pictures.ORGANS, pictures.MODALITIES, counts, *looks):
        facts = pictures.Facts(*combination)
        known = _meaningful(facts)
        for focus in known.keys() - {"organ"}:
            yield text.focus_sentence(facts, focus), {focus: known[focus]}
        yield text.modality_sentence(facts), {name: known[name] for name in ("organ", "modality")}
        about_lesions = {name: known[name] for name in known.keys() - {"organ", "modality"}}
        yield text.lesion_sentence(facts), about_lesions


_STATEMENTS = dict(_statements())
