"""What decoding each distinct image of an indexed set showed, kept beside the index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medrm.data.images import ImageFacts, facts_of
from medrm.data.store.cache import appear
from medrm.data.store.columns import column, flat, owners
from medrm.data.store.index import Store, StoredCases, mapped
from medrm.files import status_of
from medrm.schema import Case, ImageRef

_FOLDER, _PROBLEMS = "pictures", "problems.json"
_FACTS = np.dtype(
    [("width", "<i4"), ("height", "<i4"), ("pixels", "S64"), ("hash", "<u8"), ("mode", "S32")]
)


class StoredFacts(Mapping[str, ImageFacts]):
    """The facts of the images of some sets by digest, read from their files when asked for.

    Attributes:
        problems: digest to why the image cannot be decoded.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        folders = [store.folder / _FOLDER for store in stores]
        self.problems: dict[str, str] = {}
        for folder in folders:
            self.problems |= json.loads((folder / _PROBLEMS).read_bytes())["problems"]
        self._tables = [
            (mapped(folder / "digest.bin", "S64"), mapped(folder / "facts.bin", _FACTS))
            for folder in folders
        ]

    def __getitem__(self, digest: str) -> ImageFacts:
        if digest in self.problems:
            return ImageFacts(self.problems[digest])
        for digests, facts in self._tables:
            place = int(np.searchsorted(digests, np.bytes_(digest)))
            if place < len(digests) and digests[place] == digest.encode():
                width, height, pixels, looks, mode = facts[place].item()
                return ImageFacts(None, width, height, pixels.decode(), looks, mode.decode())
        raise KeyError(digest)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(d.decode() for digests, _ in self._tables for d in digests))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(len(digests) for digests, _ in self._tables)


def stored_facts(
    stores: Sequence[Store], progress: Callable[[int, int], None] | None = None
) -> StoredFacts:
    """Returns the facts of the images of some sets; each is decoded once and never again.

    Args:
        stores: the indexes.
        progress: called with the number done and the number of distinct images of a set.
    """
    for store in stores:
        folder = store.folder / _FOLDER
        if folder.is_dir() and _torn(folder):
            shutil.rmtree(folder)
        if not folder.is_dir():
            appear(folder, partial(_examine, store, progress))
    return StoredFacts(stores)


def _torn(folder: Path) -> bool:
    """Returns whether files are not as long as they were written, as after a loss of power."""
    try:
        count = json.loads((folder / _PROBLEMS).read_bytes())["images"]
    except (OSError, ValueError):
        return True
    sizes = [status_of(folder / name)[:1] for name in ("digest.bin", "facts.bin")]
    return sizes != [[count * 64], [count * _FACTS.itemsize]]


def _examine(store: Store, progress: Callable[[int, int], None] | None, folder: Path) -> None:
    shown = flat(StoredCases(store), "image")
    known = np.flatnonzero(shown != b"")
    digests, first = np.unique(shown[known], return_index=True)
    digests.tofile(folder / "digest.bin")
    facts = np.zeros(len(digests), _FACTS)
    problems: dict[str, str] = {}
    order = np.argsort(first)
    examined = facts_of(_refs(store, known[first[order]].tolist()))
    for done, (place, fact) in enumerate(zip(order.tolist(), examined, strict=True), start=1):
        if fact.problem is not None:
            problems[digests[place].decode()] = fact.problem
        facts[place] = (
            fact.width, fact.height, fact.pixel_digest, fact.perceptual_hash, fact.mode
        )  # fmt: skip
        if progress is not None:
            progress(done, len(digests))
    facts.tofile(folder / "facts.bin")
    about = {"images": len(digests), "problems": problems}
    (folder / _PROBLEMS).write_text(json.dumps(about), encoding="utf-8")


def _refs(store: Store, places: Sequence[int]) -> Iterator[ImageRef]:
    """Yields images by their places among those of all cases."""
    counts = store.array("images", "<i4")
    case_of, ends = owners(counts), np.cumsum(counts, dtype=np.int64)
    for place in places:
        images = store.case(int(case_of[place])).images
        yield images[place - int(ends[case_of[place]]) + len(images)]


def unreadable(cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> NDArray[np.bool_]:
    """Returns whether a case has an image that cannot be read; of stored cases found once."""
    if not (isinstance(cases, StoredCases) and isinstance(facts, StoredFacts)):
        return _unreadable(cases, [digest for digest, fact in facts.items() if fact.problem])
    whole, bad = StoredCases(cases.store), list(facts.problems)
    known = cases.store.kept_array("unreadable", np.bool_, lambda: _unreadable(whole, bad))
    return known[cases.places]


def _unreadable(cases: Sequence[Case], bad: Sequence[str]) -> NDArray[np.bool_]:
    wrong = np.isin(flat(cases, "image"), np.array(["", *bad], dtype="S64"))
    found = np.zeros(len(cases), dtype=np.bool_)
    found[owners(column(cases, "images"))[wrong]] = True
    return found
