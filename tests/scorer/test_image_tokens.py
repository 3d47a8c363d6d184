"""Counted image tokens are those that the processor makes, for any sizes; nothing is processed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny import TINY_FAMILIES, make_tiny

from medrm.scorer.collator import Collator
from medrm.scorer.image_tokens import Sizes

STATES_NOTHING = ("mllama", "smolvlm")
"""Of these transformers has no count."""


class Counted:
    """A collator, and the sizes for which its processor was run."""

    def __init__(self, family: str) -> None:
        self.collator = Collator(make_tiny(family)[1])
        self.processed: list[Sizes] = []
        tokens: Any = self.collator._image_tokens
        measure = tokens._measure
        tokens._measure = lambda sizes: self.processed.append(sizes) or measure(sizes)
        self.measure = measure


def drawn(seed: int, images: int) -> list[Sizes]:
    draw = random.Random(seed)
    return [
        tuple((draw.randint(20, 900), draw.randint(20, 700)) for _ in range(images))
        for _ in range(12)
    ]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_count_is_the_processors(family: str, images: int) -> None:
    counted = Counted(family)
    for sizes in drawn(seed=len(family), images=images):
        assert counted.collator.image_tokens(sizes) == counted.measure(sizes), sizes
    # LLaVA-OneVision cuts two images of a text otherwise than one, and states each as if alone.
    measured = family in STATES_NOTHING or (family == "llava_onevision" and images == 2)
    of_sample = [sizes for sizes in counted.processed if sizes in drawn(len(family), images)]
    assert len(of_sample) == (12 if measured else 4)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_extreme_sizes(family: str) -> None:
    counted = Counted(family)
    for sizes in (*drawn(seed=5, images=1)[:4], ((2900, 31),), ((37, 2100),), ((1700, 1900),)):
        assert counted.collator.image_tokens(sizes) == counted.measure(sizes), sizes


@pytest.mark.parametrize("limits", [(400, 2_000_000), (3136, 50_000)])
def test_a_count_that_is_wrong_beyond_a_limit_of_pixels_is_not_believed(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted("qwen2_vl")
    processor: Any = counted.collator.processor
    fewest, most = limits
    processor.image_processor.size = {"shortest_edge": fewest, "longest_edge": most}
    stated = processor._get_num_multimodal_tokens

    def states(image_sizes: list[tuple[int, int]]) -> dict[str, list[int]]:
        ((height, width),) = image_sizes
        (tokens,) = stated(image_sizes)["num_image_tokens"]
        return {"num_image_tokens": [tokens + (height * width > most)]}

    monkeypatch.setattr(processor, "_get_num_multimodal_tokens", states)
    for sizes in (*drawn(seed=3, images=1), ((1900, 1500),)):
        assert counted.collator.image_tokens(sizes) == counted.measure(sizes), sizes


def test_a_size_is_processed_once_and_few_sizes_pay_for_no_probe() -> None:
    counted = Counted("qwen2_vl")
    sizes = drawn(seed=1, images=1)[:4]
    for asked in (*sizes, *sizes):
        counted.collator.image_tokens(asked)
    assert counted.processed == sizes


@pytest.mark.parametrize("wrong", [lambda height, width: width > 2 * height, lambda *_: True])
def test_a_count_that_is_not_the_processors_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    counted = Counted("internvl")
    processor: Any = counted.collator.processor
    stated = processor._get_num_multimodal_tokens

    def states(image_sizes: list[tuple[int, int]]) -> dict[str, list[int]]:
        ((size, tokens),) = zip(image_sizes, stated(image_sizes)["num_image_tokens"], strict=True)
        return {"num_image_tokens": [tokens + sum(size) % 7 if wrong(*size) else tokens]}

    monkeypatch.setattr(processor, "_get_num_multimodal_tokens", states)
    for sizes in drawn(seed=3, images=1):
        assert counted.collator.image_tokens(sizes) == counted.measure(sizes)
