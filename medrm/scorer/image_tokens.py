"""How many tokens images become: counted by transformers where it counts as the processor does.

How a family cuts an image into tokens, with separators and thumbnails, is known to its processor
alone, and asking it means to resize and cut an image (0.02 to 0.5 s). Most processors can also say
the number from a size. That is relied on once it was right: on the sizes that came first, and on
sizes at which limits and tilings change.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from math import isqrt
from typing import Any, cast

from transformers import ProcessorMixin

from medrm.models.processors import has_pixel_limits

Sizes = tuple[tuple[int, int], ...]
"""(width, height) of each image of a case."""

_MEASURED_FIRST = 4
"""So many sizes are measured before it is tried to count: small sets never pay for the probes."""

_PROBES = ((40, 31), (97, 301), (1023, 479), (811, 2049))
"""Sizes at which limits, ratios and tilings act otherwise."""

_CANNOT_COUNT = (AttributeError, NotImplementedError, TypeError, ValueError, LookupError)
"""What a processor raises that has no count, or none for such a size."""


class ImageTokens:
    """The number of tokens that a processor adds for images of given sizes.

    Args:
        processor: of the model.
        measure: counts by processing blank images of these sizes.
    """

    def __init__(self, processor: ProcessorMixin, measure: Callable[[Sizes], int]) -> None:
        self._processor = processor
        self._measure = measure
        self._by_sizes: dict[Sizes, int] = {}
        self._surpluses: dict[int, int | None] = {}

    def count(self, sizes: Sizes) -> int:
        """Returns how many tokens images of these sizes add to a text with their placeholders."""
        if sizes not in self._by_sizes:
            surplus = self._surplus(len(sizes))
            stated = None if surplus is None else self._stated(sizes)
            if surplus is None or stated is None:
                self._by_sizes[sizes] = self._measure(sizes)
            else:
                self._by_sizes[sizes] = stated + surplus
        return self._by_sizes[sizes]

    def _surplus(self, images: int) -> int | None:
        """Returns what so many images add besides the stated tokens; None: not known, or it varies.

        Some processors treat several images otherwise than one, and state the tokens of each.
        """
        if images not in self._surpluses:
            met = [sizes for sizes in self._by_sizes if len(sizes) == images]
            if len(met) < _MEASURED_FIRST:
                return None
            probes = self._probes()
            rotated = ((*probes[start:], *probes[:start]) for start in range(len(probes)))
            met += [tuple(islice(cycle(sizes), images)) for sizes in rotated]
            self._surpluses[images] = self._common_surplus(met)
        return self._surpluses[images]

    def _probes(self) -> Sizes:
        """Returns the sizes to try, with one beyond each limit of pixels that the others keep."""
        probes: Sizes = _PROBES
        if not has_pixel_limits(self._processor):
            return probes
        size = cast(Any, self._processor).image_processor.size or {}
        fewest, most = size.get("shortest_edge"), size.get("longest_edge")
        areas = [width * height for width, height in probes]
        if most and most >= max(areas):
            probes = (*probes, (isqrt(most * 3 // 2) + 1, isqrt(most * 3 // 4) + 1))
        if fewest and fewest <= min(areas):
            probes = (*probes, (isqrt(fewest * 3 // 4), isqrt(fewest // 2)))
        return probes

    def _common_surplus(self, probes: list[Sizes]) -> int | None:
        surpluses = set()
        for sizes in probes:
            stated = self._stated(sizes)
            if stated is None:
                return None
            measured = self._by_sizes[sizes] if sizes in self._by_sizes else self._measure(sizes)
            surpluses.add(measured - stated)
        return surpluses.pop() if len(surpluses) == 1 else None

    def _stated(self, sizes: Sizes) -> int | None:
        """Returns the number that transformers states; None where it has none."""
        try:
            counts = cast(Any, self._processor)._get_num_multimodal_tokens(
                image_sizes=[(height, width) for width, height in sizes]
            )
            return int(sum(counts["num_image_tokens"]))
        except _CANNOT_COUNT:
            return None
