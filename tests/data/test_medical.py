"""Medical images: what each conversion gives, on files of the wheels and on written ones."""

from __future__ import annotations

import gzip
import random
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from files import png
from medical_golden import GOLDEN
from medical_samples import (
    DICOM,
    NIFTI,
    RAMP,
    SERIES,
    converted,
    digests,
    item,
    lut,
    pixels,
    write_dicom,
    write_series,
)
from PIL import Image
from pydicom.sequence import Sequence

from medrm.data.decoding import MEMORY_BYTES
from medrm.data.image_references import NO_OPTIONS, file_images
from medrm.data.images import decode
from medrm.data.medical import converter
from medrm.data.medical.conversions import CONVERSIONS, parse_conversion
from medrm.data.medical.converter import medical_kind
from medrm.data.medical.shades import stored_png
from medrm.errors import ConfigError, DataError

ENCODINGS = ("MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless")
"""One picture, stored uncompressed, as RLE, as JPEG 2000 and as JPEG-LS."""


def located(name: str) -> Path:
    return next(root / name for root in (DICOM, SERIES, NIFTI) if (root / name).exists())


def test_every_conversion_gives_the_pixels_that_it_always_gave() -> None:
    """The digests are of the whole PNG files, so that these are the same everywhere as well."""
    assert {key: digests(located(key[0]), key[1]) for key in GOLDEN} == GOLDEN
    assert {name for _, text in GOLDEN for name in [text.split(",")[0]]} == CONVERSIONS.keys()
    assert len({GOLDEN[f"{name}.dcm", "file_window"][0] for name in ENCODINGS}) == 1


def notebook(values: np.ndarray) -> np.ndarray:
    """What high_dimensional_ct_hugging_face.ipynb of MedGemma makes of Hounsfield units."""
    channels = []
    for low, high in ((-1024, 1024), (-135, 215), (0, 80)):
        channel = np.clip(values, low, high).astype(np.float32)
        channel -= low
        channel /= high - low
        channel *= 255.0
        channels.append(channel)
    return np.round(np.stack(channels, axis=-1), 0).astype(np.uint8)


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm"])
def test_medgemma_is_what_its_notebook_computes(name: str) -> None:
    tags = pydicom.dcmread(DICOM / name)
    values = pydicom.pixels.apply_rescale(tags.pixel_array, tags)
    padding = tags.pixel_array == tags.PixelPaddingValue
    expected = notebook(values)
    found = pixels(DICOM / name, "medgemma-1.5-ct")
    np.testing.assert_array_equal(found[~padding], expected[~padding])
    assert not found[padding].any()


def test_frames_are_chosen_as_stated(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", list(range(1, 101)))
    names = [ref.name for ref in converted(folder, "medgemma-1.5-ct")]
    numbers = [round(i / 85 * 99) + 1 for i in range(1, 86)]
    assert names == [f"series, picture {number} of 100" for number in numbers]
    chosen = {"first": 1, "middle": 51, "index:7": 7, "index:999": 100}
    for rule, number in chosen.items():
        (ref,) = converted(folder, f"ct_lung,frames={rule}")
        alone = write_dicom(tmp_path / f"{number}.dcm", RAMP + np.int16(number))
        assert (ref.name, ref.digest[:12]) == (
            f"series, picture {number} of 100",
            *digests(alone, "ct_lung"),
        )


def test_slices_without_numbers_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    plane = [0.0, 1, 0, 0, 0, -1]
    for number, height in enumerate((30, -20, 5)):
        where = {"ImagePositionPatient": [height, 0, 0], "ImageOrientationPatient": plane}
        stored = RAMP + np.int16(height)
        write_dicom(tmp_path / "s" / f"{number}", stored, InstanceNumber=1, **where)
    (tmp_path / "s" / "notes.txt").write_text("no picture")
    expected = [write_dicom(tmp_path / f"{h}.dcm", RAMP + np.int16(h)) for h in (30, 5, -20)]
    found = digests(tmp_path / "s", "ct_lung,frames=all:9")
    assert found == [digest for path in expected for digest in digests(path, "ct_lung")]


def window_oracle(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    tags = item(
        WindowCenter=centre, WindowWidth=width, VOILUTFunction=function, BitsStored=16,
        PhotometricInterpretation="MONOCHROME2", PixelRepresentation=1,
    )  # fmt: skip
    shown = pydicom.pixels.apply_windowing(values, tags)
    return np.rint((shown + 32768) / 65535 * 255)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_of_a_file_is_that_of_the_standard(tmp_path: Path, function: str) -> None:
    asked = {"WindowCenter": [40, 9], "WindowWidth": [350, 2], "VOILUTFunction": function}
    path = write_dicom(tmp_path / "1.dcm", **asked)
    expected = window_oracle(RAMP, 40, 350, function)
    shown = pixels(path, "file_window")
    differing = np.abs(shown - expected)
    assert differing.max() <= 1  # where the oracle's detour over 16 bits rounds a half elsewhere
    assert np.count_nonzero(differing) < 10
    inverted = write_dicom(tmp_path / "2.dcm", PhotometricInterpretation="MONOCHROME1", **asked)
    np.testing.assert_array_equal(pixels(inverted, "file_window"), 255 - shown)


def test_rescaling_lookup_tables_and_padding(tmp_path: Path) -> None:
    table = {"VOILUTSequence": lut([0, 4095, 1024, 2048], -1, 12), "WindowCenter": 0}
    stored = np.array([[-9, -1, 0, 1], [2, 7, 0, 0]], np.int16)
    shown = pixels(write_dicom(tmp_path / "voi.dcm", stored, **table), "file_window")
    assert shown.tolist() == [[0, 0, 255, 64], [128, 128, 255, 255]]
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -10}
    shown = pixels(write_dicom(tmp_path / "scaled.dcm", stored, **scaled), "ct_stroke")
    assert (
        shown.tolist()
        == pixels(write_dicom(tmp_path / "plain.dcm", stored * 2 - 10), "ct_stroke").tolist()
    )
    padded = {"PixelPaddingValue": -9, "PixelPaddingRangeLimit": -5}
    padded["PhotometricInterpretation"] = "MONOCHROME1"
    shown = pixels(write_dicom(tmp_path / "padded.dcm", stored, **padded), "minmax")
    assert shown.tolist() == [[0, 255, 223, 191], [159, 0, 223, 223]]


def test_frames_of_an_enhanced_file_have_their_own_rescaling(tmp_path: Path) -> None:
    def group(intercept: int, centre: int) -> Any:
        values = item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU")
        window = item(WindowCenter=centre, WindowWidth=350)
        return item(
            PixelValueTransformationSequence=Sequence([values]),
            FrameVOILUTSequence=Sequence([window]),
        )

    groups = Sequence([group(0, 40), group(100, 140)])
    tags = {"PerFrameFunctionalGroupsSequence": groups, "RescaleSlope": None}
    stored = np.stack([RAMP, RAMP])
    path = write_dicom(tmp_path / "enhanced.dcm", stored, **tags, RescaleIntercept=None)
    first, second = digests(path, "ct_lung,frames=all:2")
    assert first == digests(write_dicom(tmp_path / "1.dcm", RAMP), "ct_lung")[0]
    assert second == digests(write_dicom(tmp_path / "2.dcm", RAMP + np.int16(100)), "ct_lung")[0]
    same = digests(path, "file_window,frames=all:2")  # other values by another window
    assert same[0] == same[1]


def test_workers_that_have_ended_meanwhile_are_not_asked(tmp_path: Path) -> None:
    waiting = [converter._Worker() for _ in range(4)]
    for worker in waiting[:3]:
        worker._process.kill()
        worker._process.wait()
    waiting[3].ask = lambda *_: None  # type: ignore[method-assign]  # ends while it is asked
    converter._idle[:] = [*converter._idle, *waiting]
    path = write_dicom(tmp_path / "1.dcm", np.stack([RAMP, RAMP + np.int16(7)]))
    asked = parse_conversion("ct_lung,frames=all:2")
    pictures = converter.convert_bytes("dicom", path.read_bytes(), asked, "number 1")
    names = [name for name, _ in pictures]
    assert names == ["number 1, picture 1 of 2", "number 1, picture 2 of 2"]


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "flat.dcm", PixelSpacing=[2, 1])
    assert pixels(path, "ct_lung").shape == (80, 50)
    assert pixels(DICOM / "CT_small.dcm", "ct_lung").shape == (128, 128)


def test_hounsfield_units_are_of_ct_alone(tmp_path: Path) -> None:
    (ref,) = converted(DICOM / "MR_small.dcm", "ct_brain")
    assert "needs Hounsfield units" in str(ref.problem)
    energies = write_dicom(tmp_path / "energies.dcm", RescaleType="Z_EFF")
    assert "needs Hounsfield units" in str(converted(energies, "medgemma-1.5-ct")[0].problem)
    screenshot = write_dicom(tmp_path / "shot.dcm", RescaleSlope=None, RescaleIntercept=None)
    assert "needs Hounsfield units" in str(converted(screenshot, "ct_brain")[0].problem)
    # A mixed set has colour pictures as well: nothing is windowed there.
    assert digests(DICOM / "examples_rgb_color.dcm", "ct_brain")


def volume(path: Path, affine: np.ndarray, **header: Any) -> Path:
    """A volume [R, A, S] of 3 x 4 x 5 in the order of another affine."""
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1]))
    oriented = image.as_reoriented(nibabel.io_orientation(affine))
    nibabel.save(oriented, path)
    return path


def test_a_volume_is_shown_the_same_however_its_axes_run(tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5)
    axial = values[::-1, ::-1, 1].T  # the front on top, the patient's right on the left
    expected = np.rint((axial - axial.min()) / np.ptp(axial) * 255)
    for number, codes in enumerate(("RAS", "LPS", "PIR", "SAL", "ARI")):
        affine = nibabel.orientations.inv_ornt_aff(
            nibabel.orientations.axcodes2ornt(codes), (3, 4, 5)
        )
        path = volume(tmp_path / f"{number}.nii.gz", affine)
        np.testing.assert_array_equal(pixels(path, "minmax,frames=index:2"), expected)
        coronal = pixels(path, "minmax_mr,frames=first,plane=coronal")
        assert coronal.shape == (10, 3)  # its slices are two apart
        assert [coronal[0, 0], coronal[-1, -1]] == [round((59 - 15) / 59 * 255), 0]


REASONS = {
    "MR_truncated.dcm": "pixels are damaged",
    "JPEG-lossy.dcm": "JPEG Extended of 12 bits",
    "JPGExtended.dcm": "pylibjpeg-libjpeg",
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed pixels are damaged",
    "rtplan.dcm": "no picture",
    "test-SR.dcm": "no picture",
    "badVR.dcm": "damaged or cannot be decoded",
}


def test_what_gives_no_picture_says_why(tmp_path: Path) -> None:
    for name, reason in REASONS.items():
        (ref,) = converted(DICOM / name, "minmax")
        assert reason in str(ref.problem), (name, ref.problem)
        with pytest.raises(DataError, match="cannot be converted"):
            decode(ref)
    (ref,) = converted(SERIES / "98892003" / "MR1", "minmax")
    assert "2 series" in str(ref.problem) or "3 series" in str(ref.problem)
    for path in NIFTI.glob("nifti?.hdr"):
        assert converted(path, "minmax")[0].problem


def test_files_without_a_preamble_or_a_syntax_are_read(tmp_path: Path) -> None:
    whole = (DICOM / "CT_small.dcm").read_bytes()
    bare = tmp_path / "bare"
    bare.write_bytes(whole[132:])
    tags = pydicom.dcmread(DICOM / "MR_small_implicit.dcm")
    plain = tmp_path / "plain"
    tags.file_meta = pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(plain, tags, implicit_vr=True, little_endian=True)
    assert digests(bare, "ct_lung") == GOLDEN["CT_small.dcm", "ct_lung"]
    assert digests(plain, "file_window") == GOLDEN["MR_small.dcm", "file_window"]


def test_medical_images_are_known_by_their_content() -> None:
    assert {medical_kind(p.read_bytes()[:1024]) for p in NIFTI.glob("*.nii*")} == {"nifti"}
    images = (png(Image.new("L", (9, 9)), format=kind) for kind in ("PNG", "TIFF", "BMP", "PPM"))
    others = [b"", b"\x08", b"\x1f\x8b", gzip.compress(b"text"), b"\x08\0text in a file", *images]
    assert [medical_kind(content) for content in others] == [None] * len(others)


def test_a_medical_image_needs_a_named_conversion(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--image_conversion with one of file_window"):
        file_images("CT_small.dcm", DICOM, DICOM, NO_OPTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ct_abdomn", "Did you mean 'ct_abdomen'"),
        ("ct_lung@2", "not known"),
        ("ct_lung,frames=all", "all:N"),
        ("ct_lung,frames=all:0", "N from 1"),
        ("ct_lung,frames=index:" + "9" * 5000, "index"),
        ("ct_lung,plane=oblique", "plane="),
        ("ct_lung,window=3", "not accepted"),
        ("", "not known"),
    ],
)
def test_other_words_are_refused(text: str, message: str) -> None:
    if "9" * 5000 in text:
        assert len(str(parse_conversion(text))) < 100
        return
    with pytest.raises(ConfigError, match=message):
        parse_conversion(text)


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "medrm\[dicom\]"'):
        converted(DICOM / "waveform_ecg.dcm", "minmax")


def aborting(scratch: Path) -> Path:
    """A file on which the decoder of lossless JPEG ends its process."""
    content = bytearray((DICOM / "SC_rgb_jpeg_gdcm.dcm").read_bytes())
    generator = random.Random("SC_rgb_jpeg_gdcm104")
    start = max(0, content.rfind(b"\xe0\x7f\x10\x00"))
    for _ in range(generator.choice((1, 1, 3))):
        near = generator.random() < 0.7
        end = min(len(content), start + (600 if near else len(content)))
        content[generator.randrange(start, end)] ^= 1 << generator.randrange(8)
    path = scratch / "aborting.dcm"
    path.write_bytes(content)
    return path


def test_a_decoder_that_ends_its_process_costs_one_image(tmp_path: Path) -> None:
    (ref,) = converted(aborting(tmp_path), "minmax")
    assert ref.problem is not None
    assert digests(DICOM / "CT_small.dcm", "ct_lung") == GOLDEN["CT_small.dcm", "ct_lung"]


def test_a_file_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(converter, "SECONDS", -0.999)
    path = write_dicom(tmp_path / "slow.dcm", np.zeros((300, 40, 50), np.int16))
    (ref,) = converted(path, "minmax_mr")
    assert "seconds to read" in str(ref.problem)


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that claim to be, or become, very large."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((9000, 30000, 9))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (folder / "claims.nii").write_bytes(header.binaryblock + bytes(4) + bytes(100))
    header.set_data_shape((1000, 1000, 250))
    packed = gzip.compress(header.binaryblock + bytes(4) + bytes(2**24))
    (folder / "packed.nii.gz").write_bytes(packed)
    write_dicom(folder / "rows.dcm", Rows=60000, Columns=60000)
    write_dicom(folder / "frames.dcm", NumberOfFrames=2**31 - 1)
    tags = pydicom.dcmread(DICOM / "image_dfl.dcm")
    meta = (DICOM / "image_dfl.dcm").read_bytes()[: 132 + 12 + tags.file_meta[0x00020000].value]
    pack = zlib.compressobj(1, zlib.DEFLATED, -15)
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 2**31)
    body = pack.compress(element) + b"".join(pack.compress(bytes(2**24)) for _ in range(70))
    (folder / "deflated.dcm").write_bytes(meta + body + pack.flush())
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.slow
def test_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    for name, path in bombs(tmp_path).items():
        started = time.monotonic()
        (ref,) = converted(path, "minmax_mr")
        assert ref.problem is not None, name
        assert time.monotonic() - started < 45, name
    assert MEMORY_BYTES == 2**30
    assert digests(DICOM / "CT_small.dcm", "ct_lung") == GOLDEN["CT_small.dcm", "ct_lung"]


def test_a_stored_png_is_what_other_readers_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    for shape in ((300, 256), (7, 5, 3)):
        shades = generator.integers(0, 256, shape, np.uint8)
        (tmp_path / "1.png").write_bytes(stored_png(shades))
        with Image.open(tmp_path / "1.png") as image:
            assert image.mode == ("L" if len(shape) == 2 else "RGB")
            np.testing.assert_array_equal(np.asarray(image), shades)
