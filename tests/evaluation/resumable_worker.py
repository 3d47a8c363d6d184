"""An evaluation in a process of its own, for `test_resume.py` to kill: WHAT FOLDER [URL]."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from mock_scorers import make_benchmark, make_cases

from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.pipeline.stop_signals import end_process
from medrm.schema import DIMENSIONS, Case, Response

CASES = 24


class Slow:
    """Adds a line to `asked` for each case that a scorer has computed, and takes its time."""

    def __init__(self, scorer: Any, asked: Path) -> None:
        self.scorer, self.asked = scorer, asked
        self.readout, self.dimensions, self.lookahead = (
            *(scorer.readout, scorer.dimensions, scorer.lookahead),
        )

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for response in self.scorer.respond(cases):
            if response.order == "forward":
                with self.asked.open("a") as file:
                    file.write(f"{response.case_id}\n")
            time.sleep(0.05)
            yield response


def service(folder: Path, url: str) -> Any:
    """A judge behind the service."""
    from medrm.chat import PROMPTS
    from medrm.scorer.engines.openai_engine import OpenAIEngine
    from medrm.scorer.readouts.pair_judge import Judge

    engine = OpenAIEngine(
        "a-model", url, "a-key", concurrency=2, cache_dir=folder.parent / "replies", wait_s=0.01
    )
    return Judge(engine, PROMPTS["json"], DIMENSIONS)


def local(kind: str) -> Any:
    """A tiny model: a judge that writes, or one that gives scores."""
    from tiny import make_tiny

    from medrm.chat import PROMPTS
    from medrm.scorer.engines.base import Sampling
    from medrm.scorer.engines.transformers_engine import TransformersEngine
    from medrm.scorer.readouts.answer_rewards import Likelihood
    from medrm.scorer.readouts.pair_judge import Judge

    torch.manual_seed(0)
    model, processor = make_tiny("qwen2_vl")
    if kind == "scores":
        return Likelihood(model, processor, batch_rows=1)
    engine = TransformersEngine(model, processor, batch_rows=1)
    return Judge(engine, PROMPTS["json"], DIMENSIONS, sampling=Sampling(max_new_tokens=4))


def main() -> None:
    """Evaluates."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    PartialState(cpu=True)
    kind, folder = sys.argv[1], Path(sys.argv[2])
    folder.parent.mkdir(exist_ok=True)
    folder.with_name(f"{folder.name}.{os.getpid()}.pid").touch()
    scorer = service(folder, sys.argv[3]) if kind == "service" else local(kind)
    evaluate(
        Slow(scorer, folder.parent / f"{folder.name}.asked"),
        make_benchmark(make_cases("ABBA" * (CASES // 4))),
        folder,
        NamedModel("a model", "these weights"),
        settings={"t": 0.1},
    )
    end_process(0)


if __name__ == "__main__":
    main()
