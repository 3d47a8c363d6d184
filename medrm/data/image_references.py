"""Where the images of a set are: paths, cells of tables and data URLs, as references.

Medical images become pictures here, before anything else sees them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from medrm.data.inline_images import MAX_STORED_BYTES, inline_bytes
from medrm.data.medical.conversions import ImageConversion, parse_conversion
from medrm.data.medical.converter import (
    convert_files,
    kind_of_file,
    medical_kind,
    named_conversion,
    picture_names,
    series_files,
)
from medrm.data.medical.shades import UnreadableError
from medrm.errors import DataError, shortened
from medrm.files import cache_dir, file_digest, write_cache_file
from medrm.schema import ImageRef

_SCHEMES = ("http", "https", "ftp", "s3", "gs", "hf", "file")

_ADDRESS = "an address, and nothing is downloaded; get the image and give its path"

_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Reads the bytes of an image that is a file.

    Attributes:
        path: of the file itself.
        link: the way to it through symbolic links; empty: there is none.
    """

    path: str
    link: str = ""

    def __call__(self) -> bytes:
        """Returns the bytes."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class ConvertedFile(StoredFile):
    """Reads the bytes of a picture that was made of a medical image.

    Attributes:
        sources: files that it was made of; where one changes, the set is read again.
        position: among the pictures of that image, from 0.
        about: what is known of the image; see `medical.converter.Converted`.
    """

    sources: tuple[str, ...] = ()
    position: int = 0
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)


class ImageOptions(NamedTuple):
    """What a user says of all images of a set.

    Attributes:
        root: a folder in which paths are looked for first, and into which links may lead.
        conversion: by which medical images become pictures; None: they are refused.
    """

    root: Path | None = None
    conversion: ImageConversion | None = None

    def or_as(self, stated: str | None) -> ImageOptions:
        """Returns them with the conversion that a set states, where the user names none.

        Raises:
            ConfigError: the set states one that is not known.
        """
        if self.conversion is not None or stated is None:
            return self
        return self._replace(conversion=parse_conversion(stated))


NO_OPTIONS = ImageOptions()


@dataclass(frozen=True, slots=True)
class StoredCell:
    """Reads the bytes of an image in a cell of a table.

    Attributes:
        files: the Arrow files of the table, in their order.
        row: of the table, from 0.
        column: holds an image, or a list of them.
        position: in the list; None: the cell is one image.
    """

    files: tuple[str, ...]
    row: int
    column: str
    position: int | None

    def __call__(self) -> bytes:
        """Returns the bytes."""
        cell = _arrow_table(self.files)[self.column][self.row]
        image = cell if self.position is None else cell[self.position]
        stored: bytes = (image["bytes"] if pa.types.is_struct(image.type) else image).as_py()
        return stored


@lru_cache(maxsize=64)
def _arrow_table(files: tuple[str, ...]) -> pa.Table:
    """Returns a table whose rows stay in its files."""
    maps = [pa.ipc.open_stream(pa.memory_map(path)).read_all() for path in files]
    return pa.concat_tables(maps)


def is_address(written: str) -> bool:
    """Returns whether an image is written as an address of the network."""
    scheme, colon, _ = written.partition("://")
    return bool(colon) and scheme.lower() in _SCHEMES


def file_images(
    written: str,
    root: Path,
    boundary: Path | None = None,
    options: ImageOptions = NO_OPTIONS,
) -> tuple[ImageRef, ...]:
    """Returns the reference of an image file, with the digest of its bytes.

    What is written may also be a data URL or base64; then the image is kept in the cache. A DICOM
    or NIfTI file, or a folder with one series of DICOM files, is one picture or more.

    Args:
        written: the path in the data, absolute, or relative to `options.root` or else to `root`.
        root: the folder of the data file.
        boundary: the folder that no path and no link may leave, by default `root`.
        options: what the user says of images.

    Raises:
        DataError: a path that leaves the folders, also through a symbolic link; a medical image
            whose conversion is not named.
        ConfigError: a package that reads medical images is missing.
    """
    try:
        content = inline_bytes(written)
    except DataError as error:
        return (ImageRef("in the data", "", bytes, f"it is {error}".rstrip(".")),)
    if content is not None:
        return cached_images(content, options)
    if is_address(written) and not written.startswith("file:///"):
        return (ImageRef(shortened(written), "", bytes, _ADDRESS),)
    written = written.removeprefix("file://")
    way, folder = _way(written, root, options.root)
    folders = [boundary or root, *([options.root] if options.root else [])]
    location = _inside(written, way, folders)
    link = os.path.abspath(way)
    read = StoredFile(str(location), "" if link == str(location) else link)
    # Where the data lie is nobody's business who reads a report.
    if os.path.isabs(written):
        written = os.path.relpath(way, folder) if way.is_relative_to(folder) else location.name
    kind, largest = None, 0
    try:
        series = series_files(location) if location.is_dir() else []
        paths = [_inside(path.name, path, folders) for path in series] or [location]
        medical = "dicom" if series else kind_of_file(location)
        largest = max(path.stat().st_size for path in paths) if medical else 0
        kind = medical
    except UnreadableError as error:
        return (_unconverted(shortened(written), read, error),)
    except OSError:
        pass  # then the plain file says why; one of the conversion is its own
    if kind is None:
        return (_plain_file(written, location, read),)
    if largest > MAX_STORED_BYTES:
        return (ImageRef(shortened(written), "", read, f"larger than {MAX_STORED_BYTES} bytes"),)
    return _converted(kind, shortened(written), paths, read, options)


def _plain_file(written: str, location: Path, read: StoredFile) -> ImageRef:
    """Returns the reference of a file that is no medical image, or why it is none."""
    digest = ""
    problem: str | None = None
    try:
        if not location.is_file():
            folder = ", but a folder without DICOM files" if location.is_dir() else ""
            problem = f"there is no file {shortened(written)!r}{folder}"
        elif location.stat().st_size > MAX_STORED_BYTES:
            problem = f"larger than {MAX_STORED_BYTES} bytes"
        else:
            digest = file_digest(location)
    except OSError as error:
        problem = f"{shortened(written)!r} cannot be read: {error.strerror}"
    return ImageRef(shortened(written) if problem else written, digest, read, problem)


def _converted(
    kind: str, name: str, paths: Sequence[Path], read: StoredFile, options: ImageOptions
) -> tuple[ImageRef, ...]:
    """Returns the references of the pictures of a medical image, kept in the cache.

    Args:
        kind: as `converter.medical_kind` gives it.
        name: of the image.
        paths: of its file, or of those of a series.
        read: of its file or folder.
        options: that name the conversion.
    """
    sources = tuple(dict.fromkeys((read.link or read.path, *map(str, paths))))
    unread = ConvertedFile("", "", sources)  # whose bytes would tell what its tags say
    try:
        converted = convert_files(kind, paths, named_conversion(name, options.conversion))
    except UnreadableError as error:
        return (_unconverted(name, unread, error),)
    about, folder = converted.about, converted.folder
    names = picture_names(name, about)
    return tuple(
        ImageRef(
            names[position], digest, ConvertedFile(str(folder / file), "", sources, position, about)
        )
        for position, (file, _, digest) in enumerate(about["pictures"])
    )


def _unconverted(name: str, read: StoredFile, error: UnreadableError) -> ImageRef:
    """Returns the reference of a medical image of which there are no pictures."""
    return ImageRef(name, "", read, f"{name!r} cannot be converted: {error}")


def _way(written: str, root: Path, image_root: Path | None) -> tuple[Path, Path]:
    """Returns the path of an image before links are followed, and the folder that it lies in."""
    folders = [folder.absolute() for folder in (image_root, root) if folder is not None]
    if os.path.isabs(written):
        way = Path(os.path.normpath(written))
        return way, next((folder for folder in folders if way.is_relative_to(folder)), folders[-1])
    there = (folder for folder in folders if os.path.lexists(folder / written.replace("\0", "")))
    folder = next(there, folders[0])
    return folder / written, folder


def _inside(written: str, way: Path, folders: Sequence[Path]) -> Path:
    """Returns the resolved location of a path that stays inside the folders."""
    named = " and ".join(map(str, folders))
    outside = DataError(
        f"image path {shortened(written)!r} leads outside the data folder {named}; accepted are "
        "paths to files inside it. Move the image there, or name its folder with --image_root."
    )
    if not written or "\0" in written:
        raise outside
    try:
        location = way.resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise outside from error
    if not any(location.is_relative_to(folder.resolve()) for folder in folders):
        raise outside
    return location


def cached_images(
    content: bytes,
    options: ImageOptions = NO_OPTIONS,
) -> tuple[ImageRef, ...]:
    """Returns the reference of an image that is stored in no file, kept in the cache.

    Raises:
        ConfigError: the cache cannot be written.
        DataError: a medical image whose conversion is not named.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = cache_dir() / "images" / digest
    if len(content) > MAX_STORED_BYTES:
        return (ImageRef("in the data", "", bytes, f"larger than {MAX_STORED_BYTES} bytes"),)
    if not path.is_file() or file_digest(path) != digest:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_cache_file(path, content)
    name, read = f"in the data, {digest[:12]}", StoredFile(str(path))
    kind = medical_kind(content)
    if kind is not None:
        return _converted(kind, name, [path], read, options)
    return (ImageRef(name, digest, read),)


def all_file_images(
    paths: Collection[str], root: Path, boundary: Path, options: ImageOptions
) -> dict[str, tuple[ImageRef, ...] | DataError]:
    """Returns the references of each path, or why it is refused; see `file_images`."""

    def references(path: str) -> tuple[ImageRef, ...] | DataError:
        try:
            return file_images(path, root, boundary, options)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(paths, pool.map(references, paths), strict=True))


def picture_counts(images: Iterable[ImageRef]) -> list[int]:
    """Returns how many pictures each image has of which some are, in their order."""
    counts: list[int] = []
    for ref in images:
        if isinstance(ref.read, ConvertedFile) and ref.read.position:
            counts[-1] += 1
        else:
            counts.append(1)
    return counts
