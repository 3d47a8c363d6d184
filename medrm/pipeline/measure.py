"""`medrm evaluate`: one model on one benchmark."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState

from medrm.assets import PHANTOM_BASE
from medrm.config import ModelOptions
from medrm.errors import AdapterError, DataError, report
from medrm.evaluation.benchmark import Benchmark, load_benchmark
from medrm.evaluation.run import Scorer, evaluate
from medrm.evaluation.tables import print_report
from medrm.models.load import load_base, load_config, load_processor
from medrm.scorer.load import has_contract, load
from medrm.scorer.readouts import Likelihood, VerdictProbability
from medrm.scorer.reward import RewardModel

READOUTS = {"verdict_probability": VerdictProbability, "likelihood": Likelihood}
"""How a base model without a reward head can be read."""


def evaluate_model(
    model: str,
    revision: str | None,
    benchmark: str,
    data_root: str | None,
    readout: str,
    protocol: str,
    output_dir: Path,
) -> None:
    """Scores a saved reward model, or a base model by a zero-shot readout, and prints the table.

    Raises:
        MedrmError: a name, the data or the model is not as it should be, or the model was trained
            on images of the benchmark.
    """
    state = PartialState()
    with state.main_process_first():
        chosen = load_benchmark(benchmark, data_root)
    scorer = _scorer(model, revision, readout, chosen, state.device)
    if isinstance(scorer, RewardModel):
        refuse_trained_images(scorer, chosen)
    name = Path(model).resolve().name if Path(model).exists() else model
    result = evaluate(scorer, chosen, output_dir, model_name=name, protocol=protocol)
    if state.is_main_process:
        print_report(result)


def _scorer(
    model: str, revision: str | None, readout: str, benchmark: Benchmark, device: torch.device
) -> Scorer:
    """Loads an adapter where there is a contract, else a base model."""
    if model != PHANTOM_BASE and has_contract(model, revision):
        return load(model, revision=revision, device=device)
    if Path(model, "adapter_config.json").is_file():
        raise AdapterError(
            f"{model} is an adapter without medrm.json, so neither its head nor its template is "
            "known. Give an adapter folder that medrm wrote."
        )
    options = ModelOptions(model_name_or_path=model, model_revision=revision or "main")
    load_config(model, options.model_revision)
    processor = load_processor(model, options.model_revision)
    base = load_base(options, device)
    scorer: Scorer = READOUTS[readout](base, processor, dimensions=benchmark.dimensions)
    return scorer


def refuse_trained_images(model: RewardModel, benchmark: Benchmark) -> None:
    """Fails when the model's contract lists an image of the benchmark as a training image.

    Raises:
        DataError: names the cases.
    """
    seen = set(model.contract.training_image_digests)
    hits = [
        f"case {case.case_id}: image {image.name}"
        for case in benchmark.cases
        for image in case.images
        if image.digest in seen
    ]
    if hits:
        raise DataError(
            report(
                f"The model was trained on images of benchmark {benchmark.name!r}; a score on it "
                "would say nothing. Evaluate on cases it has not seen:",
                hits,
            )
        )
