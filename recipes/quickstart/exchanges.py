"""What the phantom base is asked about an image, and what it should answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medrm.data.phantom import phantom_set as text
from medrm.data.phantom import pictures as phantom

CHECKS, LETTERS, PAIRS = 3, 2, 2
CHECK_FORMS = (
    "Someone reads: {} Is that so?",
    "A report says: {} Is this right?",
)
"""The question always follows the text: nothing is to be judged before it is asked."""

ONE_WORD = "Say one word."
JSON = "Reply with one JSON object with the keys"


@dataclass
class Exchange:
    """A user's text and the assistant's answer about one image; `kind` is what it trains."""

    kind: str
    asked: str
    answer: str


@dataclass
class Statement:
    """A text about the image, whether it is right, and whether it tells all of the facts."""

    words: str
    right: bool
    complete: bool


def draw_style(rng: np.random.Generator) -> text.Style:
    """Returns any way of writing an answer."""
    forms = [text.PLAIN, *text.FORMS]
    return text.Style(
        complete=bool(rng.random() < 0.6),
        off_topic=bool(rng.random() < 0.4),
        insight=bool(rng.random() < 0.4),
        form=forms[rng.integers(len(forms))],
    )


def draw_statement(true: phantom.Facts, rng: np.random.Generator) -> Statement:
    """Returns a text about the image; wrong ones differ mostly in a single fact."""
    focus = phantom.draw_focus(true, rng)
    told, right = true, bool(rng.random() < 0.5)
    if not right:
        told = phantom.contradict(true, focus, rng)
        if rng.random() < 0.2 and told.count:
            other = phantom.draw_focus(told, rng)
            told = phantom.contradict(told, other, rng) if other != focus else told
    style = draw_style(rng)
    return Statement(text.compose(told, focus, style, rng), right, style.complete)


def draw_check(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a question whether a text is right."""
    said = draw_statement(true, rng)
    asked = CHECK_FORMS[rng.integers(len(CHECK_FORMS))].format(said.words)
    kind = "check long" if said.complete else "check short"
    return Exchange(kind, asked, "Yes" if said.right else "No")


def draw_letter(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a question whether a text is right, to be answered with a letter."""
    check = draw_check(true, rng)
    yes = rng.integers(2)
    asked = f"{check.asked} Reply {'AB'[yes]} for yes or {'BA'[yes]} for no."
    return Exchange("letter", asked, "AB"[yes if check.answer == "Yes" else 1 - yes])


def draw_pair(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns two texts and the question whether a certain one of them is right."""
    pair = draw_statement(true, rng), draw_statement(true, rng)
    which = rng.integers(2)
    shown = f"Text 1: {pair[0].words}\n\nText 2: {pair[1].words}"
    asked = f"{shown}\n\nIs text {which + 1} right?"
    return Exchange("pair", asked, "Yes" if pair[which].right else "No")


def words_of(true: phantom.Facts) -> dict[str, str]:
    """Returns the word for each fact that means something."""
    words = {"modality": true.modality, "count": text.NUMBERS[true.count]}
    if true.count:
        words |= {"side": true.side, "size": true.size, "shade": true.shade}
    return words


def draw_keys(words: dict[str, str], rng: np.random.Generator) -> list[str]:
    """Returns some of the facts in any order."""
    keys = [str(key) for key in rng.permutation(np.array(list(words)))]
    return keys[: rng.integers(1, len(words) + 1)]


def draw_json(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a request for some facts as a JSON object."""
    words = words_of(true)
    keys = draw_keys(words, rng)
    named = ", ".join(f'"{key}"' for key in keys)
    answer = ", ".join(f'"{key}": "{words[key]}"' for key in keys)
    return Exchange("json", f"{JSON} {named}.", f"{{{answer}}}")


def draw_choice(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a choice between two words for each of some facts, to be answered with letters."""
    words = words_of(true)
    keys = draw_keys(words, rng)
    asked, letters = [], []
    for key in keys:
        wrong = words_of(phantom.contradict(true, key, rng)).get(key, "no")
        at = rng.integers(2)
        options = (words[key], wrong) if at == 0 else (wrong, words[key])
        asked.append(f"{key}: A {options[0]}, B {options[1]}.")
        letters.append(f'"{key}": "{"AB"[at]}"')
    named = ", ".join(f'"{key}"' for key in keys)
    form = f"{JSON} {named} and the values A or B."
    return Exchange("choice", " ".join([*asked, form]), f"{{{', '.join(letters)}}}")


def draw_exchanges(true: phantom.Facts, rng: np.random.Generator) -> list[Exchange]:
    """Returns a description, facts as a word and as JSON, and questions whether texts are right."""
    words = words_of(true)
    description = f"{text.modality_sentence(true)} {text.lesion_sentence(true)}"
    general = text.GENERAL_QUESTIONS[rng.integers(2)]
    focus = str(rng.permutation(np.array(list(words)))[0])
    return [
        Exchange("description", general, description),
        Exchange(f"word {focus}", f"{text.FOCUS_QUESTIONS[focus]} {ONE_WORD}", words[focus]),
        draw_json(true, rng),
        *(draw_check(true, rng) for _ in range(CHECKS)),
        *(draw_letter(true, rng) for _ in range(LETTERS)),
        *(draw_pair(true, rng) for _ in range(PAIRS)),
        draw_choice(true, rng),
    ]
