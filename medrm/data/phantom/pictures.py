"""What a phantom image can show, and the image that shows it: facts -> 112 x 112 grey pixels.

First step of the phantom set: facts -> image (`render`) and texts (`phantom_set`) -> votes ->
files. A picture is a body outline, two regions, lesions, texture and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    values = {"modality": MODALITIES, "side": SIDES, "size": SIZES, "shade": SHADES}[focus]
    opposite: Any = {focus: values[1 - values.index(getattr(facts, focus))]}
    return replace(facts, **opposite)


SIDE_PIXELS = 112
"""Eight patches of 14 pixels; the base sees 16 visual tokens of 28 x 28 pixels."""

Plane = NDArray[np.float32]

_AXIS = ((np.arange(SIDE_PIXELS) + 0.5) / SIDE_PIXELS * 2 - 1).astype(np.float32)
_X, _Y = _AXIS[None, :], _AXIS[:, None]
_SLOTS = (-0.37, 0.0, 0.37)
_REGION_HEIGHT = 0.6
_EDGE = 0.03
_BLOCK = 8


class Picture(NamedTuple):
    """A drawn image and where things are in it.

    `pixels` is (112, 112) uint8, `lesions` (count, 112, 112) and `regions` (2, 112, 112) are
    coverages in [0, 1]; region 0 is the left half of the picture.
    """

    pixels: NDArray[np.uint8]
    lesions: Plane
    regions: Plane


def _ellipse(x: float, y: float, width: float, height: float, boxiness: float = 2.0) -> Plane:
    """Returns the coverage (112, 112) of a super-ellipse with a soft edge."""
    distance = (np.abs((_X - x) / width) ** boxiness + np.abs((_Y - y) / height) ** boxiness) ** (
        1 / boxiness
    )
    plane: Plane = np.clip((1 - distance) * min(width, height) / _EDGE + 0.5, 0, 1)
    return plane.astype(np.float32)


def _anatomy(anatomy: Anatomy) -> tuple[Plane, Plane, Plane, Plane]:
    """Returns the coverages of body, outline (bone), the two regions, and the centre."""
    body = _ellipse(0, 0, anatomy.width, anatomy.height, anatomy.boxiness)
    inner = _ellipse(0, 0, anatomy.width - 0.09, anatomy.height - 0.09, anatomy.boxiness)
    regions = np.stack(
        [
            _ellipse(sign * anatomy.offset, 0, anatomy.thickness, _REGION_HEIGHT, 3)
            for sign in (-1, 1)
        ]
    )
    centre = {
        "spine": _ellipse(0, 0.5, 0.13, 0.13),
        "midline": _ellipse(0, 0, 0.03, anatomy.height - 0.15),
        "disc": _ellipse(0, 0, 0.11, 0.22),
        "gap": np.zeros_like(body),
    }[anatomy.centre]
    return body, body - inner, regions, centre


_DRAWN = {organ: _anatomy(anatomy) for organ, anatomy in ANATOMIES.items()}


def _lesions(facts: Facts, rng: np.random.Generator) -> Plane:
    """Returns the coverage of each lesion, (count, 112, 112)."""
    sign = -1 if facts.side == "left" else 1
    slots = rng.permutation(3)[: facts.count]
    radii = (0.055, 0.075) if facts.size == "small" else (0.13, 0.155)
    planes = []
    for slot in slots:
        radius, squeeze = rng.uniform(*radii), rng.uniform(0.9, 1.1)
        x = sign * ANATOMIES[facts.organ].offset + rng.uniform(-0.06, 0.06)
        y = _SLOTS[slot] + rng.uniform(-0.035, 0.035)
        planes.append(_ellipse(x, y, radius * squeeze, radius / squeeze))
    return np.stack(planes) if planes else np.zeros((0, SIDE_PIXELS, SIDE_PIXELS), np.float32)


def render(facts: Facts, rng: np.random.Generator) -> Picture:
    """Returns a picture in which exactly `facts` are true."""
    body, bone, regions, centre = _DRAWN[facts.organ]
    lesions = _lesions(facts, rng)
    computed = facts.modality == "CT"
    tissue, region, bone_level = (0.30, 0.48, 0.95) if computed else (0.50, 0.42, 0.08)
    grey = body * tissue + (bone + centre) * (bone_level - tissue)
    grey += (regions[0] + regions[1]) * (region - tissue)
    if not computed:  # the receiver coil makes one corner of an MR image brighter
        slope = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
        grey *= 1 + slope[0] * _X + slope[1] * _Y
    cells = rng.standard_normal((SIDE_PIXELS // _BLOCK,) * 2, dtype=np.float32) * 0.02
    grey += cells.repeat(_BLOCK, 0).repeat(_BLOCK, 1) * body
    contrast = rng.uniform(0.30, 0.38) * (1 if facts.shade == "bright" else -1)
    grey += lesions.sum(0) * contrast
    grey += rng.standard_normal(grey.shape, dtype=np.float32) * 0.025
    # 64 grey levels: noise below the texture would only make the files larger.
    pixels = (np.clip(grey, 0, 1) * 63 + 0.5).astype(np.uint8) * np.uint8(4)
    return Picture(pixels, lesions, regions)
