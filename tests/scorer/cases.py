"""Cases with noise images for the scorer's tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
from presentations import Presentation
from tiny import tiny_image

from medrm.chat import PROMPTS
from medrm.data.images import bytes_image
from medrm.schema import Case, ImageRef
from medrm.scorer.mock_judges import MockEngine
from medrm.scorer.readouts.pair_judge import Judge

ANSWERS = (
    "Clear lungs.",
    "No acute cardiopulmonary abnormality is seen in the image, and 0123 more.",
    "A",
    "The chest radiograph shows 9 lungs",
)


def mock_judge(name: str, dimensions: Sequence[str]) -> Judge:
    """Returns a judge that asks a mock about all dimensions in one call."""
    return Judge(MockEngine(name), PROMPTS["json"], dimensions)


def stored_image(seed: int, width: int = 60, height: int = 40) -> ImageRef:
    """Returns a reference to a PNG of noise."""
    buffer = io.BytesIO()
    tiny_image(seed, width, height).save(buffer, "PNG")
    return bytes_image(f"noise-{seed}", partial(bytes, buffer.getvalue()))


def broken_image() -> ImageRef:
    """Returns a reference to bytes that are no image."""
    return bytes_image("broken", partial(bytes, b"no image"))


def make_case(
    number: int, answers: int = 2, sizes: tuple[tuple[int, int], ...] = ((60, 40),)
) -> Case:
    """Returns a case whose words, images and number of answers follow from the arguments."""
    images = tuple(stored_image(10 * number + place, *size) for place, size in enumerate(sizes))
    words = tuple(f"{ANSWERS[(number + k) % len(ANSWERS)]} {k}" for k in range(answers))
    return Case(f"case-{number}", images, "What does it show?" + " lungs" * number, words)


def chances(scored: Presentation) -> np.ndarray:
    """Returns the probabilities of a judge's responses to one order of a case, [D, 3]."""
    assert all(
        (one.case_id, one.order, one.state, one.text)
        == (scored.case.case_id, scored.order, "ok", None)
        for one in scored.responses
    )
    return np.array(
        [triple for one in scored.responses for triple in (one.probabilities or {}).values()]
    )
