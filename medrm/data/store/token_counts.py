"""How many tokens cases have, kept beside their index once they are counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medrm.data.store.indexed_cases import TOKEN_COUNT, IndexedCases, TokenCounts
from medrm.schema import Case


def count_tokens(
    cases: Sequence[Case], count: Callable[[], Sequence[int] | NDArray[Any]], key: str | None
) -> TokenCounts:
    """Returns the tokens of each case.

    Args:
        cases: what `count` counts.
        count: gives those of all, in their order.
        key: tells all that the numbers depend on besides the cases; None: they are not kept.
    """
    if not isinstance(cases, IndexedCases):
        return {case.case_id: tokens for case, tokens in zip(cases, count(), strict=True)}
    index, indices = cases.case_index, cases.indices

    def counts_of_index() -> NDArray[Any]:
        counts = np.zeros(len(index), TOKEN_COUNT)
        counts[indices] = np.array(count(), dtype=TOKEN_COUNT)
        return counts

    if key is None:
        return counts_of_index()
    name = hashlib.sha256(key.encode() + indices.tobytes()).hexdigest()[:32]
    return index.cached_array(f"tokens-{name}", counts_of_index)
