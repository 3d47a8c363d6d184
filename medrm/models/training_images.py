"""Which images a model was trained on: what its contract says, and the digests beside it.

Whoever has the digests can tell of any picture whether it was trained on. They are needed only to
refuse a benchmark that holds such a picture, so they stay in the run folder, in a file of their
own, and the contract keeps their number and the file's SHA-256. A digest is cut to 16 of its 32
bytes (16 MB for a million images): still nobody can make a picture that is taken for another one.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medrm.files import file_digest, write_atomically

DIGESTS_FILE = "training_digests.npy"
"""An array [N, 16] of bytes, sorted, for `numpy.load`; no pickle."""

DIGEST_BYTES = 16

_TYPE = np.dtype(f"S{DIGEST_BYTES}")

Digests = NDArray[np.bytes_]
"""Digests of decoded pixels, sorted, each once."""


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """What a contract says of the images; nothing of any one of them follows from it.

    Attributes:
        count: distinct images, those of the adapter that the training went on from included.
        sha256: of the file of their digests.
        complete: whether the file holds all; that adapter's may not be known.
    """

    count: int
    sha256: str
    complete: bool


@dataclass(frozen=True)
class KnownImages:
    """The images that a model is known to be trained on.

    Attributes:
        digests: of them; None: none is known.
        gap: why they are not known, or not all of them; None: these are all.
    """

    digests: Digests | None
    gap: str | None = None


def digests_of(pixel_digests: Iterable[str]) -> Digests:
    """Returns SHA-256 digests in hexadecimal as they are stored; empty ones are left out.

    Raises:
        ValueError: one is no such digest.
    """
    distinct = {text[: 2 * DIGEST_BYTES] for text in pixel_digests if text}
    return np.array(sorted(map(bytes.fromhex, distinct)), dtype=_TYPE)


def file_of(images: KnownImages) -> bytes:
    """Returns the content of the file of known images."""
    stored, digests = io.BytesIO(), digests_of(()) if images.digests is None else images.digests
    values = np.frombuffer(digests.tobytes(), np.uint8).reshape(-1, DIGEST_BYTES)
    np.save(stored, values, allow_pickle=False)
    return stored.getvalue()


def record_of(images: KnownImages) -> TrainingImages:
    """Returns what a contract says of known images."""
    content, count = file_of(images), 0 if images.digests is None else len(images.digests)
    return TrainingImages(count, hashlib.sha256(content).hexdigest(), complete=images.gap is None)


def write_digests(folder: Path, images: KnownImages) -> None:
    """Writes the file of known images into a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / DIGESTS_FILE, [file_of(images)])


def known_images(
    saved: Path, record: TrainingImages | None, in_contract: Sequence[str]
) -> KnownImages:
    """Returns the images that a saved model was trained on, as far as that can be known here.

    Args:
        saved: folder of the model; the digests lie in it, or in the run folder around it.
        record: of its contract; None: a version wrote it that put digests into the contract.
        in_contract: these digests.
    """
    if record is None:
        try:
            digests = digests_of(in_contract)
        except ValueError:
            return KnownImages(None, "the digests in its contract are none")
        unknown = None if in_contract else "its contract names no image that it was trained on"
        return KnownImages(digests, unknown)
    others = False
    for path in (saved / DIGESTS_FILE, saved.absolute().parent / DIGESTS_FILE):
        if path.is_file() and file_digest(path) == record.sha256:
            stored = _read(path)
            gap = None if record.complete else "it went on from a model of unknown training images"
            if stored is not None and len(stored) == record.count:
                return KnownImages(stored, gap)
        others = others or path.is_file()
    if others:
        return KnownImages(None, f"the {DIGESTS_FILE} beside it belongs to another model")
    return KnownImages(None, f"it came without the {DIGESTS_FILE} of its run folder")


def _read(path: Path) -> Digests | None:
    """Returns the digests in a file; None: it is none of ours."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.dtype != np.uint8 or values.ndim != 2 or values.shape[1] != DIGEST_BYTES:
        return None
    return np.frombuffer(values.tobytes(), _TYPE)
