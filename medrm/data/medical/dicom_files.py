"""Frames of DICOM files, and what a file tells of itself without naming anybody.

Of tags it passes on how pixels are to be shown, keyed hashes of patient and study, and counts; no
value. Overlays are not drawn. It runs in the worker alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medrm.data.medical.conversions import BURNED_IN
from medrm.data.medical.shades import DAMAGE, Frame, UnreadableError, Values, check_size
from medrm.data.pseudonyms import keyed_hash

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_OFTEN_WRITTEN_UPON = ("US", "IVUS", "ES", "XC", "OT", "SC", "OP", "GM", "SM")
"""Modalities whose pictures often hold text."""

_NOBODY = ("", "0", "unknown", "none", "na", "n/a", "patient", "test", "null", "-")
"""Ids that stand for no patient, as do those that begin with `anon`."""


class Position(NamedTuple):
    """A frame that is not decoded yet: its file, and where it stands there, from 0."""

    path: Path
    number: int


@dataclass(frozen=True)
class Header:
    """A DICOM file without its pixels."""

    path: Path
    tags: Any

    @property
    def positions(self) -> list[Position]:
        """All its frames."""
        count = max(1, int(_number(self.tags, "NumberOfFrames") or 1))
        return [Position(self.path, index) for index in range(min(count, 10**6))]


def read_header(path: Path) -> Header:
    """Returns a file without its pixels.

    Raises:
        UnreadableError: it is damaged, or holds no picture.
    """
    from pydicom import dcmread

    try:
        tags = dcmread(_with_preamble(path), stop_before_pixels=True, force=True)
    except DAMAGE as error:
        raise UnreadableError(f"its header is damaged ({type(error).__name__})") from error
    rows, columns = _number(tags, "Rows"), _number(tags, "Columns")
    if not rows or not columns:
        raise UnreadableError("it holds no picture")
    check_size(int(rows), int(columns))
    return Header(path, tags)


def _with_preamble(path: Path) -> Path | BytesIO:
    """Returns a file as pydicom reads it: one that starts at `DICM` with the preamble it lacks."""
    with path.open("rb") as file:
        if file.read(4) != b"DICM":
            return path
    return BytesIO(bytes(128) + path.read_bytes())


def in_order(headers: Sequence[Header]) -> list[Header]:
    """Returns the files of one series in the order of their slices.

    That is by instance number, as MedGemma sorts them; where two have the same or one has none, by
    their position along the normal of the slices; else as their names are sorted.

    Raises:
        UnreadableError: they are of several series.
    """
    series = {_text(header.tags, "SeriesInstanceUID") for header in headers}
    if len(series) > 1:
        raise UnreadableError(
            f"it holds {len(series)} series of pictures; give a folder that holds one"
        )
    for rank in (partial(_number, keyword="InstanceNumber"), _height):
        ranks = [rank(header.tags) for header in headers]
        if None not in ranks and len({*ranks}) == len(ranks):
            return [header for _, header in sorted(zip(ranks, headers, strict=True), key=_first)]
    return list(headers)


def _first(ranked: tuple[Any, Header]) -> float:
    return float(ranked[0])


def _height(tags: Any) -> float | None:
    """Returns where a slice lies along the normal of its plane."""
    origin, axes = _numbers(tags, "ImagePositionPatient"), _numbers(tags, "ImageOrientationPatient")
    if len(origin) != 3 or len(axes) != 6:
        return None
    return float(np.dot(np.cross(axes[:3], axes[3:]), origin))


class FrameReader:
    """Decodes frames of files; the file that was read last is kept."""

    def __init__(self) -> None:
        self._last: tuple[Path, Any] | None = None

    def frame(self, position: Position) -> Frame:
        """Returns a frame.

        Raises:
            UnreadableError: its pixels are missing, damaged, or compressed in a way that no
                installed decoder reads.
        """
        if self._last is None or self._last[0] != position.path:
            self._last = None  # two at once would take twice the memory
            self._last = position.path, _with_syntax(position.path)
        tags = self._last[1]
        try:
            return _frame(tags, position.number)
        except DAMAGE as error:
            raise UnreadableError(_why(tags, error)) from error


def _with_syntax(path: Path) -> Any:
    """Returns a whole file; where its header does not say how it is encoded, as it was read."""
    from pydicom import dcmread, uid
    from pydicom.dataset import FileMetaDataset

    try:
        tags = dcmread(_with_preamble(path), force=True)
    except DAMAGE as error:
        raise UnreadableError(f"it is damaged ({type(error).__name__})") from error
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {*tags.dir("Pixel")}:
        raise UnreadableError("it holds no pixels")
    meta = getattr(tags, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        is_implicit, is_little = tags.original_encoding
        explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit
        tags.file_meta = meta
    return tags


def _why(tags: Any, error: Exception) -> str:
    """Returns why pixels cannot be decoded, in words that hold no value of a tag."""
    syntax = tags.file_meta.TransferSyntaxUID
    if syntax == _JPEG_EXTENDED and _number(tags, "BitsStored") != 8:
        return (
            "it is JPEG Extended of 12 bits, which no decoder that medrm installs reads; with the "
            "packages pylibjpeg and pylibjpeg-libjpeg it is read"
        )
    compressed = "compressed " if syntax.is_compressed and not syntax.is_deflated else ""
    return f"its {compressed}pixels are damaged or cannot be decoded ({type(error).__name__})"


def _frame(tags: Any, index: int) -> Frame:
    """Decodes a frame; raises what the decoders raise."""
    from pydicom.pixels import apply_color_lut, get_decoder

    decoder, below = get_decoder(tags.file_meta.TransferSyntaxUID), _bits_below(tags)
    above = {"bits_stored": tags.BitsStored + below} if below else {}
    stored, about = decoder.as_array(tags, index=index, **above)
    stored = stored >> below if below else stored
    aspect = _aspect(tags, index)
    if tags.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, tags)
        return Frame(_in_bytes(colours, _palette_bits(tags)), aspect=aspect)
    if stored.ndim == 3:
        bits = int(about["bits_stored"]) - below
        return Frame(_in_bytes(stored[:, :, :3], bits), aspect=aspect)
    own_window, own_window_name = _own_window(tags, index)
    return Frame(
        stored,
        _values_of(tags, index),
        _is_hounsfield(tags, index),
        tags.PhotometricInterpretation == "MONOCHROME1",
        own_window,
        own_window_name,
        aspect,
    )


def _bits_below(tags: Any) -> int:
    """Returns how many bits lie below those of a pixel, which may hold an overlay.

    Files of before 2014 may have pixels in the upper bits; pydicom takes the lower ones. Decoders
    of compressed pixels give the pixels alone.
    """
    syntax = tags.file_meta.TransferSyntaxUID
    high, bits = _number(tags, "HighBit"), _number(tags, "BitsStored")
    allocated = _number(tags, "BitsAllocated") or 0
    if syntax.is_encapsulated or high is None or bits is None or high >= allocated:
        return 0
    return max(0, int(high + 1 - bits))


def _palette_bits(tags: Any) -> int:
    """Returns of how many bits the colours of a palette are.

    Some files keep colours of 8 bits in tables of 16, where their numbers tell.
    """
    from pydicom.pixels import apply_color_lut

    count, first, bits = (int(number) for number in tags.RedPaletteColorLookupTableDescriptor)
    if bits == 8:
        return 8
    indices = np.arange(first, first + (count or 2**16))
    return 16 if int(apply_color_lut(indices, tags).max()) > 255 else 8


def _is_hounsfield(tags: Any, index: int) -> bool:
    """Returns whether values are in Hounsfield units, as far as the file can tell.

    A CT states how they follow from its pixels; a picture of one, such as a secondary capture, does
    not.
    """
    sequence = "PixelValueTransformationSequence"
    kind = str(_of_frame(tags, index, sequence, "RescaleType") or "HU")
    stated = _of_frame(tags, index, sequence, "RescaleIntercept") is not None
    is_rescaled = stated or bool(tags.get("ModalityLUTSequence"))
    return _text(tags, "Modality") in ("CT", "") and kind in ("HU", "US") and is_rescaled


def _in_bytes(colours: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Returns colours of any depth in 8 bits."""
    spread = colours if bits == 8 else np.rint(colours * (255 / (2**bits - 1))).clip(0, 255)
    in_bytes: NDArray[np.uint8] = spread.astype(np.uint8)
    return in_bytes


def _values_of(tags: Any, index: int) -> Callable[[NDArray[Any]], Values]:
    """Returns what gives the values of stored pixels: the modality LUT, or the rescaling.

    Padding, which `PixelPaddingValue` names, is no number.
    """
    from pydicom.pixels import apply_modality_lut

    sequence = "PixelValueTransformationSequence"
    slope, intercept = (
        _number_of_frame(tags, index, sequence, f"Rescale{name}") for name in ("Slope", "Intercept")
    )
    has_table = slope is None and bool(tags.get("ModalityLUTSequence"))
    padding = _numbers(tags, "PixelPaddingValue")
    limits = sorted((*padding[:1], *(_numbers(tags, "PixelPaddingRangeLimit") or padding)[:1]))

    def values_of(stored: NDArray[Any]) -> Values:
        table = apply_modality_lut(stored, tags) if has_table else stored
        values = table.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
        if limits:
            values[(stored >= limits[0]) & (stored <= limits[-1])] = np.nan
        return values

    return values_of


def _own_window(tags: Any, index: int) -> tuple[Callable[[Values], Values] | None, str]:
    """Returns how the file says that values be shown, and what that is: its LUT, or first window.

    Source: DICOM PS3.3 C.11.2.1.
    """
    if tags.get("VOILUTSequence"):
        return _voi_lut(tags), "VOI LUT of the file"
    sequence = "FrameVOILUTSequence"
    centre = _number_of_frame(tags, index, sequence, "WindowCenter")
    width = _number_of_frame(tags, index, sequence, "WindowWidth")
    function = str(_of_frame(tags, index, sequence, "VOILUTFunction") or "LINEAR")
    least = 1.0 if function == "LINEAR" else 1e-9
    if centre is None or width is None or width < least:
        return None, ""
    if function == "SIGMOID":
        return lambda v: 1 / (1 + np.exp(np.clip(-4 * (v - centre) / width, -700, 700))), _WINDOW
    if function == "LINEAR_EXACT":
        return lambda v: (v - centre) / width + 0.5, _WINDOW
    if width == 1:
        return lambda v: (v > centre - 0.5).astype(np.float64), _WINDOW
    return lambda v: (v - (centre - 0.5)) / (width - 1) + 0.5, _WINDOW


_WINDOW = "window of the file"


def _voi_lut(tags: Any) -> Callable[[Values], Values]:
    """Returns what looks values up in the first VOI LUT, as shares of its greatest number."""
    from pydicom.pixels import apply_voi

    entry = tags.VOILUTSequence[0]
    size, first, bits = (int(number) for number in entry.LUTDescriptor)
    last = first + (size or 2**16) - 1

    def shares(values: Values) -> Values:
        whole = np.rint(np.nan_to_num(values, nan=first)).clip(first, last).astype(np.int64)
        looked_up: Values = apply_voi(whole, tags).astype(np.float64) / (2**bits - 1)
        return looked_up

    return shares


def _aspect(tags: Any, index: int) -> float:
    """Returns the height of a pixel over its width; 1 where nothing is said of it."""
    spacing = _as_numbers(_of_frame(tags, index, "PixelMeasuresSequence", "PixelSpacing"))
    for stated in (
        spacing, _numbers(tags, "ImagerPixelSpacing"), _numbers(tags, "PixelAspectRatio")
    ):  # fmt: skip
        if len(stated) == 2 and min(stated) > 0:
            return stated[0] / stated[1]
    return 1.0


def _of_frame(tags: Any, index: int, sequence: str, keyword: str) -> Any:
    """Returns a value that an enhanced file states of a frame or of all, and others of the file."""
    groups = list(tags.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1]
    groups += list(tags.get("SharedFunctionalGroupsSequence") or ())[:1]
    for group in groups:
        for item in list(group.get(sequence) or ())[:1]:
            if keyword in item:
                return item.get(keyword)
    return tags.get(keyword)


def _number_of_frame(tags: Any, index: int, sequence: str, keyword: str) -> float | None:
    return next(iter(_as_numbers(_of_frame(tags, index, sequence, keyword))), None)


def _as_numbers(value: Any) -> list[float]:
    """Returns the finite numbers of a value that may be one, several, or none."""
    values = (
        value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    )
    try:
        numbers = [float(number) for number in values]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _numbers(tags: Any, keyword: str) -> list[float]:
    """Returns the numbers of a tag; none where it is not there or is damaged."""
    try:
        return _as_numbers(tags.get(keyword))
    except DAMAGE:
        return []


def _number(tags: Any, keyword: str) -> float | None:
    return next(iter(_numbers(tags, keyword)), None)


def _text(tags: Any, keyword: str) -> str:
    """Returns a tag as text; empty where it is not there or is damaged."""
    try:
        return str(tags.get(keyword) or "").strip()
    except DAMAGE:
        return ""


def cluster_hashes(tags: Any, salt: bytes) -> list[str]:
    """Returns keys of the patient and of the study, from which nobody can tell them.

    Args:
        tags: of a file.
        salt: the key of the hashes.
    """
    patient = _text(tags, "PatientID")
    is_somebody = patient.casefold() not in _NOBODY and not patient.casefold().startswith("anon")
    issued = f"{_text(tags, 'IssuerOfPatientID')}\0{patient}" if is_somebody else ""
    ids = {"patient": issued, "study": _text(tags, "StudyInstanceUID")}
    return [f"{name}:dicom-{keyed_hash(name, text, salt)}" for name, text in ids.items() if text]


def risks_of(tags: Any) -> list[str]:
    """Returns what in a file may show who somebody is, without a value."""
    burned_in = _text(tags, "BurnedInAnnotation")
    is_captured = _text(tags, "SOPClassUID").startswith(_SECONDARY_CAPTURE)
    risks = {
        BURNED_IN: burned_in == "YES",
        f"{BURNED_IN} is not ruled out": burned_in not in ("YES", "NO")
        and (is_captured or _text(tags, "Modality") in _OFTEN_WRITTEN_UPON),
        "secondary capture": is_captured or "ConversionType" in tags,
        "recognisable features": _text(tags, "RecognizableVisualFeatures") == "YES",
    }
    return [risk for risk, applies in risks.items() if applies]


def private_tags(tags: Any) -> int:
    """Returns how many private tags a file has at its top level; none is read."""
    return sum(tag.is_private for tag in tags.keys())  # noqa: SIM118  # which would read values
