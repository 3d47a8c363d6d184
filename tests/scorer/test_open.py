"""The one way to open a model for scoring: nothing passes it by; what it does not open, it says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medrm
from medrm.cli import main
from medrm.errors import AdapterError
from medrm.readouts import READOUTS

PACKAGE = Path(medrm.__file__).parent
READOUT_CLASSES = {readout.implementation.partition(":")[2] for readout in READOUTS.values()}


def constructions(source: str) -> list[str]:
    """The names of readout classes that are called, and calls of the function that finds them."""
    return [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for name in (getattr(node.func, "id", None) or getattr(node.func, "attr", ""),)
        if name in READOUT_CLASSES or name == "implementation_of"
    ]


def test_no_other_module_makes_a_readout() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): constructions(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: names for path, names in found.items() if names} == {
        "scorer/open.py": ["implementation_of"]
    }


def test_a_construction_is_noticed() -> None:
    assert len(READOUT_CLASSES) >= 7
    source = "import reward\na = Likelihood(m, p)\nb = [reward.RewardModel(m, p, c, 3)]\nf(Judge)"
    assert constructions(source) == ["Likelihood", "RewardModel"]


def test_a_run_folder_is_no_model_but_holds_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "medrm.json").write_text("{}")
    hint = f"is a run folder, no model. Did you mean {adapter}?"
    words = ["--model", str(adapter.parent), "--benchmark", "phantom"]
    assert main(["evaluate", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert hint in capsys.readouterr().err
    with pytest.raises(AdapterError, match="Did you mean"):
        medrm.load(adapter.parent)
