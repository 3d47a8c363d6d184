"""Whether a benchmark's images or texts were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from medrm.data.images import ImageFacts, decode
from medrm.data.store.case_records import text_hash
from medrm.data.store.indexed_cases import Indices, column, list_column
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
    fatal = [
        f"image {same.copy.name!r} of benchmark case {benchmark_images.case_id(same.copy)!r} has "
        f"{same.how} as image {same.original.name!r} of training case "
        f"{train_images.case_id(same.original)!r}"
        for same in _same_pictures(train_images, benchmark_images, synthetic)
    ]
    fatal += _shared_texts(train, benchmark)
    question_repeated = np.isin(column(benchmark, "question_hash"), column(train, "question_hash"))
    answer_hashes, case_indices = list_column(benchmark, "answer_hashes")
    answer_repeated = np.isin(answer_hashes, list_column(train, "answer_hashes")[0])
    return LeakReport(
        tuple(fatal), int(question_repeated.sum()), len(np.unique(case_indices[answer_repeated]))
    )


def _shared_texts(train: Sequence[Case], benchmark: Sequence[Case]) -> Iterator[str]:
    """Yields a sentence for each text-only case that is in both."""
    train_indices, benchmark_indices = (
        np.flatnonzero(column(cases, "image_count") == 0) for cases in (train, benchmark)
    )
    hashes = column(train, "text_hash")[train_indices]
    repeated = np.isin(column(benchmark, "text_hash")[benchmark_indices], hashes)
    for index in benchmark_indices[repeated].tolist():
        case = benchmark[index]
        original = train[int(train_indices[hashes == text_hash(case)][-1])]
        yield (
            f"text-only benchmark case {case.case_id!r} has the question and the answers of "
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
    every two that look nearly alike are returned, for likeness does not pass on: two images may be
    like a third one and not like each other. A perceptual hit counts only after the pixel check.
    """
    images = _DistinctImages(originals, facts)
    candidates = images if originals is copies else _DistinctImages(copies, facts)
    return _same_pictures(images, candidates, synthetic)


class _DistinctImages:
    """The distinct images of some cases, in the order in which they are first met, as arrays.

    Attributes:
        digests: of the stored bytes.
        pixel_digests: of the pixels; empty: the image cannot be decoded.
        hashes: the perceptual ones.
    """

    def __init__(self, cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> None:
        self._cases = cases
        shown, case_indices = list_column(cases, "image_digests")
        case_indices, shown = case_indices[shown != b""], shown[shown != b""]
        digests, first = np.unique(shown, return_index=True)
        # An image that is shown more than once is called as where it is shown last.
        last = len(shown) - 1 - np.unique(shown[::-1], return_index=True)[1]
        order = np.argsort(first)
        self.digests: NDArray[np.bytes_] = digests[order]
        self._case_indices = case_indices[last][order]
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

    def ref(self, number: int) -> ImageRef:
        """Returns an image."""
        digest = self.digests[number].decode()
        images = self._cases[int(self._case_indices[number])].images
        return next(ref for ref in reversed(images) if ref.digest == digest)

    def case_id(self, ref: ImageRef) -> str:
        """Returns the id of the case that has an image."""
        number = int(np.flatnonzero(self.digests == ref.digest.encode())[0])
        return self._cases[int(self._case_indices[number])].case_id


def _same_pictures(
    originals: _DistinctImages, copies: _DistinctImages, synthetic: bool
) -> list[SamePicture]:
    one_set, same_by_copy = originals is copies, dict[int, SamePicture]()
    if not one_set:
        for copy, original in _equal(copies.digests, originals.digests):
            same_by_copy[copy] = SamePicture(
                originals.ref(original), copies.ref(copy), "the same bytes"
            )
    for copy, original in _equal(copies.pixel_digests, originals.pixel_digests):
        itself = originals.digests[original] == copies.digests[copy]
        if copy not in same_by_copy and copies.pixel_digests[copy] and not itself:
            same_by_copy[copy] = SamePicture(
                originals.ref(original), copies.ref(copy), "the same pixels"
            )
    pairs = [same_by_copy[copy] for copy in sorted(same_by_copy)]
    if synthetic:
        return pairs
    remaining = [copy for copy in range(len(copies)) if one_set or copy not in same_by_copy]
    # In one set each two images count once, else each copy once.
    seen: set[frozenset[str]] = {_pair_key(same, one_set) for same in pairs}
    for same in _nearly_the_same(originals, copies, np.array(remaining, dtype=np.int64)):
        if (key := _pair_key(same, one_set)) not in seen:
            seen.add(key)
            pairs.append(same)
    return pairs


def _pair_key(same: SamePicture, one_set: bool) -> frozenset[str]:
    digests = (same.original.digest, same.copy.digest)
    return frozenset(digests if one_set else digests[1:])


def _equal(values: NDArray[np.bytes_], originals: NDArray[np.bytes_]) -> Iterator[tuple[int, int]]:
    """Yields the indices of values that are also among the originals, and their first index there.

    >>> list(_equal(np.array([b"x", b"b", b"b"]), np.array([b"a", b"b", b"b"])))
    [(1, 1), (2, 1)]
    """
    distinct, first = np.unique(originals, return_index=True)
    ranks = np.searchsorted(distinct, values)
    for index in np.flatnonzero(np.isin(values, distinct)).tolist():
        yield index, int(first[ranks[index]])


def _nearly_the_same(
    originals: _DistinctImages, copies: _DistinctImages, remaining: Indices
) -> Iterator[SamePicture]:
    """Yields pairs whose perceptual hashes are close and whose pixels pass the check.

    Args:
        originals: the images that may have been copied.
        copies: the images that may be copies.
        remaining: which of the copies are compared.
    """

    @lru_cache(maxsize=1024)  # 64 KiB each
    def small_grey(ref: ImageRef) -> NDArray[np.float32]:
        image = decode(ref).convert("L").resize((_SIDE, _SIDE))
        return np.asarray(image, dtype=np.float32)

    decoded_originals = np.flatnonzero(originals.pixel_digests != b"")
    decoded_copies = remaining[copies.pixel_digests[remaining] != b""]
    at_once = max(1, _COMPARED_AT_ONCE // max(1, len(decoded_originals)))
    for start in range(0, len(decoded_copies), at_once):
        chunk = decoded_copies[start : start + at_once]
        differing_bits = np.bitwise_count(
            copies.hashes[chunk][:, None] ^ originals.hashes[decoded_originals][None, :]
        )
        for row, position in np.argwhere(differing_bits <= HASH_BITS).tolist():
            original_index, copy_index = int(decoded_originals[position]), int(chunk[row])
            if originals.digests[original_index] == copies.digests[copy_index]:
                continue
            original, copy = originals.ref(original_index), copies.ref(copy_index)
            difference = np.abs(small_grey(original) - small_grey(copy)).mean()
            if difference <= GREY_DIFFERENCE:
                yield SamePicture(original, copy, "nearly the same pixels")
