"""Images that other readers see wrongly or not at all: deep, inverted, with damaged metadata."""

from __future__ import annotations

import struct
import threading
from functools import partial

import numpy as np
import pytest
from files import picture, png
from PIL import Image, PngImagePlugin

from medrm.data import decoding
from medrm.data.images import bytes_image, decode, examine
from medrm.errors import DataError
from medrm.schema import Case

RAMP = np.tile(np.linspace(0, 1, 64), (48, 1)).astype(np.float32)
SIGNED, FLOAT = 2, 3
"""SampleFormat of TIFF; 1 is unsigned."""


def tiff(
    greys: np.ndarray, *, white_is_zero: bool = False, kind: int = 1, more: tuple = ()
) -> bytes:
    """A TIFF file of one strip; `more` holds tags as (number, type, count, 4 bytes)."""
    raw, (height, width) = greys.tobytes(), greys.shape
    short = {258: greys.itemsize * 8, 259: 1, 262: 0 if white_is_zero else 1, 277: 1, 339: kind}
    tags = [(tag, 3, 1, struct.pack("<HH", value, 0)) for tag, value in short.items()]
    long = {256: width, 257: height, 273: 8, 278: height, 279: len(raw)}
    tags += [(tag, 4, 1, struct.pack("<I", value)) for tag, value in long.items()]
    entries = b"".join(struct.pack("<HHI4s", *tag) for tag in sorted([*tags, *more]))
    directory = struct.pack("<H", len(tags) + len(more)) + entries
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + directory + bytes(4)


def middle_row(stored: bytes) -> list[int]:
    greys = np.asarray(decode(bytes_image("image", partial(bytes, stored))))[24, :, 0]
    return greys[[0, 31, 63]].tolist()


def with_rows(value: float) -> np.ndarray:
    greys = RAMP.copy()
    greys[:4] = value
    return greys


UNSIGNED_32 = (RAMP.astype(np.float64) * (2**32 - 1)).astype(np.uint32)
GDAL = ((42113, 2, 3, b"-2\0\0"),)
RISING = {
    "unsigned 8": tiff((RAMP * 255).astype(np.uint8)),
    "signed 8": tiff((RAMP * 255 - 128).astype(np.int8), kind=SIGNED),
    "unsigned 16": tiff((RAMP * 65535).astype(np.uint16)),
    "signed 16": tiff((RAMP * 65535 - 32768).astype(np.int16), kind=SIGNED),
    "unsigned 32": tiff(UNSIGNED_32),
    "float": tiff(RAMP, kind=FLOAT),
    "no number": tiff(with_rows(np.nan), kind=FLOAT),
    "infinity": tiff(with_rows(np.inf), kind=FLOAT),
    "minus infinity": tiff(with_rows(-np.inf), kind=FLOAT),
    "least float": tiff(with_rows(np.finfo(np.float32).min), kind=FLOAT),
    "sentinel": tiff(with_rows(-9999), kind=FLOAT),
    "GDAL's tag": tiff(with_rows(-2), kind=FLOAT, more=GDAL),
}


@pytest.mark.parametrize("name", RISING)
def test_greys_are_spread_over_what_was_measured(name: str) -> None:
    """Unsigned and signed 8 bits are shown as they are: there 31 of 63 is 125 or 126."""
    dark, middle, bright = middle_row(RISING[name])
    assert (dark, bright) == (0, 255)
    assert middle in (125, 126)


def test_a_number_that_only_the_tag_tells_from_a_measurement_is_shown_without_it() -> None:
    assert middle_row(tiff(with_rows(-2), kind=FLOAT))[0] == 170


def test_a_mask_of_few_greys_has_no_sentinel() -> None:
    mask = np.zeros((48, 64), np.float32)
    mask[:, 32:] = 7
    assert middle_row(tiff(mask, kind=FLOAT)) == [0, 0, 255]


@pytest.mark.parametrize("name", ["8", "16", "float"])
def test_white_is_zero_is_inverted(name: str) -> None:
    greys, kind = {
        "8": ((RAMP * 255).astype(np.uint8), 1),
        "16": ((RAMP * 65535).astype(np.uint16), 1),
        "float": (RAMP, FLOAT),
    }[name]
    assert middle_row(tiff(greys, kind=kind, white_is_zero=True))[::2] == [255, 0]


def test_orientation_of_a_tiff_is_applied_to_deep_greys() -> None:
    flipped = ((274, 3, 1, struct.pack("<HH", 2, 0)),)
    assert middle_row(tiff((RAMP * 65535).astype(np.uint16), more=flipped))[::2] == [255, 0]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!!", b"garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    expected = decode(bytes_image("whole", partial(png, picture(1))))
    found = decode(bytes_image("damaged", partial(bytes, png(picture(1), exif=exif))))
    assert found.tobytes() == expected.tobytes()
    for kind in ("JPEG", "WEBP"):
        decode(bytes_image("other", partial(bytes, png(picture(1), format=kind, exif=exif))))
    far = ((34665, 4, 1, struct.pack("<I", 10**9)),)
    assert middle_row(tiff((RAMP * 255).astype(np.uint8), more=far))[2] == 255


def test_long_texts_of_a_png_are_ignored() -> None:
    texts = PngImagePlugin.PngInfo()
    for number in range(70):
        texts.add_text(f"key {number}", "x" * 1_100_000, zip=True)
    texts.add_itxt("more", "y" * 3_000_000, zip=True)
    stored = png(picture(1), pnginfo=texts, icc_profile=bytes(4_000_000))
    found = decode(bytes_image("wordy", partial(bytes, stored)))
    assert found.tobytes() == picture(1).tobytes()


def test_contrast_tells_nearly_constant_images() -> None:
    grey = np.full((100, 100), 90, np.uint8)
    faint, dead_pixel = grey.copy(), grey.copy()
    faint[:50] = 92
    dead_pixel[3, 3] = 255
    images = [Image.fromarray(pixels) for pixels in (grey, faint, dead_pixel)] + [picture(1)]
    refs = [bytes_image("image", partial(bytes, png(image))) for image in images]
    facts = examine([Case("c", tuple(refs), "q", ("a", "b"))])
    contrasts = [facts[ref.digest].contrast for ref in refs]
    assert contrasts[:3] == [0, 2, 0]
    assert contrasts[3] > 100


def test_images_that_are_decoded_at_once_share_a_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of the images fit beside each other, a third waits; one that is larger runs alone."""
    pixels = 24 * 20
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 2 * pixels * decoding.BYTES_PER_PIXEL)
    running, most, lock = 0, 0, threading.Lock()
    gate = threading.Barrier(2, timeout=5)

    def use(image: Image.Image, mode: str) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait()
        with lock:
            running -= 1

    stored = png(picture(1))
    threads = [
        threading.Thread(target=decoding.use_decoded, args=(stored, "image", use)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    large = png(picture(1, (240, 200)))
    assert decoding.use_decoded(large, "large", lambda image, mode: image.size) == (240, 200)
    with pytest.raises(DataError):
        decoding.use_decoded(b"no image", "none", lambda image, mode: None)
    assert decoding._IN_USE.taken == 0
