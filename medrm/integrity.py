"""Whether a folder is what was written: a manifest of its files' sizes and SHA-256, written last.

A folder is sealed when all its files are on the disk: `manifest.json` then appears in it, whole. A
file that is cut, changed or lost later is found by `damage`. Files that are added are no damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from medrm.files import (
    atomic_folder,
    discard,
    file_digest,
    sync,
    unwritable_refused,
    write_atomically,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

Fingerprint = dict[str, Any]
"""Of one file: its `size` in bytes and its `sha256`."""


def seal(folder: Path, covers: Callable[[str], bool] = lambda name: True) -> None:
    """Writes the manifest of a folder, when all that it names is on the disk.

    Every file gets the mode that a new file has here, for some libraries write theirs for the
    owner alone. Hashing takes about a second for each GB.

    Args:
        folder: whose files are complete.
        covers: whether the manifest names a file; others may change.
    """
    mode = _mode_of_new_files(folder)
    fingerprints: dict[str, Fingerprint] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            sync(path)
        elif not path.is_symlink() and not name.startswith(MANIFEST):
            path.chmod(mode)
            sync(path)
            if covers(name):
                fingerprints[name] = _fingerprint(path)
    _write(folder, fingerprints)


def seal_files(folder: Path, names: Iterable[str]) -> None:
    """Writes the manifest of some files, those of them that are there; others may change."""
    paths = [path for path in map(folder.joinpath, names) if path.is_file()]
    _write(folder, {path.name: _fingerprint(path) for path in paths})


def is_sealed(folder: Path) -> bool:
    """Returns whether a folder has a manifest; what versions before 0.3 wrote has none."""
    return os.path.lexists(folder / MANIFEST)


def sealed_names(folder: Path) -> list[str]:
    """Returns the names of the files in a folder's manifest.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not as it was written.
    """
    return list(_read(folder))


def damage(folder: Path) -> list[str]:
    """Returns what is wrong with a folder, a sentence for each file; nothing where it is whole.

    A folder without a manifest is `["it is unsealed"]`.
    """
    if not folder.is_dir():
        return ["it is no folder"]
    if not is_sealed(folder):
        return ["it is unsealed"]
    try:
        fingerprints = _read(folder)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    problems = {name: _problem(folder / name, fingerprints[name]) for name in fingerprints}
    return [f"{name} {problem}" for name, problem in problems.items() if problem is not None]


def fill_cache_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes a sealed folder appear, complete or not at all, where there is no whole one.

    Args:
        folder: of the cache. One that is damaged is replaced: whoever has its files open keeps
            what they had.
        fill: fills the draft that it is given.

    Raises:
        ConfigError: the cache cannot be written.
    """
    if folder.is_dir():
        problems = damage(folder)
        if not problems:
            return
        logger.info("%s is made again: %s", folder, "; ".join(problems))
    with ExitStack() as stack:
        with unwritable_refused(folder.parent):
            discard(folder)
            # The owner's alone, for it holds what cases say.
            draft = stack.enter_context(atomic_folder(folder, mode=0o700))
        fill(draft)
        with unwritable_refused(folder.parent):
            seal(draft)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a small JSON file that carries its own SHA-256; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed = {**record, "sha256": _record_digest(record)}
    write_atomically(path, [json.dumps(sealed).encode()])


def read_record(path: Path) -> dict[str, Any]:
    """Returns what `write_record` wrote; a file without a digest is read as it is.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no object")
    if record.pop("sha256", None) not in (None, _record_digest(record)):
        raise ValueError(f"{path} is not as it was written")
    return record


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Takes a file out of its folder's manifest while it is replaced, and then in again.

    So the folder fits its manifest at every moment, also where the file cannot be replaced. One
    that a killed process has left out is taken in as well. A folder without a manifest gets none.
    """
    folder, name = path.parent, path.name
    if not is_sealed(folder):
        yield
        return
    fingerprints = _read(folder)
    if fingerprints.pop(name, None) is not None:
        _write(folder, fingerprints)
    try:
        yield
    finally:
        if path.is_file():
            _write(folder, {**fingerprints, name: _fingerprint(path)})


def manifest_with(folder: Path, contents: Mapping[str, bytes]) -> bytes:
    """Returns the manifest of a folder in which some files that it names had other contents.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not as it was written.
    """
    fingerprints = _read(folder)
    for name in fingerprints.keys() & contents.keys():
        digest = hashlib.sha256(contents[name]).hexdigest()
        fingerprints[name] = {"size": len(contents[name]), "sha256": digest}
    return _text(fingerprints).encode()


def _mode_of_new_files(folder: Path) -> int:
    """Returns the mode that the umask leaves to a file: it cannot be read without being changed."""
    probe = folder / f"{MANIFEST}.{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink()


def _fingerprint(path: Path) -> Fingerprint:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _problem(path: Path, expected: Fingerprint) -> str | None:
    """Returns what is wrong with a file."""
    try:
        if not path.exists():
            return "is missing"
        if not path.is_file():
            return "is no file"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"has {size} bytes instead of {expected['size']}"
        changed = _fingerprint(path)["sha256"] != expected["sha256"]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "has another content (SHA-256)" if changed else None


def _text(fingerprints: Mapping[str, Fingerprint]) -> str:
    return json.dumps({"files": dict(sorted(fingerprints.items()))}, indent=2)


def _write(folder: Path, fingerprints: Mapping[str, Fingerprint]) -> None:
    write_atomically(folder / MANIFEST, [_text(fingerprints).encode()])


def _read(folder: Path) -> dict[str, Fingerprint]:
    """Returns the manifest of a folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not as `_write` writes it, to the byte.
    """
    text = (folder / MANIFEST).read_bytes().decode()
    try:
        fingerprints: dict[str, Fingerprint] = dict(json.loads(text)["files"])
        whole = all(
            ".." not in Path(name).parts
            and not os.path.isabs(name)
            and fingerprint.keys() == {"size", "sha256"}
            for name, fingerprint in fingerprints.items()
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no manifest") from error
    if not whole or _text(fingerprints) != text:
        raise ValueError("it is not as it was written")
    return fingerprints
