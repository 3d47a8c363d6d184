"""Readings -> the question and the two answers of a phantom case.

Nothing in a text may tell which answer is right. That holds by construction: a case is built from
two readings of which a fair coin, thrown after all texts are fixed, makes one true. Sentence forms,
completeness, extra sentences, order and question depend on the pair of readings alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medrm.data.phantom.facts import Facts

_ARTICLES = {"CT": "a CT", "MR": "an MR"}
NUMBERS = ("no", "one", "two", "three")

OFF_TOPIC = (
    "The clinic opens at nine.",
    "Parking is free today.",
    "The scanner was new.",
)
INSIGHTS = (
    "A follow up would help.",
    "An older image would help to compare.",
    "Blood tests could explain it.",
)
PLAIN = "plain"
FORMS = {
    "finding": "Start with the word Finding.",
    "done": "End with the word Done.",
    "list": "Write a list.",
}
GENERAL_QUESTIONS = (
    "What does the image show?",
    "Describe the image.",
    "Is there a lesion?",
    "Is the study normal?",
)
FOCUS_QUESTIONS = {
    "modality": "How was the image made?",
    "count": "How many lesions are there?",
    "side": "Which side is affected?",
    "size": "How large is the finding?",
    "shade": "How bright is the finding?",
}


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is written: its quality apart from being right. `form` is PLAIN or of FORMS."""

    complete: bool
    off_topic: bool
    insight: bool
    form: str


def name(organ: str) -> str:
    """Returns the organ as it stands in a sentence."""
    return organ.replace("_", " ")


def modality_sentence(facts: Facts) -> str:
    """Returns one sentence with modality and organ."""
    return f"This is {_ARTICLES[facts.modality]} image of the {name(facts.organ)}."


def lesion_sentence(facts: Facts) -> str:
    """Returns one sentence with everything about the lesions."""
    if not facts.count:
        return "There is no lesion."
    verb, noun = ("is", "lesion") if facts.count == 1 else ("are", "lesions")
    lesions = f"{NUMBERS[facts.count]} {facts.size} {facts.shade} {noun}"
    return f"There {verb} {lesions} on the {facts.side}."


def focus_sentence(facts: Facts, focus: str) -> str:
    """Returns one sentence with the fact named `focus` alone."""
    if focus == "count":
        if not facts.count:
            return "There is no lesion."
        verb, noun = ("is", "lesion") if facts.count == 1 else ("are", "lesions")
        return f"There {verb} {NUMBERS[facts.count]} {noun}."
    return {
        "modality": f"This is {_ARTICLES[facts.modality]} image.",
        "side": f"The finding is on the {facts.side}.",
        "size": f"The finding is {facts.size}.",
        "shade": f"The finding is {facts.shade}.",
    }[focus]


def compose(facts: Facts, focus: str, style: Style, rng: np.random.Generator) -> str:
    """Returns an answer that states `facts`, or of them only `focus` when it is not complete."""
    if style.complete:
        sentences = [modality_sentence(facts), lesion_sentence(facts)]
    else:
        sentences = [focus_sentence(facts, focus)]
    if style.off_topic:
        sentences.append(OFF_TOPIC[rng.integers(len(OFF_TOPIC))])
    if style.insight:
        sentences.append(INSIGHTS[rng.integers(len(INSIGHTS))])
    if style.form == "list":
        return "\n".join(f"- {sentence}" for sentence in sentences)
    text = " ".join(sentences)
    if style.form == "finding":
        return f"Finding: {text}"
    return f"{text} Done." if style.form == "done" else text


def draw_question(focus: str, form: str, rng: np.random.Generator) -> tuple[str, str]:
    """Returns the type of the question (general or the focus) and the question with its form."""
    general = rng.random() < 0.5
    questions = GENERAL_QUESTIONS if general else (FOCUS_QUESTIONS[focus],)
    question = questions[rng.integers(len(questions))]
    return "general" if general else focus, f"{question} {FORMS[form]}"
