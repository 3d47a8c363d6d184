"""Entry scripts as functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medrm.pipeline import context as run_context

ROOT = Path(__file__).resolve().parent.parent.parent
Recipe = Callable[..., int]


def load_main(path: str) -> Callable[[list[str]], int]:
    """Returns `main` of an entry script."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def refuse_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run that loads a model fail."""

    def load(*_: object, **options: object) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(run_context, "load_base", load)
    monkeypatch.setattr(run_context, "load_adapter", load)
