"""Images of cases: references with digests, bounded decoding, and what each image looks like.

References are made when a set is read; pixels exist only while one image is being decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
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
from medrm.data.inline_images import MAX_STORED_BYTES, inline_bytes
from medrm.errors import DataError, reason_of, shortened
from medrm.files import cache_dir, file_digest, write_cache_file
from medrm.schema import Case, ImageRef

_SCHEMES = ("http", "https", "ftp", "s3", "gs", "hf", "file")

_ADDRESS = "an address, and nothing is downloaded; get the image and give its path"

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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Reads the bytes of an image that is a file.

    Attributes:
        path: of the file itself.
        link: the way to it through symbolic links; empty: there is none.
    """

    path: str
    link: str = ""

    def __call__(self) -> bytes:
        """Returns the bytes."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class StoredCell:
    """Reads the bytes of an image in a cell of a table.

    Attributes:
        files: the Arrow files of the table, in their order.
        row: of the table, from 0.
        column: holds an image, or a list of them.
        position: in the list; None: the cell is one image.
    """

    files: tuple[str, ...]
    row: int
    column: str
    position: int | None

    def __call__(self) -> bytes:
        """Returns the bytes."""
        cell = _arrow_table(self.files)[self.column][self.row]
        image = cell if self.position is None else cell[self.position]
        stored: bytes = (image["bytes"] if pa.types.is_struct(image.type) else image).as_py()
        return stored


@lru_cache(maxsize=64)
def _arrow_table(files: tuple[str, ...]) -> pa.Table:
    """Returns a table whose rows stay in its files."""
    maps = [pa.ipc.open_stream(pa.memory_map(path)).read_all() for path in files]
    return pa.concat_tables(maps)


def is_address(written: str) -> bool:
    """Returns whether an image is written as an address of the network."""
    scheme, colon, _ = written.partition("://")
    return bool(colon) and scheme.lower() in _SCHEMES


def file_image(
    written: str, root: Path, boundary: Path | None = None, image_root: Path | None = None
) -> ImageRef:
    """Returns the reference of an image file, with the digest of its bytes.

    What is written may also be a data URL or base64; then the image is kept in the cache.

    Args:
        written: the path in the data, absolute, or relative to `image_root` or else to `root`.
        root: the folder of the data file.
        boundary: the folder that no path and no link may leave, by default `root`.
        image_root: another folder of images, which paths and links may lead into as well.

    Raises:
        DataError: a path that leaves the folders, also through a symbolic link.
    """
    try:
        content = inline_bytes(written)
    except DataError as error:
        return ImageRef("in the data", "", bytes, f"it is {error}".rstrip("."))
    if content is not None:
        return cached_image(content)
    if is_address(written) and not written.startswith("file:///"):
        return ImageRef(shortened(written), "", bytes, _ADDRESS)
    written = written.removeprefix("file://")
    way, folder = _way(written, root, image_root)
    location = _inside(written, way, [boundary or root, *([image_root] if image_root else [])])
    link = os.path.abspath(way)
    read = StoredFile(str(location), "" if link == str(location) else link)
    # Where the data lie is nobody's business who reads a report.
    if os.path.isabs(written):
        written = os.path.relpath(way, folder) if way.is_relative_to(folder) else location.name
    digest = ""
    problem: str | None = None
    try:
        if not location.is_file():
            problem = f"there is no file {shortened(written)!r}"
        elif location.stat().st_size > MAX_STORED_BYTES:
            problem = f"larger than {MAX_STORED_BYTES} bytes"
        else:
            digest = file_digest(location)
    except OSError as error:
        problem = f"{shortened(written)!r} cannot be read: {error.strerror}"
    return ImageRef(shortened(written) if problem else written, digest, read, problem)


def _way(written: str, root: Path, image_root: Path | None) -> tuple[Path, Path]:
    """Returns the path of an image before links are followed, and the folder that it lies in."""
    folders = [folder.absolute() for folder in (image_root, root) if folder is not None]
    if os.path.isabs(written):
        way = Path(os.path.normpath(written))
        return way, next((folder for folder in folders if way.is_relative_to(folder)), folders[-1])
    there = (folder for folder in folders if os.path.lexists(folder / written.replace("\0", "")))
    folder = next(there, folders[0])
    return folder / written, folder


def _inside(written: str, way: Path, folders: Sequence[Path]) -> Path:
    """Returns the resolved location of a path that stays inside the folders."""
    named = " and ".join(map(str, folders))
    outside = DataError(
        f"image path {shortened(written)!r} leads outside the data folder {named}; accepted are "
        "paths to files inside it. Move the image there, or name its folder with --image_root."
    )
    if not written or "\0" in written:
        raise outside
    try:
        location = way.resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise outside from error
    if not any(location.is_relative_to(folder.resolve()) for folder in folders):
        raise outside
    return location


def cached_image(content: bytes) -> ImageRef:
    """Returns the reference of an image that is stored in no file, kept in the cache.

    Raises:
        ConfigError: the cache cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = cache_dir() / "images" / digest
    if len(content) > MAX_STORED_BYTES:
        return ImageRef("in the data", "", bytes, f"larger than {MAX_STORED_BYTES} bytes")
    if not path.is_file() or file_digest(path) != digest:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_cache_file(path, content)
    return ImageRef(f"in the data, {digest[:12]}", digest, StoredFile(str(path)))


def file_images(
    paths: Collection[str], root: Path, boundary: Path, image_root: Path | None = None
) -> dict[str, ImageRef | DataError]:
    """Returns the reference of each path, or why it is refused; see `file_image`."""

    def reference(path: str) -> ImageRef | DataError:
        try:
            return file_image(path, root, boundary, image_root)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(paths, pool.map(reference, paths), strict=True))


def bytes_image(name: str, read: Callable[[], bytes]) -> ImageRef:
    """Returns the reference of an image whose stored bytes `read` gives; it must be picklable."""
    try:
        stored = read()
    except OSError as error:
        return ImageRef(name, "", read, f"cannot be read: {reason_of(error)}")
    if len(stored) > MAX_STORED_BYTES:
        return ImageRef(name, "", read, f"larger than {MAX_STORED_BYTES} bytes")
    return ImageRef(name, hashlib.sha256(stored).hexdigest(), read)


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
