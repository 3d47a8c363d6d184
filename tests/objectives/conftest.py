"""A tiny reward model, labelled cases and one way to train, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preferences import Recipe, make_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a function from training options to everything a training needs."""

    def build(**options: Any) -> Recipe:
        return make_recipe(tmp_path / "run", **options)

    return build
