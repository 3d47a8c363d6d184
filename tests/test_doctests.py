"""The examples in the docstrings of what is public and loads no torch."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

EXAMPLES = {
    "medrm.config.parse": 1,
    "medrm.data.case_set": 1,
    "medrm.data.organs": 1,
    "medrm.parsers": 1,
    "medrm.schema": 3,
    "medrm.statistics.agreement": 1,
    "medrm.statistics.intervals": 1,
    "medrm.statistics.significance": 1,
}
"""Module to the least number of docstrings with examples."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module(name)
    examples = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(examples) >= EXAMPLES[name]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
