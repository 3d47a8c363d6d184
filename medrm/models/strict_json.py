"""Reads JSON files that anyone may have written: in bounded time and memory, and as plain values.

The same files are read by transformers, PEFT and safetensors afterwards, which bound neither.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from medrm.errors import AdapterError, MedrmError, shortened

MOST_VALUES = 2_000_000
"""Of lists and objects in a file; each takes about a hundred bytes of memory."""

_MOST_DEPTH = 100
_MOST_DIGITS = 40
_LONGEST_TEXT = 1_000_000
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


def read_object(path: Path, largest: int) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Args:
        path: a plain file (`adapter_files.check_plain`).
        largest: its most bytes.

    Raises:
        AdapterError: it cannot be read, holds no object, or what no writer of saved models writes:
            keys twice, NaN, infinity, numbers of more than 40 digits, halves of surrogates,
            texts of more than a million characters, nesting of more than 100 levels.
    """
    with refused(path):
        with path.open("rb") as file:
            data = file.read(largest + 1)
        if len(data) > largest:
            raise ValueError(f"it has more than {largest} bytes")
        return parsed(data)
    raise AssertionError


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Says of a file what makes it unreadable.

    Raises:
        AdapterError: in place of what reading it raises.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, MedrmError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise AdapterError(
            f"{path} cannot be read: {shortened(reason).rstrip('.')}. Save the model again, or "
            "download it again."
        ) from error


def parsed(data: bytes) -> dict[str, Any]:
    """Returns the object that a text in JSON holds.

    Raises:
        ValueError, RecursionError: as of `read_object`.
    """
    if data.count(b",") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")
    record = json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_object,
        parse_constant=_no_number,
        parse_int=_number(int),
        parse_float=_number(float),
    )
    if not isinstance(record, dict):
        raise ValueError(f"it holds {shortened(json.dumps(record))[:40]}, no object")
    _check_values(record, 0, halves=_SURROGATE.search(data) is not None)
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        doubled = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"it has a key twice: {doubled[:40]!r}")
    return record


def _no_number(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")


def _number(read: Callable[[str], float]) -> Callable[[str], float]:
    """Returns what reads a number, unless it is too long or becomes infinite."""

    def number(text: str) -> float:
        if len(text) > _MOST_DIGITS or abs(read(text)) == float("inf"):
            raise ValueError(f"it holds the number {text[:_MOST_DIGITS]}..., which is too large")
        return read(text)

    return number


def _check_values(value: Any, depth: int, *, halves: bool) -> None:
    """Raises ValueError for what is nested too deeply, and for texts that are none.

    Args:
        value: of the file.
        depth: how deep it lies.
        halves: whether texts may hold halves of surrogates, which the file can only escape.
    """
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ValueError(f"it holds a text of {len(value)} characters")
        if halves and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("it holds half a surrogate, which is no character")
    elif isinstance(value, dict | list):
        if depth == _MOST_DEPTH:
            raise ValueError(f"it is nested more than {_MOST_DEPTH} levels deep")
        if isinstance(value, dict):
            _check_values(list(value), depth, halves=halves)
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, str | dict | list):
                _check_values(inner, depth + 1, halves=halves)
