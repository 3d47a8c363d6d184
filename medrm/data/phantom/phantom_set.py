"""Seed and number -> one phantom case: picture, question, two answers, truth, votes, and its files.

Case `index` of a seed is the same in a set of any size.

Nothing in a text may tell which answer is right. That holds by construction: a case is built from
two readings of which a fair coin, thrown after all texts are fixed, makes one true. Sentence forms,
completeness, extra sentences, order and question depend on the pair of readings alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medrm.data.phantom.pictures import (
    ANATOMIES,
    Facts,
    Picture,
    contradict,
    draw_facts,
    draw_focus,
    render,
)
from medrm.errors import ConfigError
from medrm.files import check_outputs, filled_or_emptied, write_atomically
from medrm.schema import DIMENSIONS

VERSION = "2"
"""Raised whenever the same seed would give other cases."""

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


def modality_sentence(facts: Facts) -> str:
    """Returns one sentence with modality and organ."""
    return f"This is {_ARTICLES[facts.modality]} image of the {facts.organ.replace('_', ' ')}."


def lesion_sentence(facts: Facts, *, complete: bool = True) -> str:
    """Returns one sentence with everything about the lesions, or their count alone."""
    if not facts.count:
        return "There is no lesion."
    verb, noun = ("is", "lesion") if facts.count == 1 else ("are", "lesions")
    look, side = (f" {facts.size} {facts.shade}", f" on the {facts.side}") if complete else ("", "")
    return f"There {verb} {NUMBERS[facts.count]}{look} {noun}{side}."


def focus_sentence(facts: Facts, focus: str) -> str:
    """Returns one sentence with the fact named `focus` alone."""
    return {
        "count": lesion_sentence(facts, complete=False),
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


EXPERTS = {"expert-1": 0.08, "expert-2": 0.12, "expert-3": 0.16}
"""How often each expert errs, per pair and dimension."""

_BLUR = 0.1
"""The share of errors in which a clear difference is taken for a tie."""

_OVERALL_WEIGHTS = dict(zip(DIMENSIONS[:-1], (2.0, 1.0, 0.8, 0.5, 0.7), strict=True))

Votes = dict[str, str]


def truth(first: Mapping[str, float], second: Mapping[str, float]) -> Votes:
    """Returns the noiseless preference per dimension from both answers' quality per dimension."""
    gaps = {name: first[name] - second[name] for name in _OVERALL_WEIGHTS}
    gaps["overall"] = sum(weight * gaps[name] for name, weight in _OVERALL_WEIGHTS.items())
    # 1e-9: the weighted sum of opposite gaps is zero only up to rounding.
    return {
        name: "A" if gaps[name] > 1e-9 else "B" if gaps[name] < -1e-9 else "tie"
        for name in DIMENSIONS
    }


def draw_votes(preferences: Votes, rng: np.random.Generator) -> dict[str, Votes]:
    """Returns annotator -> dimension -> vote; an error flips, blurs or invents a preference."""
    chances = rng.random((len(EXPERTS), len(DIMENSIONS), 2))
    votes: dict[str, Votes] = {}
    for row, (expert, error) in zip(chances, EXPERTS.items(), strict=True):
        votes[expert] = {}
        for (mistaken, direction), name in zip(row, DIMENSIONS, strict=True):
            seen = preferences[name]
            if mistaken < error:
                if seen == "tie":
                    seen = "A" if direction < 0.5 else "B"
                else:
                    seen = "tie" if direction < _BLUR else "BA"["AB".index(seen)]
            votes[expert][name] = seen
    return votes


def majority(votes: Mapping[str, Votes]) -> Votes:
    """Returns the dimensions in which more than half of the experts prefer one answer."""
    labels: Votes = {}
    for name in DIMENSIONS:
        on_dimension = [vote[name] for vote in votes.values()]
        for answer in "AB":
            if 2 * on_dimension.count(answer) > len(votes):
                labels[name] = answer
    return labels


def ceiling(truths: Sequence[Votes], labels: Sequence[Votes]) -> dict[str, float]:
    """Returns the accuracy against the majority labels of a model that knows the truth.

    Over the pairs with a majority for one answer; where the answers are truly equal, half of such
    labels can be met. Dimensions without any such pair are left out.
    """
    reachable: dict[str, float] = {}
    for name in DIMENSIONS:
        met = [
            0.5 if true[name] == "tie" else float(true[name] == label[name])
            for true, label in zip(truths, labels, strict=True)
            if name in label
        ]
        if met:
            reachable[name] = round(sum(met) / len(met), 4)
    return reachable


_SHARED_EVERY = 20
"""Each 20th case is a second case about the previous case's image and patient."""

_EQUAL_READINGS = 0.1
_CLEAR_GAP = 0.8


@dataclass(frozen=True, slots=True)
class Readings:
    """Two readings of one image that differ in the fact `focus`, and the one that is true."""

    pair: tuple[Facts, Facts]
    focus: str
    true: Facts


@dataclass(frozen=True, slots=True)
class PhantomCase:
    """One case; `owner` is the number of the case that brought image and patient in."""

    owner: int
    readings: Readings
    question_type: str
    question: str
    answers: tuple[str, str]
    truth: Votes
    votes: dict[str, Votes]


def owner(index: int) -> int:
    """Returns the number of the case whose image the case `index` shows."""
    return index - 1 if index % _SHARED_EVERY == _SHARED_EVERY - 1 else index


def draw_picture(seed: int, index: int) -> tuple[Readings, Picture]:
    """Returns the readings and the picture that the case `index` brings in."""
    rng = np.random.default_rng([seed, index, 0])
    first = draw_facts(rng)
    focus = draw_focus(first, rng)
    pair = (first, contradict(first, focus, rng))
    true = pair[rng.integers(2)]
    return Readings(pair, focus, true), render(true, rng)


def draw_case(seed: int, index: int, readings: Readings) -> PhantomCase:
    """Returns the case `index`; its texts depend on `readings.pair`, never on which one is true."""
    rng = np.random.default_rng([seed, index, 1])
    order = rng.permutation(2)
    if rng.random() < _EQUAL_READINGS:
        order[1] = order[0]
    told = (readings.pair[order[0]], readings.pair[order[1]])
    form = list(FORMS)[rng.integers(len(FORMS))]
    question_type, question = draw_question(readings.focus, form, rng)
    complete, on_topic, insight, responsive = (_flaws(rng) for _ in range(4))
    answers, qualities = [], []
    for answer in range(2):
        style = Style(
            complete=complete[answer],
            off_topic=not on_topic[answer],
            insight=insight[answer],
            form=form if responsive[answer] else PLAIN,
        )
        answers.append(compose(told[answer], readings.focus, style, rng))
        quality = {
            "accuracy": told[answer] == readings.true,
            "relevance": on_topic[answer],
            "comprehensiveness": complete[answer],
            "creativity": insight[answer],
            "responsiveness": responsive[answer],
        }
        qualities.append(quality)
    preferences = truth(*qualities)
    return PhantomCase(
        owner=owner(index),
        readings=readings,
        question_type=question_type,
        question=question,
        answers=(answers[0], answers[1]),
        truth=preferences,
        votes=draw_votes(preferences, rng),
    )


def _flaws(rng: np.random.Generator) -> tuple[bool, bool]:
    """Returns whether each answer is free of one flaw: mostly exactly one of them."""
    first = bool(rng.random() < 0.5)
    return (first, not first) if rng.random() < _CLEAR_GAP else (first, first)


def write_phantom(output: Path, cases: int, seed: int) -> dict[str, float]:
    """Writes `cases` phantom cases in both layouts; the same seed gives the same bytes.

    Returns:
        The ceiling: dimension -> accuracy that a model which knows the truth reaches.

    Raises:
        ConfigError: a negative seed, or a folder that holds something or cannot be written.
        OSError: not all could be written; nothing is left.
    """
    if seed < 0:
        raise ConfigError(f"The phantom seed is {seed}; give 0 or more.")
    check_outputs({"--output": output})
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{str(output)!r} is not empty, and two sets in one folder would mix. Give a new one."
        )
    with filled_or_emptied(output):
        for folder in ("images", "pair_gt_all/parquet"):
            (output / folder).mkdir(parents=True)
        rows_of_organ: dict[str, list[dict[str, object]]] = defaultdict(list)
        labels_of_organ: dict[str, list[dict[str, object]]] = defaultdict(list)
        truths: list[Votes] = []
        majorities: list[Votes] = []
        with (output / "votes.jsonl").open("w", encoding="utf-8", newline="\n") as votes:
            for index in range(cases):
                if owner(index) == index:
                    readings, picture = draw_picture(seed, index)
                    path = output / "images" / f"{_name(seed, index)}.png"
                    # Noise hardly compresses; level 6 is 4 x slower.
                    Image.fromarray(picture.pixels).save(path, compress_level=1)
                case = draw_case(seed, index, readings)
                votes.writelines(_vote_lines(seed, index, case))
                truths.append(case.truth)
                majorities.append(majority(case.votes))
                organ = case.readings.true.organ
                rows_of_organ[organ].append(_row(seed, index, case, path.read_bytes()))
                labels_of_organ[organ].append(
                    {"question_id": _name(seed, index), "human_answer": majorities[-1]}
                )
        for organ, rows in rows_of_organ.items():
            _write_organ(output / "pair_gt_all", organ, rows, labels_of_organ[organ])
        reachable = ceiling(truths, majorities)
        about = {
            "name": "phantom",
            "version": VERSION,
            "seed": seed,
            "cases": cases,
            "synthetic": True,
            "ceiling": reachable,
        }
        write_atomically(output / "dataset.json", [json.dumps(about, indent=2).encode(), b"\n"])
        return reachable


def _name(seed: int, index: int) -> str:
    return f"phantom-{seed}-{index:06d}"


def _vote_lines(seed: int, index: int, case: PhantomCase) -> Iterable[str]:
    facts = case.readings.true
    for annotator, votes in case.votes.items():
        line = {
            "case_id": _name(seed, index),
            "image": f"images/{_name(seed, case.owner)}.png",
            "question": case.question,
            "answer_a": case.answers[0],
            "answer_b": case.answers[1],
            "annotator": annotator,
            "votes": votes,
            "organ": facts.organ,
            "department": ANATOMIES[facts.organ].department,
            "modality": facts.modality,
            "source": "phantom",
            "patient": _name(seed, case.owner),
        }
        yield json.dumps(line) + "\n"


def _row(seed: int, index: int, case: PhantomCase, image: bytes) -> dict[str, object]:
    image_id = f"{_name(seed, case.owner)}.png"
    facts = case.readings.true
    return {
        "image": {"bytes": image, "path": image_id},
        "question_id": _name(seed, index),
        "question": case.question,
        "answer1_text": case.answers[0],
        "answer2_text": case.answers[1],
        "dataset": "phantom",
        "modality_type": facts.organ,  # as released; the scorer sorts the rows by it
        "question_type": case.question_type,
        "image_id": image_id,
        "body_part": facts.organ,
        "modality": facts.modality,
    }


def _write_organ(
    root: Path, organ: str, rows: list[dict[str, object]], labels: list[dict[str, object]]
) -> None:
    """Writes inputs and labels of one organ in the released layout."""
    table = pa.Table.from_pylist(rows)
    # What `datasets` reads to decode the column `image`.
    features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
    features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, (root / "parquet" / f"{organ}.parquet").absolute(), compression="none")
    lines = "".join(json.dumps(label) + "\n" for label in labels)
    (root / f"{organ}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
