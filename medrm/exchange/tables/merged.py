"""Merged cells of sheets: their value stands in each of the places that they cover."""

from __future__ import annotations

from typing import Any, NamedTuple

_MOST = 5_000_000
"""Places that merged cells cover in one sheet."""


class Range(NamedTuple):
    """Places in a sheet: numbers of rows and columns from 1, the last ones included."""

    top: int
    left: int
    bottom: int
    right: int


class MergedCells:
    """Puts the values of merged cells where they belong, row by row."""

    def __init__(self) -> None:
        self._active: list[tuple[Range, Any]] = []
        self._covered = 0

    def add(self, covers: Range, value: Any) -> None:
        """Notes a merged cell whose first row comes next; one without a value covers nothing."""
        if value is not None:
            self._active.append((covers, value))

    def fill(self, number: int, cells: list[Any]) -> list[Any]:
        """Returns the cells of a row, longer where merged ones reach further.

        Raises:
            ValueError: they cover more places than a sheet that people made.
        """
        self._active = [held for held in self._active if held[0].bottom >= number]
        for covers, value in self._active:
            width = covers.right - covers.left + 1
            self._covered += width
            if self._covered > _MOST:
                raise ValueError(f"its merged cells cover more than {_MOST:,} places")
            cells += [None] * (covers.right - len(cells))
            cells[covers.left - 1 : covers.right] = [value] * width
        return cells
