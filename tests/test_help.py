"""`train_rm.py --help`: short, medrm's own options in full; `--help_all`: every option."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from pipeline.entry import load_main

from medrm.config.command_line import USED
from medrm.config.parse import GROUPS
from medrm.objectives import argument_classes

ROOT = Path(__file__).parents[1]
OWN = {field.name for group in GROUPS for field in dataclasses.fields(group)}


@pytest.fixture(scope="module")
def classes() -> dict[str, type]:
    return {name: load() for name, load in argument_classes().items()}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert load_main("recipes/train_rm.py")(list(words)) == 0
    return capsys.readouterr().out


def options(text: str) -> list[str]:
    """The options that stand at the start of a line."""
    return re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)


def test_help_is_short_and_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(capsys, "--help")
    assert len(text.splitlines()) <= 225
    named = options(text)
    assert {*OWN, *USED} <= set(named)
    assert {"ties", "margin", "label_rule", "dpo_pairs", "rationales"} <= set(named)
    assert sorted(named) == sorted(set(named))  # each once
    assert "--help_all" in text


def test_defaults_that_differ_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = shown(capsys, "-h")
    rate = next(line for line in text.splitlines() if line.startswith("  --learning_rate "))
    assert rate.endswith("[default 0.0001; judge_dpo 5e-06; judge_grpo 1e-05]")
    assert "[shares | dawid_skene | mace, default shares]" in text


def own_options(classes: Iterable[type]) -> set[str]:
    """The options that medrm declares and no library does."""
    libraries = [
        base
        for training in classes
        for base in training.__mro__
        if base.__module__.split(".")[0] in ("transformers", "trl")
    ]
    of_libraries = {name for base in libraries for name in vars(base).get("__annotations__", ())}
    return OWN | {
        field.name
        for training in classes
        for field in dataclasses.fields(training)
        if field.name not in of_libraries
    }


def test_every_option_is_in_a_recipe_or_a_readme(classes: dict[str, type]) -> None:
    recipes = "\n".join(path.read_text() for path in (ROOT / "recipes").rglob("*.yaml"))
    readmes = [ROOT / folder / "README.md" for folder in ("", "recipes", "data", "evaluation")]
    written = "\n".join(path.read_text() for path in readmes)
    named = set(re.findall(r"^(?:# .*\b)?(\w+): ", recipes, flags=re.MULTILINE))
    named |= set(re.findall(r"(?:--|`)(\w+)\b", written))
    options = own_options(classes.values())
    assert {"train_data", "margin", "rationales", "dpo_pairs"} <= options
    assert "report_to" not in options
    assert sorted(options - named) == []


def test_used_options_are_described(classes: dict[str, type]) -> None:
    fields = [field for training in classes.values() for field in dataclasses.fields(training)]
    for name, text in USED.items():
        own = [field for field in fields if field.name == name]
        assert own, f"no trainer has {name}"
        assert text or own[0].metadata["help"].endswith(".")


@pytest.mark.parametrize("words", [[], ["judge_grpo"]])
def test_help_all_has_every_option(
    capsys: pytest.CaptureFixture[str], words: list[str], classes: dict[str, type]
) -> None:
    training = classes[(words or ["bradley_terry"])[0]]
    named = set(options(shown(capsys, "--help_all", *words).replace("-h, --help", "--help")))
    accepted = {field.name for field in dataclasses.fields(training) if field.init}
    assert OWN | accepted <= named


def test_help_all_of_no_objective(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_main("recipes/train_rm.py")(["--help_all", "judge_sf"]) == 2
    assert "Did you mean 'judge_sft'?" in capsys.readouterr().err
