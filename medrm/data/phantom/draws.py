"""Seed and number -> one phantom case: picture, question, two answers, truth and votes.

Case `index` of a seed is the same in a set of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medrm.data.phantom.experts import Votes, draw_votes, truth
from medrm.data.phantom.facts import Facts, contradict, draw_facts, draw_focus
from medrm.data.phantom.render import Picture, render
from medrm.data.phantom.sentences import FORMS, PLAIN, Style, compose, draw_question

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
    answers = []
    for answer in range(2):
        style = Style(
            complete=complete[answer],
            off_topic=not on_topic[answer],
            insight=insight[answer],
            form=form if responsive[answer] else PLAIN,
        )
        answers.append(compose(told[answer], readings.focus, style, rng))
    qualities = [
        {
            "accuracy": float(told[answer] == readings.true),
            "relevance": float(on_topic[answer]),
            "comprehensiveness": float(complete[answer]),
            "creativity": float(insight[answer]),
            "responsiveness": float(responsive[answer]),
        }
        for answer in range(2)
    ]
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
