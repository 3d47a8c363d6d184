"""Votes on any number of cases over a few hundred phantom images; run as a program, one start.

    python tests/pipeline/large_set.py VOTES FOLDER STEPS

reads the votes, trains the phantom base for a few steps and says what that took.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medrm.config.parse import parse_run
from medrm.data.phantom.phantom_set import write_phantom
from medrm.data.store.indexed_cases import CaseIndex
from medrm.files import asset

IMAGES = 200
"""Distinct ones, however many cases there are."""


def write_votes(folder: Path, cases: int) -> Path:
    """Writes votes, a line for each case, on phantom cases that are drawn once and repeated."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_phantom(folder, cases=IMAGES, seed=5)
    stored = (folder / "votes.jsonl").read_text(encoding="utf-8")
    drawn = [json.loads(line) for line in stored.splitlines()]
    path = folder / f"votes-{cases}.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number in range(cases):
            row = drawn[number % len(drawn)]
            lines.write(json.dumps({**row, "case_id": f"large-{number:07d}"}) + "\n")
    return path


def start(votes: Path, folder: Path, steps: int) -> dict[str, float]:
    """Trains the phantom base on votes, without any evaluation, and returns what it took.

    Seconds until the data is read and checked, until lengths are counted, until the trainer is
    built, and of the steps; cases decoded before the first step; the peak of resident memory.
    """
    from medrm.objectives import argument_classes
    from medrm.pipeline.context import RunContext
    from medrm.pipeline.prepare_data import prepare_data
    from medrm.pipeline.stages import build_trainer

    options = {
        "train_data": votes,
        "benchmark": "phantom",
        "data_root": _small_benchmark(folder),
        "max_steps": steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": folder / "run",
    }
    arguments = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    run = parse_run(arguments, argument_classes(), asset("recipes/quickstart/bradley_terry.yaml"))
    decoded = [0]
    CaseIndex.case_json = _counting(CaseIndex.case_json, decoded)
    times = [time.perf_counter()]
    splits = prepare_data(run)
    times.append(time.perf_counter())
    context = RunContext.prepare(run, splits, folder / "run")
    times.append(time.perf_counter())
    trainer = build_trainer(context, context.trainable(), folder / "run", "training")
    times.append(time.perf_counter())
    before = decoded[0]
    trainer.train()
    times.append(time.perf_counter())
    data, lengths, model, training = (b - a for a, b in itertools.pairwise(times))
    return {
        "cases": len(splits.train) + len(splits.development),
        "data_s": data,
        "lengths_s": lengths,
        "model_s": model,
        "training_s": training,
        "decoded": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _counting(read: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return read(*arguments)

    return counted


def _small_benchmark(folder: Path) -> Path:
    path = folder / "benchmark"
    if not path.is_dir():
        path.mkdir(parents=True)
        write_phantom(path, cases=20, seed=6)
    return path / "votes.jsonl"


if __name__ == "__main__":
    took = start(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(took) + "\n")
