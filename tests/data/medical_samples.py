"""Medical images for tests: those in the wheels of pydicom and nibabel, and some written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medrm.data.image_references import ImageOptions, file_images
from medrm.data.medical.conversions import parse_conversion
from medrm.schema import ImageRef

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
SERIES = DICOM / "dicomdirtests"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"

RAMP = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)
"""Hounsfield units of a written file."""


def converted(path: Path, conversion: str) -> tuple[ImageRef, ...]:
    """The pictures of a file or folder."""
    path = path.resolve()
    options = ImageOptions(None, parse_conversion(conversion))
    return file_images(path.name, path.parent, path.parent, options)


def digests(path: Path, conversion: str) -> list[str]:
    """The first characters of the digests of its pictures."""
    refs = converted(path, conversion)
    assert [ref.problem for ref in refs] == [None] * len(refs)
    return [ref.digest[:12] for ref in refs]


def pixels(path: Path, conversion: str) -> np.ndarray:
    """The shades of its only picture as the cache holds them."""
    import io

    from PIL import Image

    (ref,) = converted(path, conversion)
    assert ref.problem is None, ref.problem
    with Image.open(io.BytesIO(ref.read())) as image:
        return np.asarray(image)


def item(**tags: Any) -> Dataset:
    """A dataset of a few tags."""
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def write_dicom(path: Path, stored: np.ndarray = RAMP, **tags: Any) -> Path:
    """Writes a CT of one frame, or of those of the first axis; tags that are None are left out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    is_signed = int(stored.dtype.kind == "i")
    bits = stored.dtype.itemsize * 8
    defaults = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "Modality": "CT",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": is_signed,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    if stored.ndim == 3:
        defaults["NumberOfFrames"] = len(stored)
    dataset = item(**{k: v for k, v in (defaults | tags).items() if v is not None})
    dataset.file_meta = meta
    dataset.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, numbers: list[int], **tags: Any) -> Path:
    """Writes a series whose files are named against the order of their slices."""
    for position, number in enumerate(numbers):
        stored = RAMP + np.int16(number)
        own = {"InstanceNumber": number, "SOPInstanceUID": f"1.2.3.4.{number}"}
        write_dicom(folder / f"{len(numbers) - position}.dcm", stored, **(own | tags))
    return folder


def lut(values: list[int], first: int, bits: int) -> Sequence:
    """A VOI LUT sequence."""
    entry = item(LUTDescriptor=[len(values), first, bits], LUTData=values)
    entry["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    entry["LUTData"].VR = "US"
    return Sequence([entry])
