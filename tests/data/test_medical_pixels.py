"""Pixels of medical images against other people's functions: those of pydicom and of nibabel."""

from __future__ import annotations

import io
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from medical_samples import DICOM, RAMP, converted, lut, pixels, write_dicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

UNREADABLE = {"JPEG-lossy.dcm", "JPGExtended.dcm", "MR_truncated.dcm", "badVR.dcm"}
UNREADABLE |= {"JPEG2000-embedded-sequence-delimiter.dcm"}
NOT_SQUARE = {"6293", "6924"}


def pictures(path: Path, conversion: str) -> list[np.ndarray]:
    refs = converted(path, conversion)
    assert [ref.problem for ref in refs] == [None] * len(refs)
    return [np.asarray(Image.open(io.BytesIO(ref.read()))) for ref in refs]


def spread(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) * (255 / (high - low)) if high > low else np.zeros(values.shape)


def shown_by_pydicom(tags: Any, stored: np.ndarray) -> np.ndarray:
    """A frame as the standard says (PS3.3 C.11), by pydicom's functions or in plain numpy."""
    kind = tags.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, tags).astype(float)
        return colours * 255 / 65535 if colours.max() > 255 else colours
    if tags.SamplesPerPixel == 3:
        return stored.astype(float) * (255 / (2**tags.BitsStored - 1))
    values = apply_modality_lut(stored, tags)
    if tags.get("VOILUTSequence"):
        bits = tags.VOILUTSequence[0].LUTDescriptor[2]
        shades = apply_voi(values.astype(int), tags) * (255 / (2**bits - 1))
    elif "WindowWidth" in tags:
        centre, width = (
            float(pydicom.multival.MultiValue(float, np.atleast_1d(tags[name].value))[0])
            for name in ("WindowCenter", "WindowWidth")
        )
        shades = np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    else:
        padding = stored == tags.get("PixelPaddingValue")
        shades = spread(np.where(padding, np.nan, values.astype(float)))
    shades = 255 - shades if kind == "MONOCHROME1" else shades
    return np.where(stored == tags.get("PixelPaddingValue"), 0, shades)


@pytest.mark.slow
def test_every_file_of_pydicoms_wheel_is_shown_as_its_functions_show_it() -> None:
    read = set()
    for path in sorted(DICOM.rglob("*")):
        if path.suffix not in (".dcm", "") or not path.is_file() or path.name in NOT_SQUARE:
            continue
        tags = pydicom.dcmread(path, force=True)
        if "Rows" not in tags or path.name in UNREADABLE:
            continue
        frames = tags.pixel_array
        count = int(tags.get("NumberOfFrames") or 1)
        found = pictures(path, "file_window,frames=all:1000")
        assert len(found) == count
        for shades, stored in zip(found, frames if count > 1 else [frames], strict=True):
            expected = np.rint(shown_by_pydicom(tags, stored))
            np.testing.assert_allclose(shades, expected, atol=1, err_msg=path.name)
        read.add(tags.file_meta.TransferSyntaxUID.name)
    assert len(read) >= 11


def test_pixels_in_the_upper_bits_are_read_without_what_lies_below(tmp_path: Path) -> None:
    """As files of before 2014 have them, with an overlay in a bit that no pixel uses."""
    overlay = (np.arange(RAMP.size).reshape(RAMP.shape) % 3 == 0).astype(np.uint16)
    window = {"WindowCenter": 1000, "WindowWidth": 900, "BitsStored": 12}
    for values, kind in ((RAMP + np.int16(1000), 0), (RAMP, 1)):
        low = values.view(np.uint16) & np.uint16(0xFFF)
        tags = window | {"PixelRepresentation": kind}
        plain = write_dicom(tmp_path / "plain.dcm", values, **window | {"BitsStored": 16})
        upper = write_dicom(tmp_path / "upper.dcm", low << 4 | overlay, HighBit=15, **tags)
        lower = write_dicom(tmp_path / "lower.dcm", low | overlay << 12, HighBit=11, **tags)
        for path in (upper, lower):
            shown = pixels(path, "file_window")
            np.testing.assert_array_equal(shown, pixels(plain, "file_window"))


def test_a_dark_frame_of_a_deep_palette_stays_dark(tmp_path: Path) -> None:
    def with_palette(name: str, table: np.ndarray) -> Path:
        path = write_dicom(
            tmp_path / name, indices, PhotometricInterpretation="PALETTE COLOR", BitsStored=8
        )
        tags = pydicom.dcmread(path)
        for colour in ("Red", "Green", "Blue"):
            keyword = f"{colour}PaletteColorLookupTable"
            setattr(tags, f"{keyword}Descriptor", [len(table), 0, 16])
            tags[f"{keyword}Descriptor"].VR = "US"
            setattr(tags, f"{keyword}Data", table.astype("<u2").tobytes())
        tags.save_as(path)
        return path

    indices = np.array([[0, 1], [2, 3]], np.uint8)
    deep = with_palette("deep.dcm", np.array([0, 100, 200, 250, 65535]))
    assert pixels(deep, "file_window")[:, :, 0].tolist() == [[0, 0], [1, 1]]
    narrow = with_palette("narrow.dcm", np.array([0, 100, 200, 250, 255]))
    assert pixels(narrow, "file_window")[:, :, 0].tolist() == [[0, 100], [200, 250]]


def test_a_lookup_table_comes_before_a_window_and_the_inversion_after_it(tmp_path: Path) -> None:
    squares = [int(share) for share in np.linspace(0, 1, 256) ** 2 * 65535]
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tags = {"VOILUTSequence": lut(squares, 0, 16), "WindowCenter": 3, "WindowWidth": 9}
    expected = np.rint(np.array(squares)[stored] * (255 / 65535))
    plain = pixels(write_dicom(tmp_path / "2.dcm", stored, **tags), "file_window")
    np.testing.assert_array_equal(plain, expected)
    tags["PhotometricInterpretation"] = "MONOCHROME1"
    inverted = pixels(write_dicom(tmp_path / "1.dcm", stored, **tags), "file_window")
    np.testing.assert_array_equal(inverted, 255 - plain)
    for width in (0, 0.5, -5):  # no window, which the standard forbids
        odd = write_dicom(tmp_path / "odd.dcm", WindowCenter=9, WindowWidth=width)
        np.testing.assert_array_equal(pixels(odd, "file_window"), np.rint(spread(RAMP * 1.0)))
    step = write_dicom(tmp_path / "step.dcm", WindowCenter=9, WindowWidth=1)
    np.testing.assert_array_equal(pixels(step, "file_window"), np.where(RAMP > 8.5, 255, 0))


def test_volumes_lie_as_nibabel_turns_them(tmp_path: Path) -> None:
    """In a third of the 48 ways in which axes can lie, one plane after the other."""
    volume = np.random.default_rng(0).integers(-500, 1500, (7, 9, 11)).astype(np.int16)
    planes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
    ways = [*product(permutations(range(3)), product((1, -1), repeat=3))]
    for number, (axes, signs) in enumerate(ways[::3]):
        affine = np.eye(4)
        affine[:3, :3] = 0
        affine[list(axes), range(3)] = signs
        affine[:3, 3] = (5, -7, 3)
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(volume, affine), path)
        plane = [*planes][number % 3]
        body = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        slices = np.transpose(body, planes[plane])[:, ::-1, ::-1]
        found = pictures(path, f"minmax_mr,frames=all:20,plane={plane}")
        np.testing.assert_allclose(found, np.rint(spread(slices.astype(float))), atol=1)


def test_sizes_of_voxels_are_those_of_what_places_a_volume(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((7, 9, 11), np.int16), np.diag([1, 1, 3, 1]))
    image.header["pixdim"][1:4] = 1
    image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "1.nii")
    shapes = [pixels(tmp_path / "1.nii", f"minmax,plane={p}").shape for p in ("axial", "coronal")]
    assert shapes == [(9, 7), (33, 7)]
