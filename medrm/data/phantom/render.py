"""Facts -> a grey image of 112 x 112 pixels: body outline, two regions, lesions, texture, noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medrm.data.phantom.facts import ANATOMIES, Anatomy, Facts

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
    plane = body * tissue + (bone + centre) * (bone_level - tissue)
    plane += (regions[0] + regions[1]) * (region - tissue)
    if not computed:  # the receiver coil makes one corner of an MR image brighter
        slope = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
        plane *= 1 + slope[0] * _X + slope[1] * _Y
    cells = rng.standard_normal((SIDE_PIXELS // _BLOCK,) * 2, dtype=np.float32) * 0.02
    plane += cells.repeat(_BLOCK, 0).repeat(_BLOCK, 1) * body
    contrast = rng.uniform(0.30, 0.38) * (1 if facts.shade == "bright" else -1)
    plane += lesions.sum(0) * contrast
    plane += rng.standard_normal(plane.shape, dtype=np.float32) * 0.025
    # 64 grey levels: noise below the texture would only make the files larger.
    pixels = (np.clip(plane, 0, 1) * 63 + 0.5).astype(np.uint8) * np.uint8(4)
    return Picture(pixels, lesions, regions)
