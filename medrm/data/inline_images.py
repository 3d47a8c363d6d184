"""Images that are written out in text: data URLs and base64."""

from __future__ import annotations

import base64
import binascii
import re

from medrm.errors import DataError

MAX_STORED_BYTES = 2**28
"""256 MiB: the largest stored image that is read at all."""

ACCEPTED = (
    "accepted are a path, a data URL, base64, bytes, a PIL image, a uint8 array [H, W] or "
    "[H, W, 3], and a mapping with bytes or path"
)

_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A")
"""How PNG, JPEG, GIF, WebP and TIFF files start in base64."""

_LONGEST_NAME = 255
"""Characters of the longest file name; base64 of an image is longer."""

_SHORT_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
"""Base64 of an image of a few pixels; the name of an image file would have a dot."""


def inline_bytes(text: str) -> bytes | None:
    """Returns the image that a text holds; None where it is a path.

    Raises:
        DataError: a data URL or base64 that holds none, or too much.
    """
    if text.startswith("data:"):
        return from_data_url(text)
    if not text.startswith(_BASE64_STARTS):
        return None
    is_base64 = len(text) > _LONGEST_NAME or _SHORT_BASE64.fullmatch(text)
    return from_base64(text) if is_base64 else None


def from_data_url(address: str) -> bytes:
    """Returns the bytes of a base64 data URL.

    Raises:
        DataError: it holds none, or too many.
    """
    header, _, data = address.partition(",")
    if not header.endswith(";base64"):
        raise DataError(f"a data URL {header[:60]!r} as an image; give data:image/...;base64,...")
    return from_base64(data)


def from_base64(data: str) -> bytes:
    """Returns the bytes of base64.

    Raises:
        DataError: it is none, or too long.
    """
    if len(data) > MAX_STORED_BYTES * 4 // 3 + 4:
        raise DataError(f"base64 of more than {MAX_STORED_BYTES} bytes as an image.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"what is no base64 ({error}) as an image; {ACCEPTED}.") from error
