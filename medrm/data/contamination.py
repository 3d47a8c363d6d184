"""Whether a benchmark's images or texts were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

import numpy as np

from medrm.data.images import ImageFacts, decode
from medrm.data.store.indexed_cases import column, distinct_images, image_of, list_column
from medrm.schema import Case, ImageRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

HASH_BITS = 10
"""Perceptual hashes that differ in at most so many of 64 bits are worth a look at the pixels."""

GREY_DIFFERENCE = 2.0
"""Of 255: pictures whose mean absolute grey difference is at most this are the same."""

_SIDE = 128
_COMPARED_AT_ONCE = 2**22

Sameness = Literal["the same bytes", "the same pixels", "nearly the same pixels"]


@dataclass(frozen=True, slots=True)
class SamePicture:
    """Two images that show the same picture, and how it was found."""

    original: ImageRef
    copy: ImageRef
    how: Sameness


_Match = tuple[int, int, Sameness]
"""The numbers of an original and of its copy, and how it was found."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a benchmark shares with the training data.

    `fatal` holds a sentence for each shared picture and each shared text-only case; the counts are
    of benchmark cases whose question, or one of whose answers, also stands in the training data.
    """

    fatal: tuple[str, ...]
    repeated_questions: int
    repeated_answers: int


def find_leaks(
    train: Sequence[Case],
    benchmark: Sequence[Case],
    facts: Mapping[str, ImageFacts],
    synthetic: bool,
) -> LeakReport:
    """Returns what the benchmark shares with the training cases.

    Args:
        train: the training cases.
        benchmark: the benchmark's cases.
        facts: of the images of both (`images.examine`).
        synthetic: drawn images look alike by nature: equality of bytes or pixels alone counts.
    """
    train_images = _DistinctImages(train, facts)
    benchmark_images = _DistinctImages(benchmark, facts)
    shared_content = [
        f"image {benchmark_images.ref(copy).name!r} of benchmark case "
        f"{benchmark_images.case(copy).case_id!r} has {how} as image "
        f"{train_images.ref(original).name!r} of training case "
        f"{train_images.case(original).case_id!r}"
        for original, copy, how in _matches(train_images, benchmark_images, synthetic)
    ]
    shared_content += _shared_texts(train, benchmark)
    question_repeated = np.isin(column(benchmark, "question_hash"), column(train, "question_hash"))
    answer_hashes, case_indices = list_column(benchmark, "answer_hashes")
    answer_repeated = np.isin(answer_hashes, list_column(train, "answer_hashes")[0])
    return LeakReport(
        tuple(shared_content),
        int(question_repeated.sum()),
        len(np.unique(case_indices[answer_repeated])),
    )


def _shared_texts(train: Sequence[Case], benchmark: Sequence[Case]) -> Iterator[str]:
    """Yields a sentence for each text-only case that is in both."""
    train_indices, benchmark_indices = (
        np.flatnonzero(column(cases, "image_count") == 0) for cases in (train, benchmark)
    )
    train_hashes = column(train, "text_hash")[train_indices]
    hashes = column(benchmark, "text_hash")[benchmark_indices]
    for number in np.flatnonzero(np.isin(hashes, train_hashes)).tolist():
        original = train[int(train_indices[train_hashes == hashes[number]][-1])]
        copy = benchmark[int(benchmark_indices[number])]
        yield (
            f"text-only benchmark case {copy.case_id!r} has the question and the answers of "
            f"training case {original.case_id!r}"
        )


def same_pictures(
    originals: Sequence[Case],
    copies: Sequence[Case],
    facts: Mapping[str, ImageFacts],
    synthetic: bool,
) -> list[SamePicture]:
    """Returns for each distinct image of `copies` one of `originals` that shows the same picture.

    Given one set twice, it finds its stored copies: an image is never compared with itself, and
    every two that look nearly alike are returned, for similarity is not transitive: two images
    may be like a third one and not like each other. A perceptual hit counts only after the pixel
    check.
    """
    images = _DistinctImages(originals, facts)
    candidates = images if originals is copies else _DistinctImages(copies, facts)
    return [
        SamePicture(images.ref(original), candidates.ref(copy), how)
        for original, copy, how in _matches(images, candidates, synthetic)
    ]


class _DistinctImages:
    """The distinct images of some cases, in the order in which they are first met, as arrays.

    Attributes:
        digests: of the stored bytes.
        pixel_digests: of the pixels; empty: the image cannot be decoded.
        hashes: the perceptual ones.
    """

    def __init__(self, cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> None:
        self._cases = cases
        self.digests, self._case_indices = distinct_images(cases)
        facts_of_images = (facts[digest.decode()] for digest in self.digests.tolist())
        rows = (
            ("" if fact.problem else fact.pixel_digest, fact.perceptual_hash)
            for fact in facts_of_images
        )
        looks = np.fromiter(
            rows, np.dtype([("pixel_digest", "S64"), ("hash", "<u8")]), len(self.digests)
        )
        self.pixel_digests, self.hashes = looks["pixel_digest"], looks["hash"]

    def __len__(self) -> int:
        return len(self.digests)

    def case(self, number: int) -> Case:
        """Returns the case that has an image."""
        return self._cases[int(self._case_indices[number])]

    def ref(self, number: int) -> ImageRef:
        """Returns an image."""
        return image_of(self.case(number), self.digests[number])


def _matches(originals: _DistinctImages, copies: _DistinctImages, synthetic: bool) -> list[_Match]:
    one_set = originals is copies
    equal_bytes = () if one_set else _equal(copies.digests, originals.digests)
    equal_pixels = _equal(copies.pixel_digests, originals.pixel_digests)
    matches: list[_Match] = [(first, copy, "the same bytes") for copy, first in equal_bytes]
    matches += [
        (first, copy, "the same pixels")
        for copy, first in equal_pixels
        if not (one_set and copy == first)
    ]
    matches.sort(key=itemgetter(1))  # equal bytes before equal pixels
    if not synthetic:
        matches += _nearly_the_same(originals, copies)
    distinct: dict[object, _Match] = {}
    for match in matches:
        # Within one set each pair of images counts once, else each copy.
        distinct.setdefault(frozenset(match[:2]) if one_set else match[1], match)
    return list(distinct.values())


def _equal(values: NDArray[np.bytes_], originals: NDArray[np.bytes_]) -> Iterator[tuple[int, int]]:
    """Yields the indices of values that are also among the originals, and their first index there.

    Empty values are equal to none.

    >>> list(_equal(np.array([b"x", b"b", b"", b"b"]), np.array([b"", b"b", b"b"])))
    [(1, 1), (3, 1)]
    """
    distinct, first = np.unique(originals, return_index=True)
    ranks = np.searchsorted(distinct, values)
    for index in np.flatnonzero(np.isin(values, distinct) & (values != b"")).tolist():
        yield index, int(first[ranks[index]])


def _nearly_the_same(originals: _DistinctImages, copies: _DistinctImages) -> Iterator[_Match]:
    """Yields pairs whose perceptual hashes are close and whose pixels pass the check."""

    @lru_cache(maxsize=1024)  # 64 KiB each
    def small_grey(ref: ImageRef) -> NDArray[np.float32]:
        image = decode(ref).convert("L").resize((_SIDE, _SIDE))
        return np.asarray(image, dtype=np.float32)

    decoded_originals = np.flatnonzero(originals.pixel_digests != b"")
    decoded_copies = np.flatnonzero(copies.pixel_digests != b"")
    at_once = max(1, _COMPARED_AT_ONCE // max(1, len(decoded_originals)))
    for start in range(0, len(decoded_copies), at_once):
        chunk = decoded_copies[start : start + at_once]
        differing_bits = np.bitwise_count(
            copies.hashes[chunk][:, None] ^ originals.hashes[decoded_originals][None, :]
        )
        for row, position in np.argwhere(differing_bits <= HASH_BITS).tolist():
            original, copy = int(decoded_originals[position]), int(chunk[row])
            if originals.digests[original] == copies.digests[copy]:
                continue
            greys = small_grey(originals.ref(original)), small_grey(copies.ref(copy))
            if np.abs(greys[0] - greys[1]).mean() <= GREY_DIFFERENCE:
                yield original, copy, "nearly the same pixels"
