"""Objectives and pair losses are added from outside the package, by an entry in a dictionary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from preferences import DIMENSIONS, Recipe, make_recipe, preferences
from torch import Tensor
from torch.nn.functional import relu

from medrm.config.command_line import help_text
from medrm.config.option import option
from medrm.config.parse import parse_run
from medrm.errors import ConfigError
from medrm.models.reward_model import head_of
from medrm.objectives import OBJECTIVES, argument_classes, load_objective
from medrm.objectives.losses import PAIR_LOSSES, PairLoss, davidson
from medrm.objectives.objective import BradleyTerryConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "bradley_terry.yaml"


def hinge(difference: Tensor, shares: Tensor, margin: Tensor | None) -> Tensor:
    """Returns s_first max(0, 1 - d) + s_second max(0, 1 + d)."""
    return shares[..., 0] * relu(1 - difference) + shares[..., 2] * relu(1 + difference)


def parsed(folder: Path, *options: str) -> Any:
    return parse_run(
        ["--train_data", "x", "--output_dir", str(folder), "--use_cpu", "true", *options],
        argument_classes(),
        RECIPE,
    )


def test_a_loss_without_a_tie_parameter_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"ties: invalid choice: 'hinge'"):
        parsed(tmp_path, "--ties", "hinge")
    with pytest.raises(ConfigError, match="ties is 'hinge'; accepted: none, davidson, rao_kupper"):
        BradleyTerryConfig(output_dir=str(tmp_path), ties="hinge", use_cpu=True)
    monkeypatch.setitem(PAIR_LOSSES, "hinge", PairLoss(hinge))
    assert parsed(tmp_path, "--ties", "hinge").training.ties == "hinge"
    assert "none | davidson | rao_kupper | hinge" in " ".join(
        str(help_text(["--help"], argument_classes())).split()
    )
    recipe = make_recipe(tmp_path, preferences(20, ties=True), ties="hinge", max_steps=1)
    trainer = recipe.trainer()
    assert head_of(recipe.model).tie_logit is None
    (group,) = trainer.targets.groups(recipe.train[:1], [1.0])
    rewards = trainer.head.layers[-1].weight.new_tensor([[0.0, 0.25], [0.5, 0.0]])
    first, _, second = group.vote_shares[0, 0].tolist()
    loss = trainer.targets.losses(group, rewards, None)[0, 0].item()
    assert loss == pytest.approx(first * 1.5 + second * 0.5)
    trainer.train()
    with pytest.raises(ConfigError, match="ties hinge: for pairs of answers alone"):
        make_recipe(tmp_path, preferences(4, answers=3), ties="hinge").trainer()


def test_a_loss_with_a_tie_parameter_starts_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAIR_LOSSES, "even", PairLoss(davidson, lambda share: -7 * share))
    recipe = make_recipe(tmp_path, preferences(20, ties=True), ties="even", max_steps=1)
    trainer = recipe.trainer()
    tie = head_of(recipe.model).tie_logit
    assert tie is not None
    assert -7 < tie[0].item() < 0
    assert head_of(recipe.model).spec.tied_dimensions == ("accuracy",)
    trainer.train()


@dataclass
class MildConfig(BradleyTerryConfig):
    """An objective's own arguments."""

    mildness: float = option(0.5, "How mild it is.")


def test_an_objective_of_another_package_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Callable[..., Recipe],
) -> None:
    module = ModuleType("elsewhere")
    module.OBJECTIVE = replace(  # type: ignore[attr-defined]
        load_objective("bradley_terry"), config=MildConfig
    )
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setitem(OBJECTIVES, "mild", "elsewhere")
    run = parsed(tmp_path, "--objective", "mild", "--mildness", "0.25")
    assert (run.objective, run.training.mildness) == ("mild", 0.25)
    assert "--mildness" in str(help_text(["--help"], argument_classes()))
    objective = load_objective("mild")
    built = recipe()
    objective.check(built.run, DIMENSIONS, built.train, built.development)
