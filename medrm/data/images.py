"""Images of cases: bounded decoding, and what each image looks like.

References are made when a set is read; pixels exist only while one image is being decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medrm.data.batched import batched
from medrm.data.decoding import (
    UNREADABLE,
    Result,
    bands,
    stated_pixels,
    unreadable,
    use_decoded,
)
from medrm.data.image_references import ImageOptions, StoredCell, StoredFile, cached_images
from medrm.data.inline_images import MAX_STORED_BYTES
from medrm.data.medical.converter import medical_kind
from medrm.errors import DataError, reason_of
from medrm.schema import Case, ImageRef

_FAINT = 0.001
"""Share of pixels at either end of the greys that contrast leaves out."""

_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one decoded image is: `problem` says why it could not be decoded, else it is None.

    `pixel_digest` is the SHA-256 of size and RGB pixels, `perceptual_hash` a 64-bit pHash, `mode`
    Pillow's name of what is stored, such as L, RGB, P or I;16, "transparent" behind it where it is,
    `contrast` the range of its greys of 0 to 255, the darkest and the brightest 0.1 % left out.
    """

    problem: str | None
    width: int = 0
    height: int = 0
    pixel_digest: str = ""
    perceptual_hash: int = 0
    mode: str = ""
    contrast: int = 0


def bytes_image(name: str, read: Callable[[], bytes]) -> ImageRef:
    """Returns the reference of an image whose stored bytes `read` gives; it must be picklable."""
    return _stored_images(name, read, lambda stored: None)[0]


def cell_images(name: str, read: StoredCell, options: ImageOptions) -> tuple[ImageRef, ...]:
    """Returns the reference of the image in a cell, or those of the pictures of a medical one.

    Raises:
        DataError: a medical image whose conversion is not named.
    """

    def medical(stored: bytes) -> tuple[ImageRef, ...] | None:
        return None if medical_kind(stored) is None else cached_images(stored, options)

    return _stored_images(name, read, medical)


def _stored_images(
    name: str,
    read: Callable[[], bytes],
    medical: Callable[[bytes], tuple[ImageRef, ...] | None],
) -> tuple[ImageRef, ...]:
    """Returns the references of a stored image, whose bytes are read once."""
    try:
        stored = read()
    except OSError as error:
        return (ImageRef(name, "", read, f"cannot be read: {reason_of(error)}"),)
    if len(stored) > MAX_STORED_BYTES:
        return (ImageRef(name, "", read, f"larger than {MAX_STORED_BYTES} bytes"),)
    of_pictures = medical(stored)
    return of_pictures or (ImageRef(name, hashlib.sha256(stored).hexdigest(), read),)


def decode(ref: ImageRef) -> Image.Image:
    """Returns the image upright in RGB.

    Deep greys (16 bit, 32 bit, float) are spread over their finite values; what is transparent is
    put on white, as a browser shows it; of several frames the first is taken. See `decoding`.

    Raises:
        DataError: damaged, no image, or beyond the size limits.
    """
    return _use_decoded(ref, lambda image, mode: image)


def pixel_count(ref: ImageRef) -> int:
    """Returns the pixels of an image by its header; nothing is decoded.

    Raises:
        DataError: no image, or beyond the size limits.
    """
    if ref.problem is not None:
        raise DataError(f"Image {ref.name!r}: {ref.problem}.")
    return stated_pixels(_stored(ref), ref.name)


def _use_decoded(ref: ImageRef, use: Callable[[Image.Image, str], Result]) -> Result:
    if ref.problem is not None:
        raise DataError(f"Image {ref.name!r}: {ref.problem}.")
    return use_decoded(_stored(ref), ref.name, use)


def _stored(ref: ImageRef) -> bytes:
    """Returns the bytes of an image; those of a set's image are the ones that were indexed."""
    try:
        stored = ref.read()
    except UNREADABLE as error:
        raise unreadable(ref.name, error) from error
    of_a_set = isinstance(ref.read, (StoredFile, StoredCell))
    if of_a_set and hashlib.sha256(stored).hexdigest() != ref.digest:
        raise DataError(
            f"Image {ref.name!r} is not what it was when its set was read: it was changed, or is "
            "damaged. Start again to read the set anew, or restore the image."
        )
    return stored


def examine(
    cases: Iterable[Case], progress: Callable[[int, int], None] | None = None
) -> dict[str, ImageFacts]:
    """Decodes each distinct image once and returns its facts by digest.

    Images without bytes (`ImageRef.problem`) have no digest and are left out; `image_problem`
    covers both kinds.

    Args:
        cases: their images are examined.
        progress: called with the number done and the number of distinct images.
    """
    distinct = {ref.digest: ref for case in cases for ref in case.images if ref.digest}
    facts: dict[str, ImageFacts] = {}
    for digest, fact in zip(distinct, facts_of(distinct.values()), strict=True):
        facts[digest] = fact
        if progress is not None:
            progress(len(facts), len(distinct))
    return facts


def facts_of(refs: Iterable[ImageRef]) -> Iterator[ImageFacts]:
    """Yields what decoding each image shows; a few are decoded at once."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in batched(refs, _AT_ONCE):
            yield from pool.map(_facts, batch)


def _facts(ref: ImageRef) -> ImageFacts:
    try:
        return _use_decoded(ref, _facts_of_pixels)
    except DataError as error:
        return ImageFacts(problem=str(error))


def _facts_of_pixels(image: Image.Image, mode: str) -> ImageFacts:
    pixels = hashlib.sha256(f"{image.size}".encode())
    for box in bands(image.size):
        pixels.update(image.crop(box).tobytes())
    shares, faint = image.convert("L").histogram(), np.prod(image.size) * _FAINT
    shades, lit = (np.flatnonzero(np.cumsum(side) >= faint) for side in (shares, shares[::-1]))
    contrast = max(0, 255 - int(lit[0]) - int(shades[0]))
    return ImageFacts(None, *image.size, pixels.hexdigest(), perceptual_hash(image), mode, contrast)


def image_problem(ref: ImageRef, facts: Mapping[str, ImageFacts]) -> str | None:
    """Returns why an examined image cannot be used, or None."""
    if ref.problem is not None:
        return f"Image {ref.name!r}: {ref.problem}."
    return facts[ref.digest].problem


def perceptual_hash(image: Image.Image) -> int:
    """Returns the 64-bit pHash: which low DCT frequencies of the 32 x 32 grey image lie above
    their median.

    Source: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010.
    """
    from scipy.fft import dctn

    small = np.asarray(image.convert("L").resize((32, 32)), dtype=np.float64)
    low = dctn(small, norm="ortho")[:8, :8].ravel()
    # The margin keeps rounding errors from choosing the bits of a uniform image.
    bits = low > np.median(low[1:]) + 1e-6
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
