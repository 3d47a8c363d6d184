"""The process that reads medical images: decoders of foreign files may end it, or take too much.

    python -m medrm.data.medical.worker

It reads requests from its standard input, a line of JSON each, writes pictures into the folder that
a request names, and answers with a line. It holds no tag and says none: reasons are words of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from medrm.data.medical import dicom_files, nifti_files
from medrm.data.medical.conversions import ImageConversion, parse_conversion
from medrm.data.medical.shades import (
    Frame,
    UnreadableError,
    picture_of,
    stored_png,
    value_range,
)

IDLE_S = 60
"""Seconds without a request after which the process ends."""

_STATISTICS = Path("/proc/self/statm")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the pictures of a request; returns what is known of them, or why there are none.

    Args:
        request: `paths` of one file or of a series, their `kind`, the `conversion`, the `folder` to
            write into, the `salt` of hashes in hex and the `memory` that may be taken.
    """
    paths, folder = list(map(Path, request["paths"])), Path(request["folder"])
    asked = parse_conversion(request["conversion"])
    try:
        if request["kind"] == "nifti":
            return _of_volume(paths[0], folder, asked)
        return _of_dicom(paths, folder, asked, bytes.fromhex(request["salt"]))
    except UnreadableError as error:  # what a decoder raised may come of too little memory
        return {"problem": str(error), "is_sure": error.__cause__ is None}
    except MemoryError:
        return {"problem": f"it takes more than {request['memory'] >> 20} MiB of memory to read"}
    except Exception as error:  # of a decoder; its words may hold what stands in a tag
        return {"problem": f"it cannot be read ({type(error).__name__})"}


def _of_volume(path: Path, folder: Path, asked: ImageConversion) -> dict[str, Any]:
    scratch = folder / "unpacked"
    try:
        volume = nifti_files.open_volume(path, scratch, asked.plane)
        frames = list(range(volume.count))
        about = _written(frames, volume.frame, folder, asked)
    finally:
        scratch.unlink(missing_ok=True)
    placed = [] if volume.is_placed else ["orientation not stated"]
    return {**about, "kind": "NIfTI", "notes": placed}


def _of_dicom(
    paths: Sequence[Path], folder: Path, asked: ImageConversion, salt: bytes
) -> dict[str, Any]:
    headers = dicom_files.in_order([_header(path, len(paths)) for path in paths])
    positions = [position for header in headers for position in header.positions]
    about = _written(positions, dicom_files.FrameReader().frame, folder, asked)
    tags = [header.tags for header in headers]
    return {
        **about,
        "kind": "DICOM" if len(paths) == 1 else "DICOM series",
        "risks": sorted({risk for of_file in tags for risk in dicom_files.risks_of(of_file)}),
        "private_tags": sum(map(dicom_files.private_tags, tags)),
        "independent": sorted({key for t in tags for key in dicom_files.cluster_hashes(t, salt)}),
    }


def _header(path: Path, count: int) -> dicom_files.Header:
    try:
        return dicom_files.read_header(path)
    except UnreadableError as error:
        if count == 1:
            raise
        raise UnreadableError(f"of its {count} files one cannot be read: {error}") from error


def _written(positions: Sequence[Any], read: Any, folder: Path, asked: ImageConversion) -> Any:
    """Writes the pictures of the chosen frames; returns which these are, and how they were made."""
    whole = _range(map(read, positions)) if asked.conversion.spread == "acquisition" else None
    pictures: list[list[Any]] = []
    made: list[str] = []
    for index in asked.frames.chosen(len(positions)):
        shades, how = picture_of(read(positions[index]), asked.conversion, whole)
        content, name = stored_png(shades), f"{len(pictures):04d}.png"
        (folder / name).write_bytes(content)
        pictures.append([name, index + 1, hashlib.sha256(content).hexdigest()])
        made.append(how)
    return {"pictures": pictures, "frames": len(positions), "made": made}


def _range(frames: Iterator[Frame]) -> tuple[float, float] | None:
    """Returns the least and the greatest value of all frames."""
    ends = [end for end in map(value_range, frames) if end is not None]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _bound(most: int) -> None:
    """Bounds the memory that this process takes besides; other systems than Linux cannot."""
    if _STATISTICS.is_file():
        import resource

        pages = int(_STATISTICS.read_text(encoding="ascii").split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = pages * resource.getpagesize() + most
        soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Returns where requests come from and answers go to; decoders print into nothing."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    return requests, answers


def main() -> None:
    """Answers requests until there are none."""
    requests, answers = _own_streams()
    with contextlib.suppress(ImportError):
        import nibabel  # noqa: F401
    with contextlib.suppress(ImportError):
        import pydicom.pixels  # noqa: F401
    waits = hasattr(signal, "alarm")
    while True:
        if waits:
            signal.alarm(IDLE_S)
        line = requests.readline()
        if waits:
            signal.alarm(0)
        if not line:
            return
        request = json.loads(line)
        _bound(request["memory"])
        answers.write(json.dumps(answer(request)).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
