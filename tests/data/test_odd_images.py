"""Images that other readers see wrongly or not at all: deep, inverted, with damaged metadata."""

from __future__ import annotations

import struct
import threading
import zlib
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


def chunk(name: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def deep_png(pixels: np.ndarray, *more: bytes) -> bytes:
    """A PNG of greys of 16 bits [H, W], or of such greys and their opacity [H, W, 2]."""
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 4
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, end])


def test_deep_greys_beside_transparency_are_spread_and_put_on_white() -> None:
    """Of 12 bits in 16, of which Pillow keeps the upper 8; what is not seen has no part in it."""
    greys = (RAMP * 4000).astype(np.uint16)
    opacity = np.full_like(greys, 65535)
    greys[:4], opacity[:4], opacity[4:8] = 65535, 0, 32768
    expected = np.rint(greys * (255 / 4000)).clip(0, 255)
    expected[:4], expected[4:8] = 255, np.rint(255 - (255 - expected[4:8]) * (32768 / 65535))
    both = bytes_image("both", partial(bytes, deep_png(np.stack([greys, opacity], -1))))
    np.testing.assert_array_equal(np.asarray(decode(both))[:, :, 0], expected)
    named = deep_png(greys, chunk(b"tRNS", struct.pack(">H", 65535)))
    found = np.asarray(decode(bytes_image("named", partial(bytes, named))))[:, :, 0]
    np.testing.assert_array_equal(found[:4], expected[:4])
    np.testing.assert_array_equal(found[8:], expected[8:])
    for shape in ((0x1004, 30), (30, 0x1004)):  # as depth and kind of colour are written
        large = deep_png(np.stack([np.ones(shape), np.full(shape, 65535)], -1))
        ref = bytes_image("large", partial(bytes, large))
        (facts,) = examine([Case("c", (ref,), "q", ("a", "b"))]).values()
        assert (facts.height, facts.width, facts.mode) == (*shape, "LA")


def test_damaged_or_short_chunks_that_no_pixel_depends_on_are_ignored() -> None:
    stored = png(picture(1))
    start = stored.index(b"IDAT") - 4
    crc_wrong = [chunk(name, b"garbage!")[:-4] + bytes(4) for name in (b"gAMA", b"eXIf", b"zzZz")]
    names = (b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"tIME", b"bKGD", b"acTL", b"fcTL", b"fdAT")
    for odd in (*crc_wrong, *(chunk(name, b"\0") for name in names)):
        image = bytes_image("odd", partial(bytes, stored[:start] + odd + stored[start:]))
        assert decode(image).tobytes() == picture(1).tobytes()
    many = stored[:start] + chunk(b"IDAT", b"") * 2**18 + stored[start:]
    with pytest.raises(DataError, match="more than 262,144 chunks"):
        decode(bytes_image("many", partial(bytes, many)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0))
    with pytest.raises(DataError, match=r"more than 67108864 pixels, .*Scale it down"):
        decode(bytes_image("huge", partial(bytes, stored[:8] + header + stored[start:])))


def test_what_tiff_says_of_its_numbers_holds_for_all_kinds_of_them() -> None:
    """White may be 0, also in the other order of bytes, and GDAL's tag may name an integer."""
    signed = (RAMP * 255 - 128).astype(np.int8)
    assert middle_row(tiff(signed, kind=SIGNED, white_is_zero=True)) in (
        [255, 130, 0],
        [255, 129, 0],
    )
    for greys, kind in (
        ((RAMP * 3000 - 1000).astype(np.int16), SIGNED),
        (UNSIGNED_32, 1),
        ((RAMP * 2e9).astype(np.int32), SIGNED),
    ):
        assert middle_row(tiff(greys, kind=kind, white_is_zero=True))[::2] == [255, 0]
    missing = (RAMP * 4000).astype(np.uint16)
    missing[:4] = 9
    missing[missing == 0] = 10
    named = ((42113, 2, 2, b"9\0\0\0"),)
    rows = np.asarray(decode(bytes_image("x", partial(bytes, tiff(missing, more=named)))))[:, :, 0]
    assert (rows[0].max(), rows[24, 0], rows[24, 63]) == (0, 0, 255)
    blank = bytes_image(
        "x", partial(bytes, tiff(with_rows(np.nan), kind=FLOAT, white_is_zero=True))
    )
    shown = np.asarray(decode(blank))[:, :, 0]
    assert (shown[0].max(), shown[24, 0], shown[24, 63]) == (0, 255, 0)


def test_a_tiff_that_would_be_read_wrongly_is_refused() -> None:
    planes = ((284, 3, 1, struct.pack("<HH", 2, 0)),)
    with pytest.raises(DataError, match="in planes"):
        decode(bytes_image("x", partial(bytes, tiff((RAMP * 9).astype(np.uint16), more=planes))))
    with pytest.raises(DataError, match="such as numbers of 64 bits"):
        decode(bytes_image("x", partial(bytes, tiff(RAMP.astype(np.float64), kind=FLOAT))))


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
    for kind, each in (("PNG", 12), ("WEBP", 16)):  # whose decoder holds two frames besides
        small = png(picture(1), format=kind)
        taken = decoding.use_decoded(small, "small", lambda image, mode: decoding._IN_USE.taken)
        assert taken == each * pixels
    with pytest.raises(DataError):
        decoding.use_decoded(b"no image", "none", lambda image, mode: None)
    assert decoding._IN_USE.taken == 0
