"""Kinds of damage to one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def flip(at: Callable[[int], int]) -> Callable[[Path], None]:
    """Returns what turns one bit of a file, at a place that its size gives."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at(len(data))] ^= 4
        path.write_bytes(data)

    return apply


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": half,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "bit at the start": flip(lambda size: 0),
    "bit in the middle": flip(lambda size: size // 2),
    "bit at the end": flip(lambda size: size - 1),
    "byte appended": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a folder": replace_by_folder,
    "a link to nowhere": link_to_nowhere,
    "another file's content": lambda path: path.write_bytes(path.read_bytes()[::-1] + b"?"),
}
"""What becomes of a file, by its name."""
