"""What a phantom image can show: the facts, how they are drawn, and how two readings differ.

First step of the phantom set: facts -> image (`render`) and texts (`text`) -> votes -> files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Anatomy(NamedTuple):
    """The drawing of one organ on a [-1, 1] grid, and the department that would order it.

    `width` and `height` are the body's half axes, `boxiness` the exponent of its outline (2 is an
    ellipse), `offset` and `thickness` the centre and half width of the two regions that hold
    lesions, `centre` what lies between them.
    """

    department: str
    width: float
    height: float
    boxiness: float
    offset: float
    thickness: float
    centre: str


ANATOMIES = {
    "abdomen": Anatomy("gastroenterology", 0.96, 0.86, 2.5, 0.46, 0.27, "spine"),
    "brain": Anatomy("neurology", 0.84, 0.96, 2.0, 0.36, 0.30, "midline"),
    "breast": Anatomy("gynecology", 0.96, 0.76, 2.0, 0.48, 0.28, "gap"),
    "chest": Anatomy("pulmonology", 0.96, 0.90, 4.0, 0.48, 0.30, "spine"),
    "eye": Anatomy("ophthalmology", 0.90, 0.78, 2.0, 0.42, 0.26, "disc"),
    "foot": Anatomy("orthopedics", 0.80, 0.96, 6.0, 0.38, 0.24, "gap"),
    "gastrointestinal_tract": Anatomy("gastroenterology", 0.92, 0.92, 3.0, 0.44, 0.24, "disc"),
    "heart": Anatomy("cardiology", 0.86, 0.86, 2.0, 0.38, 0.28, "midline"),
    "lower_limb": Anatomy("orthopedics", 0.90, 0.96, 6.0, 0.46, 0.26, "gap"),
    "lung": Anatomy("pulmonology", 0.96, 0.96, 3.0, 0.46, 0.32, "spine"),
    "oral_cavity": Anatomy("dentistry", 0.88, 0.80, 4.0, 0.40, 0.24, "midline"),
    "pelvic_cavity": Anatomy("urology", 0.96, 0.80, 3.0, 0.46, 0.24, "disc"),
    "upper_limb": Anatomy("orthopedics", 0.84, 0.96, 4.0, 0.42, 0.22, "spine"),
}
ORGANS = tuple(ANATOMIES)
MODALITIES = ("CT", "MR")
SIDES = ("left", "right")
SIZES = ("small", "large")
SHADES = ("bright", "dark")
MOST_LESIONS = 3
FOCI = ("modality", "count", "side", "size", "shade")
"""The facts in which two readings of one image can differ."""

_COUNT_WEIGHTS = (0.1, 0.3, 0.3, 0.3)


@dataclass(frozen=True, slots=True)
class Facts:
    """One reading of an image. Without lesions, side, size and shade mean nothing."""

    organ: str
    modality: str
    count: int
    side: str
    size: str
    shade: str


def draw_facts(rng: np.random.Generator) -> Facts:
    """Returns facts drawn independently of each other."""
    return Facts(
        organ=ORGANS[rng.integers(len(ORGANS))],
        modality=MODALITIES[rng.integers(2)],
        count=int(rng.choice(MOST_LESIONS + 1, p=_COUNT_WEIGHTS)),
        side=SIDES[rng.integers(2)],
        size=SIZES[rng.integers(2)],
        shade=SHADES[rng.integers(2)],
    )


def draw_focus(facts: Facts, rng: np.random.Generator) -> str:
    """Returns the name of one fact that can be wrong in these facts."""
    foci = FOCI if facts.count else FOCI[:2]
    return foci[rng.integers(len(foci))]


def contradict(facts: Facts, focus: str, rng: np.random.Generator) -> Facts:
    """Returns the same facts with another value of the fact named `focus`."""
    if focus == "count":
        step = int(rng.integers(1, MOST_LESIONS + 1))
        return replace(facts, count=(facts.count + step) % (MOST_LESIONS + 1))
    if focus == "modality":
        return replace(facts, modality=_other(MODALITIES, facts.modality))
    if focus == "side":
        return replace(facts, side=_other(SIDES, facts.side))
    if focus == "size":
        return replace(facts, size=_other(SIZES, facts.size))
    return replace(facts, shade=_other(SHADES, facts.shade))


def _other(values: tuple[str, str], value: str) -> str:
    return values[1 - values.index(value)]
