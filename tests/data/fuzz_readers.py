"""Fuzzes the readers: small corpora, seeded mutations, and a table of what happened.

    python tests/data/fuzz_readers.py --mutations 10000 [--seed 0] [--reader votes ...]

A reader may refuse what it is given by one of medrm's messages; anything else is a traceback.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import fuzz_corpora
from fuzz_imports import IMPORT_CORPORA
from mutations import mutate

from medrm.errors import MedrmError

CORPORA = fuzz_corpora.CORPORA | IMPORT_CORPORA

SLOWEST_S = 30.0
LONGEST_MESSAGE = 25_000
MOST_GROWTH = 2**31
"""Bytes by which the memory of the process may grow."""


@dataclass
class Outcome:
    """What fuzzing one corpus has shown."""

    reader: str
    seed: int
    mutations: int = 0
    refused: int = 0
    tracebacks: list[str] = field(default_factory=list)
    growth: int = 0
    slowest_s: float = 0.0
    slowest: str = ""

    def line(self) -> str:
        """Returns a line of the table."""
        return (
            f"| {self.reader} | {self.seed} | {self.mutations} | {self.refused} | "
            f"{len(self.tracebacks)} | {self.growth / 2**20:.0f} | {self.slowest_s:.2f} | "
            f"{self.slowest} |"
        )


HEADER = (
    "| corpus | seed | mutations | refused | tracebacks | peak MiB above start | slowest s | "
    "slowest file |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yields a folder for one mutation, with a cache of its own."""
    before = os.environ.get("MEDRM_CACHE")
    with tempfile.TemporaryDirectory(prefix="medrm-fuzz-") as name:
        os.environ["MEDRM_CACHE"] = str(Path(name, "cache"))
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["MEDRM_CACHE"]
            else:
                os.environ["MEDRM_CACHE"] = before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(reader: str, mutations: int, seed: int = 0) -> Outcome:
    """Reads a corpus so many times, each time with one of its files mutated."""
    corpus, outcome = CORPORA[reader], Outcome(reader, seed)
    with _scratch() as scratch:
        source = corpus.write(scratch / "corpus")
        corpus.read(source)  # as it is it must be accepted
        files = sorted(p for p in (scratch / "corpus").rglob("*") if p.suffix in corpus.mutated)
        whole = {path: path.read_bytes() for path in files}
        start = _peak()
        for number in range(mutations):
            random_ = random.Random(f"{reader} {seed} {number}")
            path = random_.choice(files)
            path.write_bytes(mutate(whole[path], random_))
            began = time.perf_counter()
            try:
                corpus.read(source)
            except MedrmError as error:
                outcome.refused += 1
                if len(str(error)) > LONGEST_MESSAGE:
                    outcome.tracebacks.append(f"mutation {number}: {len(str(error))} characters")
            except Exception:
                outcome.tracebacks.append(f"mutation {number}\n{traceback.format_exc()}")
            seconds = time.perf_counter() - began
            if seconds > outcome.slowest_s:
                outcome.slowest_s, outcome.slowest = seconds, f"{path.name}, mutation {number}"
            path.write_bytes(whole[path])
            shutil.rmtree(scratch / "cache", ignore_errors=True)
        outcome.mutations, outcome.growth = mutations, _peak() - start
    return outcome


def main() -> int:
    """Fuzzes the corpora that are asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", nargs="+", choices=CORPORA, default=list(CORPORA))
    asked = parser.parse_args()
    sys.stdout.write(f"{HEADER}\n")
    failed = False
    for reader in asked.reader:
        outcome = fuzz(reader, asked.mutations, asked.seed)
        sys.stdout.write(f"{outcome.line()}\n")
        sys.stdout.flush()
        failed |= bool(outcome.tracebacks)
        for text in outcome.tracebacks[:3]:
            sys.stderr.write(f"{reader}: {text}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
