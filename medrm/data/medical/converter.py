"""Medical images become pictures: recognised by their content, converted once, kept in the cache.

    cache/medical/<digest of contents, conversion and version>/0000.png ... and about.json

The files are read by processes of their own (`worker`), a few at once, each with a share of the
memory that images in use may take.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from medrm.data.decoding import MEMORY_BYTES, decoding_memory
from medrm.data.medical.conversions import CONVERSIONS, ImageConversion
from medrm.data.medical.shades import UnreadableError
from medrm.data.pseudonyms import salt
from medrm.errors import ConfigError, DataError
from medrm.files import cache_dir, file_digest
from medrm.integrity import fill_cache_folder

VERSION = 2
"""Of the folders in the cache; raised whenever the same files would give others."""

SECONDS = 60.0
"""Of the clock, for a file; a series may take one more for each of its files."""

MOST_FILES = 4096
"""Of a series."""

_AT_ONCE = 4
_ABOUT_FILE = "about.json"
_SNIFFED = 1024
"""Bytes from whose content a file is recognised."""


@dataclass(frozen=True)
class Converted:
    """The pictures of a file or series.

    Attributes:
        folder: that holds them.
        about: what the worker says of them: `pictures` (name, number of the frame from 1, digest of
            the file), `frames`, `made`, `kind`, `conversion`, of NIfTI `notes`, and of DICOM
            `risks`, `private_tags` and `independent`.
    """

    folder: Path
    about: Mapping[str, Any]


def medical_kind(start: bytes) -> str | None:
    """Returns what a file is by its first bytes: `dicom`, `nifti`, or None, no medical image."""
    if b"DICM" in (start[:4], start[128:132]) or _is_bare_dicom(start):
        return "dicom"
    if start.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            start = zlib.decompressobj(31).decompress(start, _SNIFFED)
    is_first = start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and start[344:347] in (
        b"n+1",
        b"ni1",
    )
    is_second = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and start[4:7] in (b"n+2", b"ni2")
    return "nifti" if is_first or is_second else None


def _is_bare_dicom(start: bytes) -> bool:
    """Returns whether a file starts with a tag of group 2 or 8: DICOM without a preamble."""
    if len(start) < 8:
        return False
    order: Literal["little", "big"] = "big" if start[0] == 0 else "little"
    group, element = (int.from_bytes(start[at : at + 2], order) for at in (0, 2))
    has_kind = start[4:6].isalpha() and start[4:6].isupper()
    is_short = 0 < start[4] <= 64 and not any(start[5:8])
    return group in (2, 8) and element <= 0x18 and (has_kind or is_short)


def kind_of_file(path: Path) -> str | None:
    """Returns what a file is; see `medical_kind`. A pipe or a device, which may wait, is none."""
    if not S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as file:
        return medical_kind(file.read(_SNIFFED))


def series_files(folder: Path) -> list[Path]:
    """Returns the DICOM files in a folder, by name; what else lies there is passed over.

    Raises:
        UnreadableError: it holds more than a series has.
    """
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.upper() != "DICOMDIR" and path.is_file() and kind_of_file(path) == "dicom":
            paths.append(path)
        if len(paths) > MOST_FILES:
            raise UnreadableError(
                f"it holds more than {MOST_FILES} DICOM files; give the folder of one series"
            )
    return paths


def named_conversion(name: str, asked: ImageConversion | None) -> ImageConversion:
    """Returns the conversion that is asked for.

    Raises:
        DataError: none is, for an image of this name.
    """
    if asked is None:
        raise DataError(
            f"image {name!r} is DICOM or NIfTI, and how it becomes a picture is not said; give "
            f"--image_conversion with one of {', '.join(CONVERSIONS)} (data/README.md says which)"
        )
    return asked


def picture_names(name: str, about: Mapping[str, Any]) -> list[str]:
    """Returns the names of the pictures of an image: which of its frames each shows."""
    frames = about["frames"]
    if frames == 1:
        return [name]
    return [f"{name}, picture {number} of {frames}" for _, number, _ in about["pictures"]]


def convert_files(kind: str, paths: Sequence[Path], asked: ImageConversion) -> Converted:
    """Returns the pictures of a file or of a series of DICOM files, converted where they are not.

    Raises:
        UnreadableError: why there are none.
        ConfigError: a package is missing, or the cache cannot be written.
    """
    digests = sorted(map(file_digest, paths))
    key = json.dumps([VERSION, asked.conversion.version, str(asked), digests])
    folder = cache_dir() / "medical" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def fill(draft: Path) -> None:
        about = {**_convert(kind, paths, asked, draft), "conversion": str(asked)}
        (draft / _ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")

    fill_cache_folder(folder, fill)
    return Converted(folder, json.loads((folder / _ABOUT_FILE).read_text(encoding="utf-8")))


def convert_bytes(
    kind: str, content: bytes, asked: ImageConversion, name: str
) -> list[tuple[str, bytes]]:
    """Returns the pictures of a stored image as PNG files, each with its name; none is kept.

    Raises:
        UnreadableError: why there are none.
        ConfigError: a package is missing.
    """
    with tempfile.TemporaryDirectory(prefix="medrm-") as scratch:
        folder = Path(scratch)
        (folder / "stored").write_bytes(content)
        about = _convert(kind, [folder / "stored"], asked, folder)
        contents = [(folder / file).read_bytes() for file, *_ in about["pictures"]]
        return list(zip(picture_names(name, about), contents, strict=True))


def _convert(
    kind: str, paths: Sequence[Path], asked: ImageConversion, draft: Path
) -> dict[str, Any]:
    """Has a worker write pictures; where it fails another is asked, alone and with more memory."""
    package = {"dicom": "pydicom", "nifti": "nibabel"}[kind]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"The set holds {'DICOM' if kind == 'dicom' else 'NIfTI'} files, and {package} is not "
            'installed. Run `pip install "medrm[dicom]"`.'
        )
    request = {
        "kind": kind,
        "paths": [str(path.absolute()) for path in paths],
        "conversion": str(asked),
        "folder": str(draft.absolute()),
        "salt": salt().hex(),
    }
    for memory in (MEMORY_BYTES // _AT_ONCE, MEMORY_BYTES):
        with decoding_memory(memory):
            about = _ask({**request, "memory": memory}, SECONDS + len(paths))
        if "problem" not in about:
            return about
        if about.get("is_sure"):
            break
    raise UnreadableError(about["problem"])


class _Worker:
    """A process that reads medical images."""

    def __init__(self) -> None:
        self._has_ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "medrm.data.medical.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # whoever interrupts the run interrupts us, and we end it
        )

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """Returns its answer; None where it has died. It is ended where it takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end_late() -> None:
            late.set()
            self.end()

        timer = threading.Timer(seconds, end_late)
        timer.start()
        line = b""
        with suppress(OSError, ValueError):  # it has died, or was ended and its streams closed
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        timer.cancel()
        if late.is_set():
            self._has_ended = True  # or is about to
            return {"problem": f"it takes more than {seconds:.0f} seconds to read", "is_sure": True}
        return json.loads(line) if line.endswith(b"\n") else None

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not self._has_ended and self._process.poll() is None

    def end(self) -> None:
        """Ends the process."""
        self._has_ended = True
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what it was still to read
                assert stream is not None
                stream.close()


_idle: list[_Worker] = []
"""Workers that wait for a request."""


def _ask(request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Returns the answer of a worker that is free, or of a new one.

    Workers that wait end after a while, so what one of them does not answer a new one is asked.
    """
    while True:
        worker, is_new = _free_worker()
        try:
            answer = worker.ask(request, seconds)
        except BaseException:
            worker.end()
            raise
        if answer is not None and worker.is_alive:
            _idle.append(worker)
            return answer
        worker.end()
        if answer is not None or is_new:
            return answer or {"problem": "a decoder failed on it"}


def _free_worker() -> tuple[_Worker, bool]:
    """Returns a worker, and whether it was started for this."""
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return _Worker(), True
        if worker.is_alive:
            return worker, False
        worker.end()


@atexit.register
def _end_workers() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they answer to the parent
