"""Evaluates every readout of a tiny model; run as a script, by each process of a launch: FOLDER."""

from __future__ import annotations

import dataclasses
import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from mock_scorers import make_benchmark, make_cases
from tiny import make_tiny, tiny_image

from medrm.chat import PROMPTS
from medrm.config.options import ModelOptions
from medrm.data.images import bytes_image
from medrm.evaluation.evaluator import evaluate
from medrm.models.adapter_config import new_adapter_config
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.pipeline.stop_signals import end_process
from medrm.schema import Case, ImageRef
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.transformers_engine import TransformersEngine
from medrm.scorer.readouts.answer_rewards import Likelihood, RewardModel
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.readouts.probability_readout import ConstrainedJson, VerdictProbability

TWO = ("accuracy", "overall")

SEVERAL_BATCHES = {"rows": 4, "copies": 4}
"""Of 40 cases 16, 16 and 8 are computed together, for processes to share."""


def noise(seed: int) -> ImageRef:
    """An image of noise, of a size of its own."""
    buffer = io.BytesIO()
    tiny_image(seed, 40 + 4 * seed, 56).save(buffer, "PNG")
    return bytes_image(f"noise-{seed}", partial(bytes, buffer.getvalue()))


def cases() -> list[Case]:
    """Of different lengths, with one image, two, or none; one image cannot be read."""
    made = make_cases("ABBABAABAB", "AABBABABAB")
    broken = bytes_image("broken", partial(bytes, b"no image"))
    shown = [(noise(n),) if n % 3 else (noise(n), noise(n + 1))[: n % 2 * 2] for n in range(10)]
    shown[7] = (broken,)
    return [
        dataclasses.replace(case, images=images, question=case.question + " Why?" * (number % 4))
        for number, (case, images) in enumerate(zip(made, shown, strict=True))
    ]


def scorers(rows: int) -> dict[str, Any]:
    """All readouts, by name."""
    model, processor = make_tiny("qwen2_vl")
    prompt = PROMPTS["json"]
    engine = TransformersEngine(model, processor, batch_rows=rows)
    written = Judge(engine, prompt, TWO, sampling=Sampling(max_new_tokens=6))
    headed = attach_head(make_tiny("qwen2_vl")[0], HeadSpec(TWO, hidden_size=8), seed=1)
    options = ModelOptions("tiny")
    return {
        "likelihood": Likelihood(model, processor, dimensions=TWO, batch_rows=rows),
        "verdict": VerdictProbability(model, processor, dimensions=TWO, batch_rows=rows),
        "skeleton": ConstrainedJson(model, processor, prompt, dimensions=TWO, batch_rows=rows),
        "generate": written,
        "reward": RewardModel(
            headed,
            processor,
            new_adapter_config(headed, processor, options, "bradley_terry", "reward"),
            rows,
        ),
    }


def evaluate_all(folder: Path, rows: int = 8, copies: int = 1) -> None:
    """Writes an evaluation folder for each readout."""
    torch.set_num_threads(1)
    asked = [
        dataclasses.replace(case, case_id=f"{case.case_id}-{copy}", question=case.question * copy)
        for copy in range(1, copies + 1)
        for case in cases()
    ]
    benchmark = make_benchmark(asked, TWO)
    for name, scorer in scorers(rows).items():
        evaluate(scorer, benchmark, folder / name, name, settings=scorer.settings)


if __name__ == "__main__":
    PartialState(cpu=True)
    evaluate_all(Path(sys.argv[1]), **SEVERAL_BATCHES)
    end_process(0)
