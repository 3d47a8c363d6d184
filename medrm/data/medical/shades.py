"""From one frame's values to shades of 8 bits, in bands of rows, and their file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medrm.data.decoding import MAX_ASPECT, MAX_PIXELS, UNREADABLE
from medrm.data.medical.conversions import Conversion

Values = NDArray[np.float64]
Shades = NDArray[np.uint8]

_BAND_PIXELS = 2**20
_LONGEST_BLOCK = 65535
_SQUARE = 0.01
"""Sides of a pixel that differ by less than this share are taken for equal."""


DAMAGE = tuple(error for error in UNREADABLE if error is not MemoryError)
"""What readers raise for damaged files."""


class UnreadableError(Exception):
    """Why a medical image gives no picture, in words that hold nothing of its tags."""


@dataclass(frozen=True)
class Frame:
    """One frame or slice, before it is converted.

    Attributes:
        stored: pixels as they are stored, [height, width]; colours in 8 bits, [height, width, 3].
        values_of: returns what stored pixels measure; NaN where they are padding.
        is_hounsfield: whether that is in Hounsfield units, as far as the file can tell.
        is_inverted: whether the least value is shown white.
        own_window: returns values as shares of white, as the file says they be shown; None: it does
            not.
        own_window_name: what that is.
        aspect: height of a pixel over its width.
    """

    stored: NDArray[Any]
    values_of: Callable[[NDArray[Any]], Values] = np.asarray
    is_hounsfield: bool = True
    is_inverted: bool = False
    own_window: Callable[[Values], Values] | None = None
    own_window_name: str = ""
    aspect: float = 1.0

    @property
    def is_coloured(self) -> bool:
        """Whether it has colours, which no conversion changes."""
        return self.stored.ndim == 3

    def bands(self) -> Iterator[tuple[slice, Values]]:
        """Yields the values of some rows after those of others."""
        height, width = self.stored.shape[:2]
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            band = slice(top, min(height, top + rows))
            yield band, self.values_of(self.stored[band])


def check_size(height: int, width: int) -> None:
    """Checks the size of a picture before its pixels are decoded.

    Raises:
        UnreadableError: it is beyond the limits of `decoding`.
    """
    if height < 1 or width < 1:
        raise UnreadableError("it has no pixels")
    if height * width > MAX_PIXELS:
        raise UnreadableError(f"it has {width} x {height} pixels; at most {MAX_PIXELS} are read")
    if max(height, width) >= MAX_ASPECT * min(height, width):
        raise UnreadableError(f"it has {width} x {height} pixels, which no picture has")


def value_range(frame: Frame) -> tuple[float, float] | None:
    """Returns the least and the greatest number of a frame; None where it has none."""
    ends: list[float] = []
    for _, values in frame.bands() if not frame.is_coloured else ():
        finite = values[np.isfinite(values)]
        ends += [float(finite.min()), float(finite.max())] if finite.size else []
    return (min(ends), max(ends)) if ends else None


def picture_of(
    frame: Frame, conversion: Conversion, whole: tuple[float, float] | None
) -> tuple[Shades, str]:
    """Returns a frame's picture, grey or in RGB, and how it was made.

    Args:
        frame: to convert.
        conversion: by which.
        whole: the range of the whole acquisition, where the conversion asks for it.

    Raises:
        UnreadableError: the conversion is of Hounsfield units, and the frame is no CT.
    """
    if frame.is_coloured:
        return _squared(frame.stored, frame.aspect), "colours as stored"
    if conversion.windows and not frame.is_hounsfield:
        raise UnreadableError(
            f"{conversion.name} needs Hounsfield units, and it is no CT in these units"
        )
    height, width = frame.stored.shape
    channels = len(conversion.windows) or 1
    shades = np.empty((height, width, channels), np.uint8)
    shade, made = _shading(frame, conversion, whole)
    for rows, values in frame.bands():
        band = shade(values)
        if frame.is_inverted:
            band = 255 - band
        band[np.isnan(values)] = 0
        shades[rows] = band
    return _squared(shades if channels == 3 else shades[:, :, 0], frame.aspect), made


def _shading(
    frame: Frame, conversion: Conversion, whole: tuple[float, float] | None
) -> tuple[Callable[[Values], Shades], str]:
    """Returns what makes shades [height, width, channels] of values, and how."""
    if conversion.windows:
        windows = conversion.windows
        return lambda v: np.stack(
            [_between(v, *window) for window in windows], -1
        ), "window in Hounsfield units"
    own = frame.own_window if conversion.spread == "file" else None
    if own is not None:
        return lambda v: _in_bytes(own(v)), frame.own_window_name
    low, high = whole or value_range(frame) or (0.0, 0.0)
    made = "least to greatest value"
    if conversion.spread == "file":
        made += ", for the file states no window"
    return lambda v: _between(v, low, high)[:, :, np.newaxis], made


def _between(values: Values, low: float, high: float) -> Shades:
    """Returns values as shades: `low` and less black, `high` and more white, rounded between.

    It is computed in the precision of MedGemma's notebook, whose rounding it shares.
    """
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    inside = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
    greys = (inside - low).astype(np.float32)
    greys /= np.float32(high - low)
    greys *= np.float32(255)
    rounded: Shades = np.rint(greys).astype(np.uint8)
    return rounded


def _in_bytes(shares: Values) -> Shades:
    """Returns shares of white as shades with a last axis of length 1."""
    clean = np.clip(np.nan_to_num(shares, nan=0.0), 0, 1)
    return np.rint(clean * 255).astype(np.uint8)[:, :, np.newaxis]


def _squared(shades: Shades, aspect: float) -> Shades:
    """Returns a picture of square pixels: the longer side of a pixel is cut, none is lost.

    Raises:
        UnreadableError: it would be beyond the limits.
    """
    if not np.isfinite(aspect) or aspect <= 0 or abs(aspect - 1) < _SQUARE:
        return shades
    height, width = shades.shape[:2]
    if aspect > 1:
        height = round(height * min(aspect, MAX_PIXELS))
    else:
        width = round(width / max(aspect, 1 / MAX_PIXELS))
    check_size(height, width)
    image = Image.fromarray(shades).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def stored_png(shades: Shades) -> bytes:
    """Returns a picture as a PNG file in which nothing is compressed.

    So its bytes, whose digest tells the picture from others, are the same whichever version of a
    compressor is installed.
    """
    height, width = shades.shape[:2]
    lines = np.zeros((height, shades[0].size + 1), np.uint8)  # each begins with its filter, none
    lines[:, 1:] = shades.reshape(height, -1)
    raw = lines.tobytes()
    starts = range(0, len(raw), _LONGEST_BLOCK)
    blocks = [b"\x78\x01"]
    for start in starts:
        block = raw[start : start + _LONGEST_BLOCK]
        is_last, size = start == starts[-1], len(block)
        blocks += [struct.pack("<BHH", is_last, size, size ^ 0xFFFF), block]
    blocks.append(struct.pack(">I", zlib.adler32(raw)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if shades.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"".join(blocks)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
