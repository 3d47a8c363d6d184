"""What turns preferences into a loss, one module for each objective."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medrm.objectives.base import Objective

OBJECTIVES = {"bradley_terry": "medrm.objectives.bradley_terry"}
"""Objective name to the module that holds its `OBJECTIVE`; imported only when used."""


def load_objective(name: str) -> Objective:
    """Returns the objective of that name; imports torch and transformers.

    Raises:
        KeyError: not a name of `OBJECTIVES`; the configuration's parser refuses it before.
    """
    objective: Objective = importlib.import_module(OBJECTIVES[name]).OBJECTIVE
    return objective


__all__ = ["OBJECTIVES", "load_objective"]
