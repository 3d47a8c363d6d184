"""The same cases with other pictures or none: what is left of a score without the right picture.

Identifiers, texts, labels, groups and clusters stay. A case with a picture that cannot be read is
left alone, so that every control leaves the same cases unread.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, cycle, islice

from medrm.data.contamination import same_pictures
from medrm.data.images import ImageFacts, bytes_image, image_problem
from medrm.data.splits import linked_blocks
from medrm.errors import DataError
from medrm.schema import Case, ImageRef

IMAGE_ABLATIONS = ("blank_images", "shuffled_images", "text_only")
"""The controls that a trained model is measured on again."""

SHUFFLE_SEED = 0
"""Fixed, so that every run and every model sees the same pictures."""

_MID_GREY = (128, 128, 128)

_Ring = list[tuple[int, int]]
"""Positions on a ring of 64-bit numbers, each with the index of the case that stands there."""


def ablate_images(
    name: str, cases: Sequence[Case], facts: Mapping[str, ImageFacts], synthetic: bool
) -> list[Case]:
    """Returns the cases of one of `IMAGE_ABLATIONS`.

    Args:
        name: of the ablation.
        cases: with their own pictures.
        facts: of their images (`images.examine`).
        synthetic: drawn images look alike by nature: equality of bytes or pixels alone counts.

    Raises:
        DataError: the pictures of all cases belong together, so that none can be exchanged.
    """
    if name == "shuffled_images":
        return shuffled_images(cases, facts, synthetic)

    def blank(ref: ImageRef) -> ImageRef:
        """Returns uniform mid-grey of the image's size."""
        size = (facts[ref.digest].width, facts[ref.digest].height)
        return bytes_image(f"blank {size[0]} x {size[1]}", partial(_grey_png, *size))

    return [
        replace(case, images=tuple(map(blank, case.images if name == "blank_images" else ())))
        if _readable(case, facts)
        else case
        for case in cases
    ]


def shuffled_images(
    cases: Sequence[Case],
    facts: Mapping[str, ImageFacts],
    synthetic: bool,
    seed: int = SHUFFLE_SEED,
) -> list[Case]:
    """Returns the cases with the pictures of other cases, as many as their own.

    They come from cases of the same organ where there are any, else from any; never from a case of
    the same cluster or from one that has a copy of the same picture. Which one follows from hashes
    of the two identifiers alone (consistent hashing, Karger et al., STOC 1997): the order of the
    cases changes nothing, and where cases are added or left out few others get another picture.

    Raises:
        DataError: the pictures of all cases belong together, so that none can be exchanged.
    """
    copies = same_pictures(cases, cases, facts, synthetic)
    pairs = [(same.original.digest, same.copy.digest) for same in copies]
    blocks = linked_blocks(cases, pairs)[0].tolist()
    givers = [index for index, case in enumerate(cases) if _readable(case, facts)]
    if len({blocks[index] for index in givers}) < 2:
        raise DataError(
            "The pictures of all cases belong to one patient, study or picture; to exchange them, "
            "two are needed."
        )
    ring = sorted((_position(seed, "giver", cases[index].case_id), index) for index in givers)
    ring_of_organ: dict[str | None, _Ring] = defaultdict(list)
    for position, index in ring:
        ring_of_organ[cases[index].groups.get("organ")].append((position, index))

    def exchange(index: int) -> Case:
        case = cases[index]
        start = _position(seed, "taker", case.case_id)
        same_organ = ring_of_organ[case.groups.get("organ")]
        refs_of_others = (
            ref
            for giver in chain(_around(same_organ, start), _around(ring, start))
            if blocks[giver] != blocks[index]
            for ref in cases[giver].images
        )
        return replace(case, images=_take(refs_of_others, len(case.images)))

    exchanged = {index: exchange(index) for index in givers}
    return [exchanged.get(index, case) for index, case in enumerate(cases)]


def _readable(case: Case, facts: Mapping[str, ImageFacts]) -> bool:
    """Returns whether a case has images, all of which can be read."""
    return bool(case.images) and all(image_problem(ref, facts) is None for ref in case.images)


def _position(seed: int, role: str, case_id: str) -> int:
    digest = hashlib.sha256(f"{seed} {role} {case_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _around(ring: _Ring, start: int) -> Iterator[int]:
    """Yields the cases of a ring from a position on, all the way around."""
    first = bisect(ring, (start, -1))
    for number in range(len(ring)):
        yield ring[(first + number) % len(ring)][1]


def _take(refs: Iterable[ImageRef], count: int) -> tuple[ImageRef, ...]:
    """Returns so many images, distinct ones as far as there are any."""
    distinct: dict[str, ImageRef] = {}
    for ref in refs:
        distinct.setdefault(ref.digest, ref)
        if len(distinct) == count:
            break
    return tuple(islice(cycle(distinct.values()), count))


@lru_cache(maxsize=64)
def _grey_png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), _MID_GREY).save(buffer, "PNG")
    return buffer.getvalue()
