"""`medrm evaluate`: one model on one benchmark."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.assets import PHANTOM_BASE
from medrm.config import ModelOptions
from medrm.data.images import examine
from medrm.errors import AdapterError, DataError, report
from medrm.evaluation.benchmark import Benchmark, load_benchmark
from medrm.evaluation.run import Scorer, evaluate
from medrm.evaluation.tables import print_report
from medrm.models.check import check_image_reaches
from medrm.models.families import family_of
from medrm.models.load import load_base, load_processor
from medrm.pipeline.bench import settings_of
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
    department_map: str | None,
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
        departments = Path(department_map) if department_map else None
        chosen = load_benchmark(benchmark, data_root, department_map=departments)
    scorer = _scorer(model, revision, readout, chosen, state.device)
    if isinstance(scorer, RewardModel):
        refuse_trained_images(scorer, chosen)
    name = Path(model).resolve().name if Path(model).exists() else model
    limits: tuple[int | None, int | None] = (None, None)
    if isinstance(scorer, RewardModel):
        limits = (scorer.contract.min_pixels, scorer.contract.max_pixels)
    settings = settings_of(*limits)
    result = evaluate(
        scorer, chosen, output_dir, model_name=name, protocol=protocol, settings=settings
    )
    if state.is_main_process:
        print_report(result)


def _scorer(
    model: str, revision: str | None, readout: str, benchmark: Benchmark, device: torch.device
) -> Scorer:
    """Loads an adapter where there is a contract, else a base model."""
    if model != PHANTOM_BASE and has_contract(model, revision):
        trained = load(model, revision=revision, device=device)
        _check_images(trained.model, trained.processor, benchmark)
        return trained
    if Path(model, "adapter_config.json").is_file():
        raise AdapterError(
            f"{model} is an adapter without medrm.json, so neither its head nor its template is "
            "known. Give an adapter folder that medrm wrote."
        )
    options = ModelOptions(model_name_or_path=model, model_revision=revision or "main")
    processor = load_processor(model, options.model_revision)
    base = load_base(options, device)
    _check_images(base, processor, benchmark)
    scorer: Scorer = READOUTS[readout](base, processor, dimensions=benchmark.dimensions)
    return scorer


def _check_images(
    model: PreTrainedModel | PeftModel, processor: ProcessorMixin, benchmark: Benchmark
) -> None:
    if any(case.images for case in benchmark.cases):
        check_image_reaches(model, processor, family_of(model.config))


def refuse_trained_images(model: RewardModel, benchmark: Benchmark) -> None:
    """Fails when the model's contract lists an image of the benchmark as a training image.

    Raises:
        DataError: names the cases.
    """
    seen = set(model.contract.training_pixel_digests)
    facts = examine(benchmark.cases)
    hits = [
        f"case {case.case_id}: image {image.name}"
        for case in benchmark.cases
        for image in case.images
        if image.digest and facts[image.digest].pixel_digest in seen
    ]
    if hits:
        raise DataError(
            report(
                f"The model was trained on images of benchmark {benchmark.name!r}; a score on it "
                "would say nothing. Evaluate on cases it has not seen:",
                hits,
            )
        )
