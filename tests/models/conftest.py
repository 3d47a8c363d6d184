"""Saved tiny bases and an adapter, written once for all tests of models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rows import trained
from tiny import save_tiny

from medrm.models.adapter import save_adapter

TinyFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """Returns the folder of a saved tiny base of a family."""
    root = tmp_path_factory.mktemp("bases")

    def folder(family: str, hidden: int = 32) -> Path:
        path = root / f"{family}-{hidden}"
        return path if path.exists() else save_tiny(family, path, hidden=hidden)

    return folder


@pytest.fixture(scope="session")
def _saved(tiny_folder: TinyFolder) -> Path:
    base = tiny_folder("llava")
    model, processor, contract = trained(base, "llava")
    save_adapter(base.parent / "to-break", model, processor, contract)
    return base.parent / "to-break"


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved adapter beside its base."""
    shutil.copytree(_saved.parent / "llava-32", tmp_path / "llava-32")
    return shutil.copytree(_saved, tmp_path / "adapter")
