"""Saved models that somebody made to break their reader, or to run code: all are refused in words.

Of each one a process of limited memory and time loads it (`hostile_worker.py`). The bounds that are
checked are those of `medrm.models`: most of them follow from the largest sizes of files.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hostile_worker import all_variants

VARIANTS = all_variants()
REFUSED = {"AdapterError", "ConfigError"}
SECONDS, MEMORY, LONGEST = 10, 640 * 2**20, 4000
"""Of processor time, of memory above that of the libraries, of a message."""


def attempts(scratch: Path, names: Iterable[str], *options: str) -> list[dict[str, Any]]:
    """Returns how the loads of variants ended, the first of a sound model."""
    worker = Path(__file__).with_name("hostile_worker.py")
    (scratch / "names.json").write_text(json.dumps(list(names)))
    command = [sys.executable, str(worker), str(scratch), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def problems(records: list[dict[str, Any]], refused: set[str], loaded: str) -> list[str]:
    """Returns what is wrong with how loads ended."""
    sound, wrong = records[0], []
    assert sound["end"] == loaded, sound
    for record in records[1:]:
        harmless = VARIANTS[record["name"]].harmless
        expected = {loaded} if harmless else {*refused, loaded} if harmless is None else refused
        loads = record["end"] == loaded
        checks = {
            f"ended with {record['end']}": record["end"] not in expected,
            "scores otherwise": loads
            and refused == REFUSED
            and record["message"] != sound["message"],
            "runs code": record["foreign_code"],
            "tells too much": record["length"] > LONGEST,
            f"takes {record['seconds']} s": record["seconds"] > SECONDS,
            f"takes {record['bytes'] >> 20} MiB": record["bytes"] > MEMORY,
            "shows a traceback": "Traceback" in record["message"],
        }
        wrong += [f"{record['name']}: {said}" for said, is_so in checks.items() if is_so]
    return wrong


def sample(count: int, seed: int) -> list[str]:
    """Returns some of the names, the same each time."""
    return random.Random(seed).sample(sorted(VARIANTS), count)


@pytest.mark.slow
def test_a_sample_of_hostile_models_is_refused(tmp_path: Path) -> None:
    records = attempts(tmp_path, sample(60, seed=1))
    assert problems(records, REFUSED, "loaded") == []


@pytest.mark.slow
def test_the_command_refuses_them_in_words(tmp_path: Path) -> None:
    names = [name for name in sample(80, seed=2) if VARIANTS[name].model == "reward"]
    records = attempts(tmp_path, names, "--command")
    assert problems(records, {"status 2"}, "status 0") == []


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_every_hostile_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(VARIANTS) > 1000
    records = attempts(tmp_path, sorted(VARIANTS))
    ends = Counter(record["end"] for record in records[1:])
    slowest = max(records[1:], key=lambda record: record["seconds"])
    largest = max(records[1:], key=lambda record: record["bytes"])
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(VARIANTS)} variants: {dict(ends)}\n"
            f"slowest: {slowest['seconds']} s ({slowest['name']})\n"
            f"peak memory: {largest['bytes'] >> 20} MiB ({largest['name']})\n"
        )
    assert problems(records, REFUSED, "loaded") == []
