"""The one way to a model that scores: `open_scorer`.

It takes whatever `--model` names (a rule, a service's model, a saved model, a base), a model in
memory, or the responses of another readout. `load` is the same for saved models alone. No other
module makes an object of a readout's class (tests/scorer/test_open.py walks the syntax tree).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.chat import JudgePrompt
from medrm.config.options import JudgeOptions, ModelOptions
from medrm.data.medical.conversions import agreed_conversion
from medrm.errors import AdapterError
from medrm.files import PEFT_CONFIG
from medrm.models.adapter import load_adapter, saved_identity
from medrm.models.adapter_config import AdapterConfig, JudgeSpec, read_adapter_config
from medrm.models.base_model import default_device, load_base
from medrm.models.base_reference import reference_of
from medrm.models.families import longest_row
from medrm.models.processors import load_processor
from medrm.readouts import READOUTS
from medrm.schema import DIMENSIONS, Response
from medrm.scorer import Scorer, implementation_of
from medrm.scorer.caller_cases import CallerImages
from medrm.scorer.determinism import prepare_kernels
from medrm.scorer.engines import ENGINES, engine_class
from medrm.scorer.engines.base import Engine, ModelSource, Sampling
from medrm.scorer.mock_judges import PREFIX, MockEngine
from medrm.scorer.proof_cache import check_loaded, proven_weights
from medrm.scorer.readouts.answer_rewards import ImplicitReward, RewardModel
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.readouts.probability_readout import ConstrainedJson
from medrm.scorer.runner import BATCH_ROWS
from medrm.scorer.specs import (
    ScorerPlan,
    find_saved,
    plan_readout,
    plan_scorer,
    prompt_of,
    refuse_needless_base,
    saved_folder,
)

logger = logging.getLogger(__name__)

Saved = RewardModel | ImplicitReward | Judge | ConstrainedJson
"""What `load` gives."""


class LoadedModel(NamedTuple):
    """A model in memory.

    Attributes:
        model: a stock model, with or without a head or an adapter.
        processor: of the model.
        contract: of a saved model, or of one that is read as if it were; None: read as a base.
    """

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    contract: AdapterConfig | None = None


class JudgeRecord(NamedTuple):
    """What a judge has said before, for readouts that need no model.

    Attributes:
        responses: of its evaluation.
        dimensions: what it was asked about.
        settings: what besides its weights could change a response.
    """

    responses: Iterable[Response]
    dimensions: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ScorerOptions:
    """How a model is loaded and run, whichever it is and however it is read.

    Attributes:
        revision: branch, tag or commit of a hub repository.
        device: where it runs; None: the GPU if there is one, else the CPU.
        batch_rows: most rows (case and answer, or case and order) computed at once.
        attn_implementation: attention of transformers; None: as trained, for the same scores.
        shared_prefix: "off" reads each answer's row by itself, for checking.
        deterministic: whether each answer, or each question to a judge, is computed alone, so that
            nothing else changes a bit of it (`medrm.scorer.determinism`).
        trust_remote_code: whether code that a base's checkpoint ships may run.
        most_images: most images of a case that will be scored; above 0, a model that is loaded
            must show that an image reaches it.
        dtype: precision of the weights; auto: of a saved model as trained, of a base as in
            `ModelOptions`.
        min_pixels: fewest pixels of an image, of a base; None: the processor's own.
        max_pixels: most pixels of an image, of a base; None: the processor's own.
        max_length: longest row that a base or a judge reads, in tokens; None: what the model can.
        quantisation: of a base: nf4, int8 or None.
        processor: folder of the processor that a base reads with; None: its own.
        base: where the base of a saved model lies now, as `find_base` takes it; None: it is looked
            for.
    """

    revision: str | None = None
    device: torch.device | str | None = None
    batch_rows: int = BATCH_ROWS
    attn_implementation: str | None = None
    shared_prefix: Literal["on", "off"] = "on"
    deterministic: bool = False
    trust_remote_code: bool = False
    most_images: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_length: int | None = None
    quantisation: Literal["nf4", "int8"] | None = None
    processor: Path | None = None
    base: str | None = None


DEFAULTS = ScorerOptions()


_LOADING = threading.Lock()
"""Held while a model is loaded: transformers patches torch's modules meanwhile, for all threads."""


class LoadOptions(TypedDict, total=False):
    """How a saved model runs; see `ScorerOptions`.

    Attributes:
        batch_rows: most rows (case and answer) computed at once.
        attn_implementation: attention of transformers; None: as trained, for the same scores.
        shared_prefix: "off" reads each answer's row by itself, for checking.
        dtype: precision of the weights; auto: as trained, for the same scores.
        deterministic: whether each answer is computed alone, so that nothing else changes a bit of
            its reward; in bfloat16 that is as much as 0.02 otherwise.
        image_conversion: by which DICOM and NIfTI images become pictures, of a model that was
            trained on none of them; another keeps its own.
    """

    batch_rows: int
    attn_implementation: str | None
    shared_prefix: Literal["on", "off"]
    dtype: Literal["auto", "float32", "bfloat16"]
    deterministic: bool
    image_conversion: str | None


def load(
    path_or_repo: str | Path,
    revision: str | None = None,
    device: torch.device | str | None = None,
    base: str | Path | None = None,
    readout: str | None = None,
    **running: Unpack[LoadOptions],
) -> Saved:
    """Loads a saved reward model or judge; nothing is ever made up for a missing part.

    Args:
        path_or_repo: an adapter folder, or the id of a hub repository.
        revision: branch, tag or commit of the repository.
        device: where it runs; None: the GPU if there is one, else the CPU.
        base: where the base model lies now: a folder, phantom-base, or ORG/NAME[@REVISION] on the
            hub; None: it is looked for. Its weights must be those that were trained on.
        readout: how a judge's verdict is read; None: as it was saved.
        running: `batch_rows`, `attn_implementation`, `shared_prefix`, `dtype`, `deterministic` and
            `image_conversion`, as `LoadOptions` describes them.

    Raises:
        AdapterError: not found, not a model that medrm saved, or not what its contract says.
        ConfigError: the base model cannot be loaded, or not be read so.
    """
    stated_base = None if base is None else str(base)
    folder = saved_folder(path_or_repo, revision)
    asked, trained = running.pop("image_conversion", None), read_adapter_config(folder)
    conversion = agreed_conversion(asked, trained.image_conversion, str(path_or_repo))
    options = ScorerOptions(device=device, most_images=1, base=stated_base, **cast(Any, running))
    with _LOADING:
        scorer = cast("Saved", open_scorer(folder, readout, options=options))
    scorer.caller_images = CallerImages(conversion=conversion)
    return scorer


def open_scorer(
    model: str | Path | LoadedModel | JudgeRecord,
    readout: str | None = None,
    engine: str = "transformers",
    *,
    dimensions: Sequence[str] = DIMENSIONS,
    judge: JudgeOptions | JudgeSpec | None = None,
    options: ScorerOptions = DEFAULTS,
) -> Scorer:
    """Opens a model for scoring.

    Args:
        model: `mock:NAME`, a service's model, an adapter folder or hub repository, a base model, a
            model in memory, or what a judge has said before.
        readout: how it is read; None: as it was saved, a base as `judge` says.
        engine: what runs a model that is named: transformers, vllm or openai.
        dimensions: what a model that was not trained is asked about; a saved one knows its own.
        judge: how such a judge is asked; None: as by default. A saved judge keeps its prompt.
        options: how the model is loaded and run.

    Raises:
        AdapterError: a saved model is not what its contract says.
        ConfigError: the model cannot be found or loaded, or a readout or an option is not for it.
    """
    judge = judge or JudgeOptions()
    if isinstance(model, JudgeRecord):
        return _construct(str(readout), *model)
    if options.deterministic:
        prepare_kernels()
    if isinstance(model, LoadedModel):
        plan = plan_readout(model.contract, readout, dimensions=dimensions, judge=judge)
        return _read(model, plan, options)
    name = str(model)
    plan = plan_scorer(
        name, readout, engine, dimensions=dimensions, judge=judge, revision=options.revision
    )
    refuse_needless_base(options.base, name, plan.folder)
    if name.startswith(PREFIX):
        return _judge(MockEngine(name.removeprefix(PREFIX)), plan)
    if engine != "transformers":
        source = ModelSource(
            name,
            plan.folder,
            plan.contract,
            options.revision,
            options.trust_remote_code,
            options.most_images,
            options.base,
        )
        return _judge(engine_class(engine).open(source), plan)
    loaded = _load(name, plan, options)
    _check(name, loaded, plan, options)
    return _read(loaded, plan, options)


def identity_of(model: str, engine: str, options: ScorerOptions) -> str:
    """Returns which weights a name stands for: a rule's, a service's, a saved model's, a base's."""
    if model.startswith(PREFIX):
        return model
    if ENGINES[engine].holds_weights:
        return str(engine_class(engine).open(ModelSource(model)).identity)
    folder = find_saved(model, options.revision)
    if folder is not None:
        return saved_identity(folder)
    return reference_of(_base_options(model, options)).identity


def _load(name: str, plan: ScorerPlan, options: ScorerOptions) -> LoadedModel:
    """Loads a saved model, or a base.

    Raises:
        AdapterError: an adapter that medrm did not write.
    """
    device = options.device or default_device()
    if plan.folder is not None:
        return LoadedModel(
            *load_adapter(
                plan.folder,
                device,
                None if options.dtype == "auto" else getattr(torch, options.dtype),
                options.attn_implementation,
                options.shared_prefix,
                options.base,
            )
        )
    if Path(name, PEFT_CONFIG).is_file():
        raise AdapterError(
            f"{name} is an adapter without medrm.json, so neither its head nor its template is "
            "known. Give an adapter folder that medrm wrote."
        )
    base = _base_options(name, options)
    if options.processor is not None:
        processor = load_processor(str(options.processor))
    else:
        processor = load_processor(
            name,
            base.model_revision,
            base.min_pixels,
            base.max_pixels,
            trust_remote_code=options.trust_remote_code,
        )
    dtype = getattr(torch, options.dtype) if options.dtype != "auto" else None
    return LoadedModel(load_base(base, device, dtype).requires_grad_(False), processor)


def _check(name: str, loaded: LoadedModel, plan: ScorerPlan, options: ScorerOptions) -> None:
    """Proves of a loaded model what its scores rely on.

    Raises:
        ConfigError: it does not hold.
    """
    if plan.folder is None:
        weights = reference_of(_base_options(name, options)).identity
    else:
        weights = proven_weights(plan.folder)
    contract = loaded.contract
    template = ModelOptions.reward_template if contract is None else contract.reward_template
    check_loaded(*loaded[:2], weights, template, images=options.most_images > 0)


def _base_options(name: str, options: ScorerOptions) -> ModelOptions:
    return ModelOptions(
        model_name_or_path=name,
        model_revision=options.revision or "main",
        attn_implementation=options.attn_implementation or ModelOptions.attn_implementation,
        shared_prefix=options.shared_prefix,
        trust_remote_code=options.trust_remote_code,
        load_in_4bit=options.quantisation == "nf4",
        load_in_8bit=options.quantisation == "int8",
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        max_length=options.max_length,
    )


def _read(loaded: LoadedModel, plan: ScorerPlan, options: ScorerOptions) -> Scorer:
    """Returns the readout of a model in memory.

    What is too long for a model's own positions is not read. The max_length of a training run is
    no limit for a verdict: it sets training cases aside to save memory, a verdict prompt holds both
    answers, and what it kept from being read would count as wrong. A reward model is also read no
    farther than its contract says.
    """
    readout, (model, processor, contract) = READOUTS[plan.readout], loaded
    batching: dict[str, Any] = {"batch_rows": options.batch_rows}
    if options.deterministic:  # of a readout that others wrote it is asked only then
        batching["deterministic"] = True
    if readout.reads == "reward_model":
        return _construct(plan.readout, model, processor, contract, **batching)
    limits = {"dimensions": plan.dimensions, **batching}
    if readout.reads == "base":
        limits |= {} if options.max_length is None else {"max_length": options.max_length}
        return _construct(plan.readout, model, processor, **limits)
    context_length = longest_row(model.config, options.max_length)
    if readout.writes == "text":
        transformers = engine_class("transformers")
        thinks = contract is None  # a saved judge replies as it was trained, with its verdict
        engine = transformers(
            model, processor, max_length=context_length, thinks=thinks, **batching
        )
        return _judge(engine, plan)
    limits |= {"max_length": context_length, "contract": contract}
    prompt = prompt_of(cast("JudgeSpec", plan.judge))
    return _construct(plan.readout, model, processor, prompt, **limits)


def _judge(engine: Engine, plan: ScorerPlan) -> Scorer:
    """Returns a judge whose replies an engine writes, asked as planned."""
    spec = cast("JudgeSpec", plan.judge)
    return _construct(
        plan.readout,
        engine,
        prompt_of(spec),
        plan.dimensions,
        votes=spec.votes if plan.readout == "votes" else 1,
        sampling=Sampling(spec.temperature, spec.max_new_tokens),
        contract=plan.contract,
    )


def judge_on(
    engine: Engine, prompt: JudgePrompt, dimensions: Sequence[str], **asked: Any
) -> Scorer:
    """Returns a judge that holds its conversations with an engine, or only counts them."""
    return _construct("generate", engine, prompt, tuple(dimensions), **asked)


def _construct(readout: str, *arguments: Any, **options: Any) -> Scorer:
    """Returns an object of a readout's class; `medrm.readouts.Readout` says what it is given."""
    return cast("Scorer", implementation_of(readout)(*arguments, **options))
