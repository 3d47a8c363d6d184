"""The tokens of a run's cases, counted once for a set, a processor and a template."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import ProcessorMixin, __version__

from medrm.data.store.columns import TOKENS
from medrm.data.store.index import Counts, Lengths, StoredCases, StoredLengths
from medrm.schema import Case


def counted(cases: Sequence[Case], count: Callable[[], Counts], key: str | None) -> Lengths:
    """Returns the tokens of each case.

    Args:
        cases: what `count` counts.
        count: gives those of all.
        key: tells all that the numbers depend on besides the cases; None: they are not kept.
    """
    if not isinstance(cases, StoredCases):
        return {case.case_id: one for case, one in zip(cases, count(), strict=True)}
    places, store = cases.places, cases.store

    def values() -> NDArray[Any]:
        found = np.zeros(len(store), TOKENS)
        found[places] = np.array(count(), dtype=TOKENS)
        return found

    if key is None:
        return StoredLengths(values())
    name = hashlib.sha256(key.encode() + places.tobytes()).hexdigest()[:32]
    return StoredLengths(store.kept_array(f"tokens-{name}", TOKENS, values))


def processor_digest(processor: ProcessorMixin) -> str:
    """Returns a digest of a processor's files and of the library that runs it."""
    digest = hashlib.sha256(__version__.encode())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()
