"""The tokens of a run's cases, counted once for a set, a processor and a template."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import ProcessorMixin, __version__

from medrm.data.index import Lengths, StoredCases, StoredLengths
from medrm.schema import Case


def counted(cases: Sequence[Case], count: Callable[[], Sequence[int]], key: str | None) -> Lengths:
    """Returns the tokens of each case's longest row.

    Args:
        cases: what `count` counts.
        count: gives the tokens of all.
        key: tells all that the numbers depend on besides the cases; None: they are not kept.
    """
    if not isinstance(cases, StoredCases):
        return {case.case_id: one for case, one in zip(cases, count(), strict=True)}
    places, store = cases.places, cases.store

    def values() -> NDArray[np.int32]:
        found = np.zeros(len(store), np.int32)
        found[places] = count()
        return found

    if key is None:
        return StoredLengths(values())
    name = hashlib.sha256(key.encode() + places.tobytes()).hexdigest()[:32]
    return StoredLengths(store.kept_array(f"lengths-{name}", np.int32, values))


def processor_digest(processor: ProcessorMixin) -> str:
    """Returns a digest of a processor's files and of the library that runs it."""
    digest = hashlib.sha256(__version__.encode())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
