"""Files of images as Pillow reads them rightly: what it would trip over or flatten is rewritten.

Of a PNG what no pixel depends on is left out, for Pillow refuses a whole image where such a chunk
is damaged or long. Greys of 16 bits beside transparency, of which Pillow keeps 8, come as bytes of
four channels. A TIFF in which 0 is white says the contrary where Pillow reads no such greys.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import NamedTuple

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_USED = (b"tRNS", b"eXIf")
"""Optional chunks that say how pixels are shown: their transparency and orientation."""

_GREY_AND_ALPHA_16, _COLOURS_AND_ALPHA_8 = b"\x10\x04", b"\x08\x06"
"""Bits and kind of pixels in the header of a PNG; both take four bytes for a pixel."""

BITS, _PHOTOMETRIC, FORMAT = 258, 262, 339
"""Tags of TIFF: bits of a grey, whether 0 is black, kind of number."""

_MOST_CHUNKS = 2**18
"""Of a PNG; the largest accepted image has a quarter of them, each of 8 kB."""

_SHORT = 3
"""TIFF's type of such numbers."""


class PillowInput(NamedTuple):
    """A file for Pillow.

    Attributes:
        stored: its content.
        is_inverted: whether the least grey is white, which the content no longer says.
        has_halves: whether red and green are the upper and the lower byte of a grey, and blue and
            alpha those of its opacity.
    """

    stored: bytes
    is_inverted: bool = False
    has_halves: bool = False


def pillow_input(stored: bytes) -> PillowInput:
    """Returns the content of an image's file as Pillow shall read it.

    Raises:
        ValueError: a PNG of more chunks than any image has.
    """
    if stored.startswith(_PNG_START):
        return _png(stored)
    if is_tiff(stored):
        with suppress(struct.error, IndexError):  # damaged; Pillow says so
            return _tiff(stored)
    return PillowInput(stored)


def is_tiff(stored: bytes) -> bool:
    """Returns whether a file starts as TIFF."""
    return stored.startswith((b"II*\0", b"MM\0*"))


def _png(stored: bytes) -> PillowInput:
    view, start, has_halves, is_same = memoryview(stored), len(_PNG_START), False, True
    pieces: list[bytes | memoryview] = [_PNG_START]
    for number in count():
        if start + 8 > len(stored):
            break
        if number == _MOST_CHUNKS:
            raise ValueError(f"it has more than {_MOST_CHUNKS:,} chunks")
        length, name = struct.unpack(">I4s", stored[start : start + 8])
        end = start + 12 + length
        if name == b"IHDR" and stored[start + 16 : start + 18] == _GREY_AND_ALPHA_16:
            after = stored[start + 18 : end - 4]  # name, width and height lie before
            header = stored[start + 4 : start + 16] + _COLOURS_AND_ALPHA_8 + after
            pieces += [stored[start : start + 4], header, struct.pack(">I", zlib.crc32(header))]
            has_halves, is_same = True, False
        elif not name[0] & 0x20 or (name in _PNG_USED and _is_whole(stored[start:end])):
            pieces.append(view[start:end])
        else:
            is_same = False
        start = end
    if is_same:
        return PillowInput(stored)
    return PillowInput(b"".join([*pieces, view[start:]]), has_halves=has_halves)


def _is_whole(chunk: bytes) -> bool:
    return chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))


def _tiff(stored: bytes) -> PillowInput:
    """Returns a TIFF; raises struct.error where it is damaged."""
    order = "<" if stored.startswith(b"II") else ">"
    tags = dict(_first_numbers(stored, order))
    bits, _ = tags.get(BITS, (1, 0))
    kind, _ = tags.get(FORMAT, (1, 0))
    photometric, place = tags.get(_PHOTOMETRIC, (1, 0))
    # Of greys of 8 bits from 0 on, and of fewer, Pillow knows both.
    if photometric != 0 or (bits <= 8 and kind == 1):
        return PillowInput(stored)
    patched = bytearray(stored)
    struct.pack_into(f"{order}H", patched, place, 1)
    return PillowInput(bytes(patched), is_inverted=True)


def _first_numbers(stored: bytes, order: str) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields the first of the short numbers of each tag of the first image, and where it stands."""
    (directory,) = struct.unpack_from(f"{order}I", stored, 4)
    (tag_count,) = struct.unpack_from(f"{order}H", stored, directory)
    for number in range(tag_count):
        entry = directory + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", stored, entry)
        place = entry + 8
        if length > 2:
            (place,) = struct.unpack_from(f"{order}I", stored, place)
        if kind == _SHORT:
            yield tag, (struct.unpack_from(f"{order}H", stored, place)[0], place)
