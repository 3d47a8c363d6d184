"""Saved tiny bases, written once for all tests of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import save_tiny

TinyFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """Returns the folder of a saved tiny base of a family."""
    root = tmp_path_factory.mktemp("bases")

    def folder(family: str, hidden: int = 32) -> Path:
        path = root / f"{family}-{hidden}"
        return path if path.exists() else save_tiny(family, path, hidden=hidden)

    return folder
