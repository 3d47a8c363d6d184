"""Whether a benchmark's images or texts were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from medrm.data.images import ImageFacts, decode
from medrm.data.store.columns import Places, column, flat, owners, text_mark, texts_of
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

    left: ImageRef
    right: ImageRef
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
    ours, theirs = _Pictures(train, facts), _Pictures(benchmark, facts)
    fatal = [
        f"image {same.right.name!r} of benchmark case {theirs.case(same.right)!r} has "
        f"{same.how} as image {same.left.name!r} of training case {ours.case(same.left)!r}"
        for same in _shared_pictures(ours, theirs, synthetic)
    ]
    fatal += _shared_texts(train, benchmark)
    questions = np.isin(column(benchmark, "question"), column(train, "question"))
    answers = np.isin(flat(benchmark, "answer"), flat(train, "answer"))
    answered = owners(column(benchmark, "answers"))[answers]
    return LeakReport(tuple(fatal), int(questions.sum()), len(np.unique(answered)))


def _shared_texts(train: Sequence[Case], benchmark: Sequence[Case]) -> Iterator[str]:
    """Yields a sentence for each text-only case that is in both."""
    ours, theirs = (np.flatnonzero(column(cases, "images") == 0) for cases in (train, benchmark))
    marks = column(train, "texts")[ours]
    for place in theirs[np.isin(column(benchmark, "texts")[theirs], marks)].tolist():
        case = benchmark[place]
        twin = train[int(ours[marks == text_mark(*texts_of(case))][-1])]
        yield (
            f"text-only benchmark case {case.case_id!r} has the question and the answers of "
            f"training case {twin.case_id!r}"
        )


def same_pictures(
    left: Sequence[Case], right: Sequence[Case], facts: Mapping[str, ImageFacts], synthetic: bool
) -> list[SamePicture]:
    """Returns for each distinct image of `right` an image of `left` that shows the same picture.

    Given one set twice, it finds its stored copies: an image is never compared with itself, and
    every two that look nearly alike are returned, for likeness does not pass on: two images may be
    like a third one and not like each other. A perceptual hit counts only after the pixel check.
    """
    ours = _Pictures(left, facts)
    return _shared_pictures(ours, ours if left is right else _Pictures(right, facts), synthetic)


class _Pictures:
    """The distinct images of some cases, in the order in which they are first met, as arrays.

    `digests` and `pixels` are those of bytes and pixels (empty: it cannot be decoded), `hashes`
    the perceptual ones.
    """

    def __init__(self, cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> None:
        self._cases = cases
        self._ends = np.cumsum(column(cases, "images"), dtype=np.int64)
        shown = flat(cases, "image")
        known = np.flatnonzero(shown != b"")
        digests, first = np.unique(shown[known], return_index=True)
        # Where an image stands more than once, the last place gives name and case.
        _, last = np.unique(shown[known[::-1]], return_index=True)
        order = np.argsort(first)
        self.digests: NDArray[np.bytes_] = digests[order]
        self._places = known[::-1][last][order]
        kind = np.dtype([("pixels", "S64"), ("hash", "<u8")])
        looks = (_look(facts[digest.decode()]) for digest in self.digests.tolist())
        seen = np.fromiter(looks, kind, len(self.digests))
        self.pixels, self.hashes = seen["pixels"], seen["hash"]

    def __len__(self) -> int:
        return len(self.digests)

    def ref(self, number: int) -> ImageRef:
        """Returns an image."""
        place = int(self._places[number])
        images = self._case(place).images
        return images[place - int(self._ends[self._number(place)]) + len(images)]

    def case(self, ref: ImageRef) -> str:
        """Returns the id of the case that has an image."""
        number = int(np.flatnonzero(self.digests == ref.digest.encode())[0])
        return self._case(int(self._places[number])).case_id

    def _case(self, place: int) -> Case:
        return self._cases[self._number(place)]

    def _number(self, place: int) -> int:
        return int(np.searchsorted(self._ends, place, side="right"))


def _look(facts: ImageFacts) -> tuple[str, int]:
    return ("" if facts.problem else facts.pixel_digest, facts.perceptual_hash)


def _shared_pictures(ours: _Pictures, theirs: _Pictures, synthetic: bool) -> list[SamePicture]:
    within, found = ours is theirs, dict[int, SamePicture]()
    if not within:
        for number, twin in _twins(theirs.digests, ours.digests):
            found[number] = SamePicture(ours.ref(twin), theirs.ref(number), "the same bytes")
    for number, twin in _twins(theirs.pixels, ours.pixels):
        itself = ours.digests[twin] == theirs.digests[number]
        if number not in found and theirs.pixels[number] and not itself:
            found[number] = SamePicture(ours.ref(twin), theirs.ref(number), "the same pixels")
    pairs = [found[number] for number in sorted(found)]
    if synthetic:
        return pairs
    rest = [number for number in range(len(theirs)) if within or number not in found]
    near = _near(ours, theirs, np.array(rest, dtype=np.int64))
    if within:
        return [*pairs, *_once(near, pairs)]
    first: dict[str, SamePicture] = {}
    for same in near:
        first.setdefault(same.right.digest, same)
    return [*pairs, *first.values()]


def _twins(values: NDArray[np.bytes_], among: NDArray[np.bytes_]) -> Iterator[tuple[int, int]]:
    """Yields the places of values that are also among others, with their first place there."""
    if len(among):
        known, first = np.unique(among, return_index=True)
        places = np.minimum(np.searchsorted(known, values), len(known) - 1)
        for number in np.flatnonzero(known[places] == values).tolist():
            yield number, int(first[places[number]])


def _once(near: Iterable[SamePicture], known: Iterable[SamePicture]) -> Iterator[SamePicture]:
    """Yields each two images once, and none that are known."""
    seen = {frozenset((same.left.digest, same.right.digest)) for same in known}
    for same in near:
        both = frozenset((same.left.digest, same.right.digest))
        if both not in seen:
            seen.add(both)
            yield same


def _near(ours: _Pictures, theirs: _Pictures, among: Places) -> Iterator[SamePicture]:
    """Yields pairs whose perceptual hashes are close and whose pixels pass the check.

    Args:
        ours: the images on the left.
        theirs: those on the right.
        among: which of the right are compared.
    """

    @lru_cache(maxsize=1024)  # 64 KiB each
    def small_grey(ref: ImageRef) -> NDArray[np.float32]:
        image = decode(ref).convert("L").resize((_SIDE, _SIDE))
        return np.asarray(image, dtype=np.float32)

    left = np.flatnonzero(ours.pixels != b"")
    right = among[theirs.pixels[among] != b""]
    at_once = max(1, _COMPARED_AT_ONCE // max(1, len(left)))
    for start in range(0, len(right), at_once):
        chunk = right[start : start + at_once]
        apart = np.bitwise_count(theirs.hashes[chunk][:, None] ^ ours.hashes[left][None, :])
        for row, place in np.argwhere(apart <= HASH_BITS).tolist():
            if ours.digests[left[place]] == theirs.digests[chunk[row]]:
                continue
            a, b = ours.ref(int(left[place])), theirs.ref(int(chunk[row]))
            difference = np.abs(small_grey(a) - small_grey(b)).mean()
            if difference <= GREY_DIFFERENCE:
                yield SamePicture(a, b, "nearly the same pixels")
