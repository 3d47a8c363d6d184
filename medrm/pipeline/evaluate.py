"""`medrm evaluate`: one model on one benchmark."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.assets import PHANTOM_BASE
from medrm.config import JudgeOptions, ModelOptions
from medrm.data.images import examine
from medrm.errors import AdapterError, ConfigError, DataError, report
from medrm.evaluation.benchmark import Benchmark, load_benchmark
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.records.scoring import NOT_OFFICIAL, can_be_official
from medrm.evaluation.tables.terminal import print_report
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.base_model import load_base, load_processor, resolve_model
from medrm.models.base_reference import find_base, reference_of
from medrm.models.families import family_of
from medrm.models.image_smoke_test import check_image_reaches
from medrm.models.save_load import load_adapter, saved_identity
from medrm.pipeline.context import settings_of
from medrm.readouts import READOUTS, readout_names
from medrm.schema import DIMENSIONS
from medrm.scorer.engines.openai_engine import OpenAIEngine
from medrm.scorer.engines.vllm_engine import VllmEngine
from medrm.scorer.mock_judges import PREFIX, mock_judge
from medrm.scorer.open import Saved, folder_of, has_contract, scorer_of
from medrm.scorer.readouts import implementation_of
from medrm.scorer.readouts.generative_judge import Judge
from medrm.scorer.readouts.likelihood import Likelihood
from medrm.scorer.readouts.verdict_probability import VerdictProbability
from medrm.scorer.specs import JUDGE_READOUTS, judge_spec, local_judge, prompt_of, sampling_of

logger = logging.getLogger(__name__)

ENGINES = ("transformers", "vllm", "openai")

_SAMPLING = {
    "votes": "votes",
    "judge_temperature": "temperature",
    "max_new_tokens": "max_new_tokens",
}
"""Options that ask a saved judge otherwise than it was saved, and their fields in its contract."""


@dataclass(frozen=True)
class EvalRequest:
    """What one `medrm evaluate` is asked to do.

    Attributes:
        model: adapter folder, hub repository, base model, `mock:NAME`, or a service's model.
        benchmark: a name in evaluation/benchmarks/.
        output_dir: evaluation folder to write.
        judge: how a judge is asked.
        readout: how the model is read; None: as it was saved, a base as a generating judge.
        engine: what runs it, one of `ENGINES`.
        protocol: "official", "robust" or "both".
        revision: branch, tag or commit of a hub repository.
        data_root: where the benchmark's files lie.
        department_map: file of organ to department.
        trust_remote_code: whether code that the checkpoint ships may run.
        name: under which the model is reported; None: its own.
        no_images: whether small copies of the images are left out.
        overwrite_output_dir: whether another evaluation in `output_dir` is replaced.
        shared_prefix: as in `ModelOptions`.
    """

    model: str
    benchmark: str
    output_dir: Path
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    readout: str | None = None
    engine: str = "transformers"
    protocol: str = "both"
    revision: str | None = None
    data_root: str | None = None
    department_map: str | None = None
    trust_remote_code: bool = False
    name: str | None = None
    no_images: bool = False
    overwrite_output_dir: bool = False
    shared_prefix: Literal["on", "off"] = "on"


def evaluate_model(asked: EvalRequest) -> None:
    """Scores one model on one benchmark and prints the table.

    Raises:
        MedrmError: a name, the data or the model is not as it should be, or the model was trained
            on images of the benchmark.
    """
    state = PartialState()
    with state.main_process_first():
        departments = Path(asked.department_map) if asked.department_map else None
        chosen = load_benchmark(asked.benchmark, asked.data_root, department_map=departments)
    _check_protocol(asked, chosen)
    scorer = _scorer(asked, chosen, state.device)
    contract = None if isinstance(scorer, VerdictProbability | Likelihood) else scorer.contract
    limits: tuple[int | None, int | None] = (None, None)
    if contract is not None:
        refuse_trained_images(contract, chosen)
        limits = (contract.min_pixels, contract.max_pixels)
    local = Path(asked.model).resolve().name if Path(asked.model).exists() else asked.model
    result = evaluate(
        scorer,
        chosen,
        asked.output_dir,
        model_name=asked.name or local,
        protocol=asked.protocol,
        settings=settings_of(scorer, *limits),
        identity=identity_of(asked),
        images=not asked.no_images,
        overwrite=asked.overwrite_output_dir,
    )
    if state.is_main_process:
        print_report(result)


def _check_protocol(asked: EvalRequest, benchmark: Benchmark) -> None:
    """Refuses the official protocol for what it cannot read, before any weights are loaded.

    Raises:
        ConfigError: the judge is asked about each dimension apart, or not about all six.
    """
    if asked.protocol != "official":
        return
    spec, dimensions = judge_spec(asked.judge), asked_about(benchmark)
    readout, apart = asked.readout or asked.judge.judge_readout, spec.per_dimension
    if asked.model.startswith(PREFIX):
        readout, apart = "generate", False
    elif asked.engine != "openai" and _is_saved(asked):
        contract = _as_asked(read_adapter_config(folder_of(asked.model, asked.revision)), asked)
        readout, dimensions = asked.readout or contract.readout, contract.dimensions
        apart = contract.judge is not None and contract.judge.per_dimension
    if not can_be_official(readout, apart, dimensions):
        raise ConfigError(NOT_OFFICIAL)


def _is_saved(asked: EvalRequest) -> bool:
    return asked.model != PHANTOM_BASE and has_contract(asked.model, asked.revision)


def identity_of(asked: EvalRequest) -> str:
    """Returns which weights are measured: a rule's, a service's, a saved model's or a base's."""
    if asked.model.startswith(PREFIX):
        return asked.model
    if asked.engine == "openai":
        return OpenAIEngine(asked.model).identity
    if _is_saved(asked):
        return saved_identity(folder_of(asked.model, asked.revision))
    return reference_of(_base_options(asked)).identity


def _base_options(asked: EvalRequest) -> ModelOptions:
    return ModelOptions(
        model_name_or_path=asked.model,
        model_revision=asked.revision or "main",
        shared_prefix=asked.shared_prefix,
        trust_remote_code=asked.trust_remote_code,
    )


def _scorer(
    asked: EvalRequest, benchmark: Benchmark, device: torch.device
) -> Saved | VerdictProbability | Likelihood:
    """Returns what scores: a mock, a service, a saved model, or a base model.

    Raises:
        ConfigError: a readout that the model or engine cannot give.
    """
    if asked.model.startswith(PREFIX):
        return mock_judge(asked.model.removeprefix(PREFIX), asked_about(benchmark))
    if asked.engine != "transformers":
        return _served(asked, benchmark)
    if _is_saved(asked):
        return _trained(asked, benchmark, device)
    if Path(asked.model, "adapter_config.json").is_file():
        raise AdapterError(
            f"{asked.model} is an adapter without medrm.json, so neither its head nor its template "
            "is known. Give an adapter folder that medrm wrote."
        )
    readout, spec = asked.readout or asked.judge.judge_readout, judge_spec(asked.judge)
    options = _base_options(asked)
    processor = load_processor(
        asked.model, options.model_revision, trust_remote_code=asked.trust_remote_code
    )
    base = load_base(options, device).requires_grad_(False)
    _check_images(base, processor, benchmark)
    if readout in readout_names("base"):
        scorer: Any = implementation_of(readout)(base, processor, dimensions=benchmark.dimensions)
        return scorer  # type: ignore[no-any-return]
    return local_judge(base, processor, spec, readout, asked_about(benchmark))


def _trained(asked: EvalRequest, benchmark: Benchmark, device: torch.device) -> Saved:
    folder = folder_of(asked.model, asked.revision)
    saved = _as_asked(read_adapter_config(folder), asked)  # before its weights are loaded
    model, processor, _ = load_adapter(folder, device, shared_prefix=asked.shared_prefix)
    trained = scorer_of(model, processor, saved, readout=asked.readout)
    _check_images(model, processor, benchmark)
    return trained


def _as_asked(contract: AdapterConfig, asked: EvalRequest) -> AdapterConfig:
    """Returns the contract of a saved model, sampled as the options ask.

    A judge keeps the prompt that it was trained with.

    Raises:
        ConfigError: a readout or an option that is not for this model.
    """
    judged = contract.judge is not None
    if asked.readout not in (None, contract.readout, *(JUDGE_READOUTS if judged else ())):
        raise ConfigError(
            f"{asked.model} is scored by {contract.readout}; --readout {asked.readout} is for base "
            "models and judges. Leave it out."
        )
    default = asdict(JudgeOptions())
    given = {name: own for name, own in asdict(asked.judge).items() if own != default[name]}
    given.pop("judge_readout", None)  # as the readout
    sampling = {name: given.pop(name) for name in _SAMPLING if judged and name in given}
    if given:
        kind = "a judge that keeps its prompt" if judged else "no judge"
        raise ConfigError(
            f"{asked.model} was trained, as {contract.objective}: {kind}. Leave out "
            f"{', '.join(f'--{name}' for name in given)}."
        )
    if contract.judge is None:
        return contract
    spec = replace(contract.judge, **{_SAMPLING[name]: own for name, own in sampling.items()})
    return replace(contract, judge=spec)


def _served(asked: EvalRequest, benchmark: Benchmark) -> Judge:
    """Returns a judge whose model runs elsewhere: behind a service, or in vLLM.

    Raises:
        ConfigError: a readout that the engine cannot give, or a saved model that is no judge.
    """
    contract, spec, dimensions = None, judge_spec(asked.judge), asked_about(benchmark)
    readout = asked.readout or asked.judge.judge_readout
    if asked.engine == "vllm" and has_contract(asked.model, asked.revision):
        folder = folder_of(asked.model, asked.revision)
        contract = _as_asked(read_adapter_config(folder), asked)
        if contract.judge is None:
            raise ConfigError(
                f"{asked.model} was trained as {contract.objective}; vLLM runs judges. Give "
                "--engine transformers."
            )
        spec, dimensions = contract.judge, contract.dimensions
        readout = asked.readout or contract.readout
    if READOUTS[readout].writes != "text":
        raise ConfigError(
            f"--engine {asked.engine} writes verdicts; --readout {readout} needs the model itself. "
            "Give --readout generate or votes, or --engine transformers."
        )
    engine: OpenAIEngine | VllmEngine
    if asked.engine == "openai":
        engine = OpenAIEngine(asked.model)
    elif contract is not None:
        engine = _vllm_of(contract, folder, benchmark)
    else:
        engine = VllmEngine(
            resolve_model(asked.model),
            _known_processor(asked),
            revision=asked.revision,
            trust_remote_code=asked.trust_remote_code,
            images=_most_images(benchmark),
        )
    return Judge(
        engine,
        prompt_of(spec),
        dimensions,
        votes=spec.votes if readout == "votes" else 1,
        sampling=sampling_of(spec),
        plain=engine.plain if isinstance(engine, VllmEngine) else None,
        contract=contract,
    )


def _known_processor(asked: EvalRequest) -> ProcessorMixin | None:
    """Returns the processor of a model that vLLM is to run; None: of no family that medrm knows."""
    try:
        return load_processor(
            asked.model, asked.revision or "main", trust_remote_code=asked.trust_remote_code
        )
    except ConfigError as error:
        logger.warning("%s\nvLLM is given the conversations as they are.", error)
        return None


def _vllm_of(contract: AdapterConfig, folder: Path, benchmark: Benchmark) -> VllmEngine:
    """Returns vLLM with the base of a saved judge and, where there is one, its LoRA adapter.

    Raises:
        ConfigError: the base's weights were quantised.
    """
    limits = {"min_pixels": contract.min_pixels, "max_pixels": contract.max_pixels}
    lora = contract.trained == "lora"
    if contract.quantisation is not None:
        raise ConfigError(
            f"The judge was trained on {contract.quantisation} weights, which vLLM would not "
            "repeat. Leave --engine out, to use transformers."
        )
    return VllmEngine(
        resolve_model(find_base(contract.base, folder)) if lora else str(folder),
        load_processor(str(folder)),
        folder if lora else None,
        revision=contract.base_revision,
        dtype=contract.dtype,
        images=_most_images(benchmark),
        pixel_limits={name: value for name, value in limits.items() if value is not None},
    )


def _most_images(benchmark: Benchmark) -> int:
    return max(1, *(len(case.images) for case in benchmark.cases))


def asked_about(benchmark: Benchmark) -> tuple[str, ...]:
    """Returns what a judge that was not trained is asked about.

    All of Med-RewardBench's dimensions where the benchmark labels one of them: the released scorer
    drops a reply that lacks any.
    """
    if set(benchmark.dimensions) <= set(DIMENSIONS):
        return DIMENSIONS
    return benchmark.dimensions


def _check_images(
    model: PreTrainedModel | PeftModel, processor: ProcessorMixin, benchmark: Benchmark
) -> None:
    if any(case.images for case in benchmark.cases):
        check_image_reaches(model, processor, family_of(model.config))


def refuse_trained_images(contract: AdapterConfig, benchmark: Benchmark) -> None:
    """Fails when a saved model's contract lists an image of the benchmark as a training image.

    Raises:
        DataError: names the cases.
    """
    seen = set(contract.training_pixel_digests)
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
