"""A tiny reward model, labelled cases and one way to train, for the tests of this folder."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judging import Judging, make_judging
from preferences import Recipe, make_recipe


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """Every training starts with a collection; going through the libraries is half of its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def judging(tmp_path: Path) -> Callable[..., Judging]:
    """Returns a function from an objective and options to the training of a judge."""

    def build(objective: str, name: str = "run", **options: Any) -> Judging:
        return make_judging(objective, tmp_path / name, **options)

    return build


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a function from training options to everything a training needs."""

    def build(**options: Any) -> Recipe:
        return make_recipe(tmp_path / "run", **options)

    return build
