"""From the stored bytes of an image to its pixels, upright in RGB, in bounded memory.

Pillow reads, medrm says how: metadata that cannot be read count as none, greys that are deeper than
8 bits are spread over their finite values as their tags order them, transparency is put on white.
"""

from __future__ import annotations

import ctypes
import io
import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from medrm.data.pillow_input import BITS, FORMAT, PillowInput, is_tiff, pillow_input
from medrm.errors import DataError, reason_of

MAX_PIXELS = 2**26
"""67 million: below Pillow's own limit against decompression bombs, far above any use here."""

MAX_ASPECT = 200
"""Image processors of the Qwen family refuse an image whose sides differ by this factor."""

BYTES_PER_PIXEL = 12
"""Memory that decoding takes at most: what is stored, turned, and as RGB, 4 bytes each."""

_BYTES_PER_WEBP_PIXEL = 16
"""Its decoder holds two frames in colours and opacity, and Pillow two copies of the first."""

MEMORY_BYTES = 2**30
"""1 GiB: what all images that a process decodes at once take together. The largest accepted image
takes 0.8 GB of it, or as WebP all."""

_LARGE_BYTES = 2**26
"""From this size on freed memory is given back at once."""

# Formats whose decoders run no external program and no script; EPS, for one, would start
# Ghostscript.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "AVIF")

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for damaged files."""

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_BAND_PIXELS = 2**20
"""How many pixels are converted at once."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation to what undoes it."""

_PLANES, _NO_DATA = 284, 42113
"""Tags of TIFF: how colours lie, and GDAL's number that is none."""

_APART = 2
"""The value of a TIFF's tag where each colour is a plane of its own."""

_ODD_TIFF = "a TIFF that is damaged, or of pixels that are not read, such as numbers of 64 bits"

_ABSURD = 1e30
"""No measurement is as large; libraries write such numbers where there is none."""

_LEAST_LEVELS = 16
"""Distinct greys from which on one that lies far from all others is taken for none."""

Result = TypeVar("Result")
"""What is made of an image."""


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """Returns the accepted formats that this build of Pillow has decoders for."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def use_decoded(stored: bytes, name: str, use: Callable[[Image.Image, str], Result]) -> Result:
    """Returns what `use` makes of the image whose file content is `stored`.

    Of several frames it is the first. The memory of images in use is bounded; an image that `use`
    returns counts no more.

    Args:
        stored: content of the file.
        name: of the image, for messages.
        use: is given the image in RGB and the mode in which it is stored: Pillow's name, such as
            L, RGB, P or I;16, with "transparent" behind it where it is.

    Raises:
        DataError: damaged, no image, or beyond the size limits.
    """
    with ExitStack() as held:
        try:
            source = pillow_input(stored)
            file = io.BytesIO(source.stored)
            image = held.enter_context(Image.open(file, formats=known_formats()))
            each = _BYTES_PER_WEBP_PIXEL if image.format == "WEBP" else BYTES_PER_PIXEL
            held.enter_context(decoding_memory(_checked_pixels(image, name) * each))
            _check_planes(image)
            image.load()
            mode = "LA" if source.has_halves else image.mode
            mode += " transparent" if "transparency" in image.info else ""
            upright = [_upright_rgb(image, source)]
        except DataError:
            raise
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise unreadable(name, error, stored) from error
        image.close()
        return use(upright.pop(), mode)  # which nothing holds when its memory is given back


def stated_pixels(stored: bytes, name: str) -> int:
    """Returns the pixels of an image by the header of its file; see `use_decoded`."""
    try:
        file = io.BytesIO(pillow_input(stored).stored)
        with Image.open(file, formats=known_formats()) as image:
            return _checked_pixels(image, name)
    except DataError:
        raise
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise unreadable(name, error, stored) from error


def unreadable(name: str, error: Exception, stored: bytes = b"") -> DataError:
    """Returns the message of an image that cannot be read.

    Args:
        name: of the image.
        error: that says why.
        stored: what was read of its file.
    """
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"Image {name!r} has more than {MAX_PIXELS} pixels, which are accepted. Scale it down."
        )
    reason = reason_of(error)
    if "BytesIO" in reason:  # which names the buffer that Pillow read, and says nothing
        reason = _ODD_TIFF if is_tiff(stored) else "no known format"
    return DataError(
        f"Image {name!r} cannot be decoded ({reason}); accepted are undamaged files of "
        f"{', '.join(known_formats())}. Replace or convert it."
    )


def _check_planes(image: Image.Image) -> None:
    """Refuses a TIFF that Pillow reads wrongly: uncompressed planes of more than 8 bits.

    Raises:
        ValueError: it is one.
    """
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(_PLANES) != _APART:
        return
    depths = _numbers(image.tag_v2.get(BITS))
    is_deep = any(isinstance(bits, int) and bits > 8 for bits in depths)
    if is_deep and image.tile[0][0] == "raw":
        raise ValueError("colours of more than 8 bits in planes; save them beside each other")


def _checked_pixels(image: Image.Image, name: str) -> int:
    """Returns how many pixels an image has, of which none is decoded yet."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"Image {name!r} has {width} x {height} pixels; at most {MAX_PIXELS} are accepted. "
            "Scale it down."
        )
    if max(width, height) >= MAX_ASPECT * min(width, height):
        raise DataError(
            f"Image {name!r} has {width} x {height} pixels; one side may be less than "
            f"{MAX_ASPECT} times the other. Crop it."
        )
    return width * height


class _Memory:
    """What images that are being decoded take together."""

    def __init__(self) -> None:
        self.taken = 0
        self.changed = threading.Condition()


_IN_USE = _Memory()


@contextmanager
def decoding_memory(size: int) -> Iterator[None]:
    """Waits until `size` bytes fit beside what is being decoded."""
    with _IN_USE.changed:
        _IN_USE.changed.wait_for(lambda: not _IN_USE.taken or _IN_USE.taken + size <= MEMORY_BYTES)
        _IN_USE.taken += size
    try:
        yield
    finally:
        if size >= _LARGE_BYTES:
            _give_back()
        with _IN_USE.changed:
            _IN_USE.taken -= size
            _IN_USE.changed.notify_all()


def _give_back() -> None:
    """Has the C library give the system what was freed: glibc keeps it, for each thread apart."""
    with suppress(OSError, AttributeError, TypeError):  # another system
        ctypes.CDLL(None).malloc_trim(0)


def _upright_rgb(image: Image.Image, source: PillowInput) -> Image.Image:
    deep = _deep_greys(image, source)
    if deep is not None:
        return _turned(deep, image).convert("RGB")
    upright = _turned(image, image)
    if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
        return _on_white(upright)
    return upright.convert("RGB")


def _turned(image: Image.Image, stored: Image.Image) -> Image.Image:
    """Returns an image upright, as the metadata of the stored one say where they can be read."""
    orientation = None
    with suppress(*UNREADABLE):
        orientation = stored.getexif().get(_ORIENTATION)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields the boxes of an image's bands, from top to bottom."""
    width, height = size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield (0, top, width, min(height, top + rows))


def _on_white(image: Image.Image) -> Image.Image:
    """Returns a transparent image on white, as a browser shows it."""
    opaque = Image.new("RGB", image.size)
    for box in bands(image.size):
        colours = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        opaque.paste(Image.alpha_composite(white, colours).convert("RGB"), box)
    return opaque


def _deep_greys(image: Image.Image, source: PillowInput) -> Image.Image | None:
    """Returns greys of another kind than 8 bits from 0 on as such; None where they are no other."""
    tags: Mapping[int, Any] = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode in _DEEP_MODES or source.has_halves:
        stored_range = _range(image, tags)
    elif image.mode == "L" and 2 in _numbers(tags.get(FORMAT)):
        shades = [(grey + 128) % 256 for grey in range(256)]
        return image.point([255 - shade for shade in shades] if source.is_inverted else shades)
    else:
        return None
    greys = Image.new("L", image.size)
    for box in bands(image.size):
        values, opacity = _values(image, box, tags)
        spread = _spread(values, *stored_range)
        spread = 255 - spread if source.is_inverted else spread
        spread[np.isnan(values)] = 0
        if opacity is not None:
            spread = np.rint(255 - (255.0 - spread) * opacity).astype(np.uint8)
        greys.paste(Image.fromarray(spread), box)
    return greys


def _values(
    image: Image.Image, box: tuple[int, int, int, int], tags: Mapping[int, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Returns the greys in a box as numbers of the kind that the tags name, and their opacity.

    What stands for no measurement, and what is wholly transparent, is no number; opacity is None
    where nothing is transparent.
    """
    stored, opacity = np.asarray(image.crop(box)), None
    if stored.ndim == 3:  # halves
        greys, opaque = (stored[:, :, i] * 256.0 + stored[:, :, i + 1] for i in (0, 2))
        opacity = opaque / 65535
    elif image.mode == "I" and tags.get(BITS) == (32,) and 2 not in _numbers(tags.get(FORMAT)):
        greys = stored.view(np.uint32).astype(np.float64)  # which Pillow takes for signed
    else:
        greys = stored.astype(np.float64)
        transparent = image.info.get("transparency")
        opacity = None if transparent is None else (greys != transparent).astype(np.float64)
    no_data = _no_data(tags, image.mode == "F")
    if no_data is not None:
        greys[greys == no_data] = np.nan
    if opacity is not None:
        greys[opacity == 0] = np.nan
    return greys, opacity


def _numbers(tag: object) -> tuple[object, ...]:
    return tag if isinstance(tag, tuple) else (tag,)


def _range(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    """Returns the least and the greatest grey of a deep image; equal where it has but one.

    Those are left out that stand for none: no numbers, infinities, what GDAL's tag names, what is
    transparent, and of floating-point greys what no measurement is, and a least or greatest one so
    far from all others that these would be one grey.
    """
    is_float = image.mode == "F"
    ends: list[float] = []
    levels: NDArray[np.float64] = np.empty(0)
    for box in bands(image.size):
        values, _ = _values(image, box, tags)
        values = values[np.abs(values) < _ABSURD]
        if is_float:
            # Enough of both ends to see what lies beside the outermost.
            levels = np.unique(np.append(levels, values))
            levels = np.append(levels[:_LEAST_LEVELS], levels[_LEAST_LEVELS:][-_LEAST_LEVELS:])
        if values.size:
            ends += [float(values.min()), float(values.max())]
    if is_float and levels.size > _LEAST_LEVELS:
        return _without_sentinels(levels)
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _no_data(tags: Mapping[int, Any], is_float: bool) -> float | None:
    """Returns the number that GDAL's tag names, which stands for no measurement."""
    with suppress(ValueError):
        number = float(str(tags.get(_NO_DATA)).strip("\0 "))
        if math.isfinite(number):
            return float(np.float32(number)) if is_float else number
    return None


def _without_sentinels(levels: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the least and the greatest of sorted levels, without one that is far from the rest.

    >>> _without_sentinels(np.array([-9999.0, *np.linspace(0, 1, 20)]))
    (0.0, 1.0)
    """
    low, high = 0, len(levels) - 1
    if (levels[high] - levels[1]) * 255 < levels[high] - levels[0]:
        low = 1
    if (levels[high - 1] - levels[low]) * 255 < levels[high] - levels[low]:
        high -= 1
    return float(levels[low]), float(levels[high])


def _spread(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Returns greys in 8 bits, the least value black and the greatest white; no number is black."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    inside = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
    return np.rint((inside - low) * (255 / (high - low))).astype(np.uint8)
