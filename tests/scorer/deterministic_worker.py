"""One process of `test_deterministic.py`: evaluates a saved bf16 model and its base."""

import dataclasses
import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.append(str(Path(__file__).parents[1]))  # started by its path

from evaluation.mock_scorers import make_benchmark
from scorer.cases import make_case

from medrm.config.options import ModelOptions
from medrm.evaluation.evaluator import evaluate
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.pipeline.stop_signals import end_process
from medrm.schema import PairLabel
from medrm.scorer.open import LoadedModel, ScorerOptions, load, open_scorer

if __name__ == "__main__":
    PartialState(cpu=True)
    adapter, base, output = map(Path, sys.argv[1:])
    label = {"accuracy": PairLabel((1.0, 0.0, 0.0), 1)}
    cases = [dataclasses.replace(make_case(number), labels=label) for number in range(7)]
    model = load_base(ModelOptions(model_name_or_path=str(base)), dtype=torch.bfloat16)
    loaded = LoadedModel(model, load_processor(str(base)))
    options = ScorerOptions(batch_rows=4, deterministic=True)
    scorers = [
        load(adapter, deterministic=True),
        *(
            open_scorer(loaded, readout, dimensions=("accuracy",), options=options)
            for readout in ("likelihood", "verdict_probability")
        ),
    ]
    for scorer in scorers:
        evaluate(scorer, make_benchmark(cases), output / scorer.readout, "tiny")
    end_process(0)
