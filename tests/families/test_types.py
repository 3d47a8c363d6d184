"""Every type that can hold a conversation about an image, tiny and random, through all of medrm.

A few types are tried by default, and must give what the table of families says. With versions other
than the table's, what it calls a yes must not crash. All types are tried by

    python -m pytest -n 0 -m exhaustive tests/families

where a test fails whose cell has changed. With `--write-families` it also writes `results.json` and
the table anew; without, no test writes them. Types that need torchvision are skipped where it is
missing, as in CI; `stub.py` says how they are run by hand.
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
    agrees,
    id_of,
    is_crash,
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
from medrm.errors import ConfigError

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
def ran(pytestconfig: pytest.Config) -> Iterator[dict[str, str]]:
    """Results of the whole table, kept when all tests are done if `--write-families` is given."""
    results: dict[str, str] = {}
    yield results
    if results and pytestconfig.getoption("--write-families"):
        keep_results(results)
        write_table()


def outcome(subject: Subject, column: str) -> tuple[Exception | None, str]:
    """Returns what a trial raised, and what its cell says."""
    error = None
    try:
        COLUMNS[column](subject)
    except Exception as raised:
        error = raised
    return error, ("stubbed " if STUBBED else "") + result_of(error, subject.folder)


def check_agreement(subject: Subject, column: str, error: Exception | None, result: str) -> None:
    """Fails, with the trial's own traceback, where the table says something else."""
    ran_with, results = read_results()
    kept = results.get(id_of(subject.base.name, column), "not run")
    differing = dict(versions().items() - ran_with.items())
    if not agrees(error, result, kept, same_versions=not differing):
        versions_said = f" (here with {differing})" if differing else ""
        raise AssertionError(f"{column}: {result!r}, the table: {kept!r}{versions_said}") from error


@pytest.mark.exhaustive
@pytest.mark.parametrize("column", HEADINGS)
@pytest.mark.parametrize("subject", sorted(TYPES), indirect=True)
def test_type(subject: Subject, column: str, ran: dict[str, str]) -> None:
    error, result = outcome(subject, column)
    ran[id_of(subject.base.name, column)] = result
    check_agreement(subject, column, error, result)


@pytest.mark.slow
@pytest.mark.parametrize("subject", _DRAW.sample(RUNNABLE, SAMPLE), indirect=True)
def test_a_sample_of_types_gives_what_the_table_says(subject: Subject) -> None:
    for column in HEADINGS:
        check_agreement(subject, column, *outcome(subject, column))


def test_other_versions_may_differ_but_not_crash() -> None:
    check, refusal, crash = AssertionError("x"), ConfigError("x"), TypeError("x")
    assert [is_crash(error) for error in (None, check, refusal, crash)] == [False] * 3 + [True]
    for error in (None, check, refusal):
        assert agrees(error, "no: other", "yes", same_versions=False)
        assert not agrees(error, "no: other", "yes", same_versions=True)
    for kept in ("yes", "stubbed yes"):
        assert not agrees(crash, "no: TypeError: x", kept, same_versions=False)
    assert agrees(crash, "no: TypeError: x", "no: ValueError: y", same_versions=False)
    assert not agrees(crash, "no: TypeError: x", "no: ValueError: y", same_versions=True)
    assert agrees(crash, "no: TypeError: x", "no: TypeError: x", same_versions=True)


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
