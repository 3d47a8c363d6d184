"""What turns preferences into a loss, one module for each objective.

A new objective is a module that holds an `OBJECTIVE` (`medrm.objectives.objective.Objective`) and
an entry in `OBJECTIVES`; a new loss on pairs is an entry in `medrm.objectives.losses.PAIR_LOSSES`.
Both dictionaries may be added to from outside the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medrm.objectives.objective import Objective

OBJECTIVES = {
    "bradley_terry": "medrm.objectives.bradley_terry",
    "judge_sft": "medrm.objectives.judge.judge_sft",
    "judge_dpo": "medrm.objectives.judge.judge_dpo",
    "judge_grpo": "medrm.objectives.judge.judge_grpo",
}
"""Objective name to the module, of any package, that holds its `OBJECTIVE`; imported when used."""


__all__ = ["OBJECTIVES", "argument_classes", "load_objective"]


def load_objective(name: str) -> Objective:
    """Returns the objective of that name; imports torch and transformers.

    Raises:
        KeyError: not a name of `OBJECTIVES`; the configuration's parser refuses it before.
    """
    objective: Objective = importlib.import_module(OBJECTIVES[name]).OBJECTIVE
    return objective


def argument_classes() -> dict[str, Callable[[], type]]:
    """Returns for each objective a function that imports the class of its training arguments."""

    def config_of(name: str) -> type:
        return load_objective(name).config

    return {name: partial(config_of, name) for name in OBJECTIVES}
