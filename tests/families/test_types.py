"""Every type that can hold a conversation about an image, tiny and random, through all of medrm.

A few types are tried by default, and must give what the table of families says. The whole table:

    python -m pytest -n 0 -m exhaustive tests/families

writes `results.json` and the table anew; a test fails where a cell has changed. Types that need
torchvision are skipped where it is missing, as in CI; `stub.py` says how they are run by hand.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from families.build import save
from families.columns import COLUMNS, Subject, write_cases
from families.model_types import NOT_CHAT, TYPES
from families.table import (
    HEADINGS,
    PAGE,
    RESULTS,
    id_of,
    keep_results,
    read_results,
    result_of,
    table,
    table_of_page,
    versions,
    write_table,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as INSTALLED,
)

import medrm

SAMPLE = 5
LACKING = sorted(set(TYPES) - set(INSTALLED))
"""Types that this version of transformers does not have."""

RUNNABLE = sorted(name for name, tiny in TYPES.items() if not tiny.needs and name in INSTALLED)
STUBBED = "families.stub" in sys.modules
_DRAW = random.Random(f"medrm {medrm.__version__}, transformers {transformers.__version__}")


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def subject(
    request: pytest.FixtureRequest, cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """A type's saved base; the working directory is where it lies."""
    name = request.param
    if name in LACKING:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if STUBBED and not TYPES[name].needs:
        pytest.skip(f"{name} is tried without torchvision")
    missing = [package for package in TYPES[name].needs if not importlib.util.find_spec(package)]
    if missing:
        pytest.skip(f"{name} needs {' and '.join(missing)}")
    folder = tmp_path_factory.mktemp(name)
    with contextlib.chdir(folder):
        yield Subject(save(name, TYPES[name], folder / name), cases, folder)


@pytest.fixture(scope="session")
def ran() -> Iterator[dict[str, str]]:
    """Results of the whole table, kept when all tests are done."""
    results: dict[str, str] = {}
    yield results
    keep_results(results)
    write_table()


def outcome(subject: Subject, column: str) -> str:
    """Returns what a cell says, without what the model was tried with."""
    error = None
    try:
        COLUMNS[column](subject)
    except Exception as raised:
        error = raised
    return ("stubbed " if STUBBED else "") + result_of(error, subject.folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("column", HEADINGS)
@pytest.mark.parametrize("subject", sorted(TYPES), indirect=True)
def test_type(subject: Subject, column: str, ran: dict[str, str]) -> None:
    name = id_of(subject.base.name, column)
    _, kept = read_results() if RESULTS.is_file() else ({}, {})
    ran[name] = outcome(subject, column)
    assert ran[name] == kept.get(name, "not run")


@pytest.mark.parametrize("subject", _DRAW.sample(RUNNABLE, SAMPLE), indirect=True)
def test_a_sample_of_types_gives_what_the_table_says(subject: Subject) -> None:
    ran_with, kept = read_results()
    if versions().items() - ran_with.items():
        pytest.skip(f"the table is of {ran_with}, here are {versions()}")
    for column in HEADINGS:
        name = id_of(subject.base.name, column)
        assert outcome(subject, column) == kept.get(name, "not run"), column


def test_the_table_is_what_the_tests_have_shown() -> None:
    assert table() == table_of_page(), f"python tests/families/table.py writes {PAGE} anew"


def test_every_cell_is_filled_by_a_test_of_its_own() -> None:
    _, kept = read_results()
    assert set(kept) <= {id_of(name, column) for name in TYPES for column in HEADINGS}
    assert set(HEADINGS) == set(COLUMNS)
    for result in kept.values():
        said, _, reason = result.removeprefix("stubbed ").partition(": ")
        assert (said, bool(reason)) in {("yes", False), ("no", True)}, result


def test_every_type_of_transformers_has_a_row_or_a_reason() -> None:
    unknown = sorted(set(INSTALLED) - set(TYPES) - set(NOT_CHAT))
    ran_with, _ = read_results()
    if versions()["transformers"] != ran_with["transformers"] and (unknown or LACKING):
        pytest.skip(f"transformers {transformers.__version__}: new {unknown}, lacking {LACKING}")
    assert not unknown
    assert not LACKING
    assert not set(TYPES) & set(NOT_CHAT)


def test_thirty_five_types_are_a_yes_for_bradley_terry() -> None:
    _, kept = read_results()
    assert sum(kept.get(id_of(name, "bradley_terry")) == "yes" for name in TYPES) >= 35
