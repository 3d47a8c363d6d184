"""Keeps what a frozen vision tower says of an image: in memory, and in files for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

logger = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""The tensors of one output by name; `deepstack_features.1/3` is the second of three."""

MOST_FILE_BYTES = 2**30
"""More than any image's features; a larger file is not read."""

_DIGEST = "sha256"
"""The tensor of a file that holds the digest of the others."""


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns a tensor's contents; copied from the device where it is not in main memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest_of(name: str, tensors: Features) -> bytes:
    """Returns the SHA-256 of a name and of tensors: names, precisions, shapes and contents."""
    digest = hashlib.sha256(name.encode())
    for own, tensor in sorted(tensors.items()):
        digest.update(f"|{own} {tensor.dtype} {list(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.digest()


def _size(features: Features) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in features.values())


class FeatureFolder:
    """Features in safetensors files, the least recently used deleted beyond a size.

    Several processes may share a folder: a file appears whole or not at all. A file that cannot be
    read or whose digest is wrong is computed and written again; what is no file is left alone. The
    files are as trustworthy as those who may write into the folder; reading one runs no code and
    takes bounded memory.

    Attributes:
        damaged: how many files could not be used.
        bytes_read: of the files that could.
        bytes_written: of all files.

    Args:
        folder: where they lie, in folders named `features-...`; nothing else in it is touched.
        most_bytes: how much is kept. Each process looks again after an eighth of the free room, so
            up to eight of them keep to it together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.damaged = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._room = 0
        self._failed = False

    def read(self, tower: str, key: str) -> Features | None:
        """Returns the features of a key, None where there are none to be used.

        Args:
            tower: the digest of the tower.
            key: the digest of what it is given.
        """
        path = self._place(tower, key)
        try:
            if _is_foreign(path):  # opening a pipe would wait for who writes into it
                self._unusable(path, "it is no file")
                return None
            with path.open("rb") as file:
                data = file.read(MOST_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unusable(path, str(error))
            return None
        if len(data) > MOST_FILE_BYTES:
            self._unusable(path, "it is too large")
            return None
        try:
            features = load(data)
            written = features.pop(_DIGEST).flatten().tolist()
            intact = written == list(digest_of(tower + key, features))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            self._unusable(path, str(error))
            return None
        if not intact:
            self._unusable(path, "its digest is wrong")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now
        self.bytes_read += len(data)
        return features

    def write(self, tower: str, key: str, features: Features) -> None:
        """Keeps the features of a key; a disk that takes no more is said once and left alone."""
        if self._failed:
            return
        digest = torch.tensor(list(digest_of(tower + key, features)), dtype=torch.uint8)
        whole = {name: tensor.contiguous() for name, tensor in features.items()}
        data = save(whole | {_DIGEST: digest})
        if len(data) > min(self.most_bytes, MOST_FILE_BYTES):
            return
        place = self._place(tower, key)
        try:
            if _is_foreign(place):
                return
            self._make_room(len(data))
            _put(place, data)
            self.bytes_written += len(data)
        except OSError as error:
            self._failed = True
            logger.warning("Image features are no longer written to %s: %s", self.folder, error)

    def _place(self, tower: str, key: str) -> Path:
        return self.folder / f"features-{tower[:32]}" / key[:2] / f"{key}.safetensors"

    def _unusable(self, path: Path, why: str) -> None:
        self.damaged += 1
        logger.warning("Image features are computed again, %s cannot be used: %s", path.name, why)

    def _make_room(self, size: int) -> None:
        """Deletes the least recently used files where `size` more bytes would be too many."""
        self._room -= size
        if self._room >= 0:
            return
        found = []
        for path in self.folder.glob("features-*/??/*"):
            if path.suffix in (".safetensors", ".tmp"):
                with contextlib.suppress(OSError):  # another process has deleted it
                    about = path.stat()
                    if stat.S_ISREG(about.st_mode):
                        found.append((about.st_mtime_ns, about.st_size, path))
        total = size + sum(own for _, own, _ in found)
        if total > self.most_bytes:
            # A tenth more than needed, so that not every file that follows looks through them all.
            for _, own, path in sorted(found):
                if total <= self.most_bytes * 0.9:
                    break
                path.unlink(missing_ok=True)
                total -= own
        self._room = (self.most_bytes - total) // 8


def _is_foreign(path: Path) -> bool:
    """Returns whether something other than a file, such as a pipe or a folder, has this name."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _put(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        with contextlib.suppress(FileNotFoundError):  # another process needed the room
            Path(unfinished).replace(place)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise


def memory_of(megabytes: int, folder: str | None, folder_megabytes: int) -> FeatureMemory:
    """Returns a memory of so many megabytes, with a folder where one is given."""
    files = None
    if folder is not None:
        files = FeatureFolder(Path(folder).expanduser(), folder_megabytes * 2**20)
    return FeatureMemory(megabytes * 2**20, files)


class FeatureMemory:
    """Features by content of the image, the least recently used dropped beyond a size.

    Attributes:
        most_bytes: how much is kept.
        folder: where they are looked up and written as well, if anywhere.
        computed: how many images went through the tower.
        held: how many were found in main memory.
        read: how many were read from files.

    Args:
        most_bytes: how much is kept, in main memory.
        folder: where they are looked up and written as well.
    """

    def __init__(self, most_bytes: int, folder: FeatureFolder | None = None) -> None:
        self.most_bytes = most_bytes
        self.folder = folder
        self.computed = 0
        self.held = 0
        self.read = 0
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    @property
    def used(self) -> bool:
        """Whether anything is kept at all."""
        return self.most_bytes > 0 or self.folder is not None

    @property
    def summary(self) -> str:
        """What was kept and what it gave, in one line."""
        said = f"{self.computed} computed, {self.held} found in memory"
        if self.folder is None:
            return said
        return (
            f"{said}, {self.read} read from files ({self.folder.bytes_read / 1e6:.1f} MB read, "
            f"{self.folder.bytes_written / 1e6:.1f} MB written, {self.folder.damaged} damaged)"
        )

    def get(
        self, key: str, names: Callable[[], tuple[str, str]], compute: Callable[[], Features]
    ) -> Features:
        """Returns the kept features of a key, else computes and keeps them.

        Args:
            key: of this process alone.
            names: gives the digests of the tower and of what it is given, for files; asked only
                where they are needed, since they take a copy from the device.
            compute: gives the features.
        """
        if key in self._held:
            self.held += 1
            self._held.move_to_end(key)
            return self._held[key]
        features = self._found(names, compute)
        self._held[key] = features
        self._bytes += _size(features)
        while self._bytes > self.most_bytes:
            self._bytes -= _size(self._held.popitem(last=False)[1])
        return features

    def _found(
        self, names: Callable[[], tuple[str, str]], compute: Callable[[], Features]
    ) -> Features:
        if self.folder is None:
            return self._computed(compute)
        place = names()
        features = self.folder.read(*place)
        if features is None:
            features = self._computed(compute)
            self.folder.write(*place, features)
        else:
            self.read += 1
        return features

    def _computed(self, compute: Callable[[], Features]) -> Features:
        self.computed += 1
        return {name: tensor.cpu() for name, tensor in compute().items()}
