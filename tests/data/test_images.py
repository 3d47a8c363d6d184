from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from files import picture, png
from PIL import Image

from medrm.data import image_references, images
from medrm.data.image_references import file_images
from medrm.data.images import (
    bytes_image,
    decode,
    examine,
    image_problem,
    perceptual_hash,
)
from medrm.errors import DataError
from medrm.schema import Case, ImageRef


def stored(data: bytes, name: str = "image") -> ImageRef:
    return bytes_image(name, partial(bytes, data))


def case(*refs: ImageRef) -> Case:
    return Case("c1", refs, "q", ("a", "b"), cluster="kept")


def pixels(image: Image.Image, **options) -> np.ndarray:
    return np.asarray(decode(stored(png(image, **options))))


def test_deep_grey_is_spread_over_its_range():
    values = np.array([[1000, 1500], [1500, 2000]], dtype=np.uint16)
    expected = [[0, 128], [128, 255]]
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        found = pixels(image, format="TIFF")
        assert found.shape == (2, 2, 3)
        assert found[..., 0].tolist() == expected
    assert pixels(Image.fromarray(np.full((2, 2), 7, np.uint16))).max() == 0


def test_alpha_and_palette_are_put_on_white():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert pixels(clear).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(palette).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(palette, transparency=0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(mode):
    kind = {"format": "TIFF"} if mode == "CMYK" else {}
    assert pixels(picture(1).convert(mode), **kind).shape == (20, 24, 3)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pixels(picture(1), format="JPEG", exif=exif, quality=95)
    assert turned.shape == (24, 20, 3)


def test_damaged_images_are_data_errors():
    whole = png(picture(1))
    header = bytearray(whole)
    header[20] ^= 255
    for data in (b"", b"no image", whole[: len(whole) // 2], bytes(header), b"%!PS-Adobe-3.0 EPSF"):
        with pytest.raises(DataError, match="cannot be decoded"):
            decode(stored(data))


def test_sizes_are_bounded_before_pixels_are_decoded(monkeypatch):
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    with pytest.raises(DataError, match="9000 x 9000 pixels; at most"):
        decode(stored(huge.getvalue()))
    with pytest.raises(DataError, match="one side may be less than 200 times"):
        decode(stored(png(Image.new("L", (400, 2)))))
    monkeypatch.setattr(images, "MAX_STORED_BYTES", 10)
    assert "larger than 10 bytes" in stored(png(picture(1))).problem


def test_file_too_large_and_folders_are_problems(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    assert "no file" in file_images("folder", tmp_path)[0].problem
    (tmp_path / "1.png").write_bytes(b"0123456789ab")
    monkeypatch.setattr(image_references, "MAX_STORED_BYTES", 10)
    assert "larger than" in file_images("1.png", tmp_path)[0].problem


def test_loops_of_links_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError):
        decode(file_images("a", tmp_path)[0])


def test_each_distinct_image_is_examined_once():
    reads = []

    def read(data: bytes) -> bytes:
        reads.append(data)
        return data

    good = bytes_image("good", partial(read, png(picture(1))))
    bad = stored(b"no image", "bad")
    missing = ImageRef("missing", "", bytes, "there is no file")
    reads.clear()
    steps = []
    facts = examine([case(good), case(good, bad), case(missing)], lambda *step: steps.append(step))
    assert len(reads) == 1
    assert steps == [(1, 2), (2, 2)]
    assert (facts[good.digest].width, facts[good.digest].height) == (24, 20)
    assert image_problem(good, facts) is None
    assert "cannot be decoded" in image_problem(bad, facts)
    assert "there is no file" in image_problem(missing, facts)


def test_pixel_digest_is_of_pixels_and_size():
    same = [png(picture(1)), png(picture(1), format="BMP")]
    facts = examine([case(stored(data)) for data in same])
    assert len(facts) == 2
    assert len({fact.pixel_digest for fact in facts.values()}) == 1
    grey = [Image.new("L", size) for size in ((4, 9), (9, 4))]
    other = examine([case(stored(png(image))) for image in grey])
    assert len({fact.pixel_digest for fact in other.values()}) == 2


def test_perceptual_hash_survives_compression_and_tells_pictures_apart():
    whole = picture(1, (200, 160))
    squeezed = Image.open(io.BytesIO(png(whole.resize((100, 80)), format="JPEG", quality=60)))
    near = perceptual_hash(whole) ^ perceptual_hash(squeezed)
    far = perceptual_hash(whole) ^ perceptual_hash(picture(2, (200, 160)))
    assert near.bit_count() <= 4
    assert far.bit_count() > 10
    uniform = {perceptual_hash(Image.new("L", (50, 50), grey)) for grey in (1, 100, 101, 255)}
    assert len(uniform) == 1
