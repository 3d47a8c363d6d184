"""Slices of NIfTI volumes, as radiologists look at them; runs in the worker alone.

A volume is cut along one of the body's axes, to which its own axes are closest; nothing is
interpolated but pixels that are not square. Of several volumes the first is taken.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from medrm.data.medical.shades import DAMAGE, Frame, UnreadableError, Values, check_size

MOST_UNPACKED = 2**30
"""Bytes of a volume."""

_HEADERS = {348: "Nifti1Header", 540: "Nifti2Header"}
"""Size of a header, which it states first, to nibabel's name of its class."""

_CHUNK = 2**20

_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Plane to axes of the body, 0 towards the right, 1 to the front, 2 to the head: the one that is
cut, and those of rows and columns, which are shown from their far end: the head or the front on
top, the patient's right or front on the left."""


@dataclass(frozen=True)
class Volume:
    """A volume whose values are read slice by slice.

    Attributes:
        voxels: nibabel's proxy of three axes.
        order: the axis of the voxels that is cut, and those that become rows and columns.
        flips: whether each of these runs against the direction in which it is counted or shown.
        window: `cal_min` and `cal_max` of the header; None: it states none.
        aspect: height of a pixel over its width.
        is_placed: whether the header says how the volume lies in the body.
    """

    voxels: Any
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    window: tuple[float, float] | None
    aspect: float
    is_placed: bool

    @property
    def count(self) -> int:
        """How many slices it has."""
        return int(self.voxels.shape[self.order[0]])

    def frame(self, index: int) -> Frame:
        """Returns a slice, counted from the left, the back or the feet of the patient.

        Raises:
            UnreadableError: the file is truncated or damaged.
        """
        cut, *_ = self.order
        where: list[Any] = [slice(None)] * 3
        where[cut] = self.count - 1 - index if self.flips[0] else index
        try:
            stored = np.asarray(self.voxels[tuple(where)])
        except DAMAGE as error:
            raise UnreadableError(f"its voxels are damaged ({type(error).__name__})") from error
        if self.order[1] > self.order[2]:
            stored = stored.T
        stored = stored[:: -1 if self.flips[1] else 1, :: -1 if self.flips[2] else 1]
        if stored.dtype.names is not None:
            colours = [stored[name] for name in ("R", "G", "B")]
            return Frame(np.stack(colours, -1).astype(np.uint8), aspect=self.aspect)
        window, name = self.window, "window of the file (cal_min and cal_max)"
        own = None if window is None else (lambda v: (v - window[0]) / (window[1] - window[0]))
        return Frame(stored, _floats, own_window=own, own_window_name=name, aspect=self.aspect)


def _floats(stored: Any) -> Values:
    values: Values = stored.astype(np.float64)
    return values


def open_volume(path: Path, scratch: Path, plane: str) -> Volume:
    """Returns the first volume of a file.

    Args:
        path: of the file, which may be packed with gzip.
        scratch: a file to unpack it into.
        plane: in which it is cut.

    Raises:
        UnreadableError: it is damaged, too large, or of voxels that are no shades.
    """
    from nibabel.spatialimages import HeaderDataError

    try:
        with _opened(path) as file:
            header = _header(file.read(max(_HEADERS)))
        return _volume(header, path, scratch, plane)
    except (*DAMAGE, HeaderDataError) as error:
        raise UnreadableError(f"it is damaged ({type(error).__name__})") from error


def _opened(path: Path) -> BinaryIO:
    """Opens a file, unpacked where it is packed with gzip."""
    return cast("BinaryIO", gzip.open(path)) if _is_packed(path) else path.open("rb")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _header(start: bytes) -> Any:
    """Returns the header that a file starts with."""
    import nibabel

    sizes = [int.from_bytes(start[:4], order) for order in ("little", "big")]
    size = next((size for size in sizes if size in _HEADERS), None)
    if size is None or len(start) < size:
        raise UnreadableError("its header is damaged")
    header = getattr(nibabel, _HEADERS[size])(start[:size], check=False)
    if bytes(header["magic"].item())[:3] == b"ni1":
        raise UnreadableError("it is one of two files, .hdr and .img; save it as one, .nii")
    return header


def _volume(header: Any, path: Path, scratch: Path, plane: str) -> Volume:
    """Returns the first volume of a file with a header; raises what nibabel does."""
    from nibabel.affines import voxel_sizes
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.orientations import io_orientation

    shape = (*map(int, header.get_data_shape()), 1, 1, 1)[:3]
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    if min(shape) < 1 or dtype.kind not in "iufV":
        raise UnreadableError("its voxels are no shades and no colours")
    length = offset + dtype.itemsize * math.prod(shape)
    if length > MOST_UNPACKED:
        raise UnreadableError(f"its volume has more than {MOST_UNPACKED} bytes")
    directions = io_orientation(header.get_best_affine())
    if np.isnan(directions).any():
        raise UnreadableError("its header places it in no plane of the body")
    voxel_axis = {int(axis): number for number, axis in enumerate(directions[:, 0])}
    cut, rows, columns = (voxel_axis[axis] for axis in _AXES[plane])
    toward = directions[:, 1]
    check_size(shape[rows], shape[columns])
    low, high = (float(header[name]) for name in ("cal_min", "cal_max"))
    is_placed = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    zooms = [abs(float(zoom)) for zoom in (*header.get_zooms(), 1, 1, 1)[:3]]
    if is_placed:  # of a volume placed by its sform these may be others, which count
        zooms = list(map(float, voxel_sizes(header.get_best_affine())))
    return Volume(
        ArrayProxy(
            _plain(path, scratch, length), (shape, dtype, offset, *header.get_slope_inter()),
            mmap=False,
        ),
        (cut, rows, columns),
        (bool(toward[cut] < 0), bool(toward[rows] > 0), bool(toward[columns] > 0)),
        (low, high) if math.isfinite(high - low) and high > low else None,
        zooms[rows] / zooms[columns] if zooms[columns] else 1.0,
        is_placed,
    )  # fmt: skip


def _plain(path: Path, scratch: Path, length: int) -> BinaryIO:
    """Opens a file that is not packed, of which so many bytes are needed."""
    opened = _opened(path)
    if not _is_packed(path):
        return opened
    with opened, scratch.open("wb") as plain:
        while length > 0 and (chunk := opened.read(min(length, _CHUNK))):
            plain.write(chunk)
            length -= len(chunk)
    return scratch.open("rb")
