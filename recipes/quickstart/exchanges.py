"""What the phantom base is asked about an image, and what it should answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medrm.data.phantom import facts as phantom
from medrm.data.phantom import text

CHECKS = 5
CHECK_FORMS = (
    "Someone reads: {} Is that so?",
    "A report says: {} Is this right?",
)
"""The question always follows the text: nothing is to be judged before it is asked."""

ONE_WORD = "Say one word."


@dataclass
class Exchange:
    """A user's text and the assistant's answer about one image; `kind` is what it trains."""

    kind: str
    asked: str
    answer: str


def draw_style(rng: np.random.Generator) -> text.Style:
    """Returns any way of writing an answer."""
    forms = [text.PLAIN, *text.FORMS]
    return text.Style(
        complete=bool(rng.random() < 0.6),
        off_topic=bool(rng.random() < 0.4),
        insight=bool(rng.random() < 0.4),
        form=forms[rng.integers(len(forms))],
    )


def draw_check(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a question whether a text is right; wrong ones differ mostly in a single fact."""
    focus = phantom.draw_focus(true, rng)
    told, right = true, bool(rng.random() < 0.5)
    if not right:
        told = phantom.contradict(true, focus, rng)
        if rng.random() < 0.2 and told.count:
            other = phantom.draw_focus(told, rng)
            told = phantom.contradict(told, other, rng) if other != focus else told
    style = draw_style(rng)
    statement = text.compose(told, focus, style, rng)
    asked = CHECK_FORMS[rng.integers(len(CHECK_FORMS))].format(statement)
    kind = "check long" if style.complete else "check short"
    return Exchange(kind, asked, "Yes" if right else "No")


def draw_exchanges(true: phantom.Facts, rng: np.random.Generator) -> list[Exchange]:
    """Returns a description, two questions with a word for an answer, and `CHECKS` checks."""
    words = {
        "modality": true.modality,
        "count": text.NUMBERS[true.count],
        "side": true.side,
        "size": true.size,
        "shade": true.shade,
    }
    foci = phantom.FOCI if true.count else phantom.FOCI[:2]
    description = f"{text.modality_sentence(true)} {text.lesion_sentence(true)}"
    exchanges = [Exchange("description", text.GENERAL_QUESTIONS[rng.integers(2)], description)]
    for focus in rng.permutation(np.array(foci))[:2]:
        asked = f"{text.FOCUS_QUESTIONS[focus]} {ONE_WORD}"
        exchanges.append(Exchange(f"word {focus}", asked, words[focus]))
    return exchanges + [draw_check(true, rng) for _ in range(CHECKS)]
