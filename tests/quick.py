"""Which parameters of a test run by default and which with the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(*by_default: str, of: Iterable[str]) -> list[Any]:
    """Returns the parameters; all but those named are slow."""
    every = list(of)
    assert {*by_default} <= {*every}
    return [
        name if name in by_default else pytest.param(name, marks=pytest.mark.slow) for name in every
    ]
