"""Sets of cases as they lie in the index."""

from __future__ import annotations

from pathlib import Path

from medrm.data.case_set import read_set
from medrm.data.store.indexed_cases import IndexedCases


def cases_of(source: Path) -> IndexedCases:
    found = read_set(str(source)).cases
    assert isinstance(found, IndexedCases)
    return found
