"""How `medrm evaluate` reads a model: by its options, or a base as the model trained on it is read.

Numbers of two models can be compared where both have read the same input. What a saved model reads
is fixed by its contract; `--like` gives it to the base, and options that contradict a contract are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from medrm.config.options import JudgeOptions, ModelOptions
from medrm.data.medical.conversions import agreed_conversion
from medrm.errors import ConfigError, refuse
from medrm.models.adapter_config import AdapterConfig, JudgeSpec, read_adapter_config
from medrm.models.base_reference import reference_of
from medrm.pipeline.requests import EvalRequest
from medrm.readouts import BASE_READOUTS, writes_rewards
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.open import ScorerOptions
from medrm.scorer.runner import BATCH_ROWS
from medrm.scorer.specs import sampled_as_asked, saved_contract, saved_folder

_PIXELS = ("min_pixels", "max_pixels")
_IN_MEMORY = ("like", *_PIXELS, "max_length", "dtype", "evaluation_batch_rows")
"""Options of models that medrm loads itself."""


class Reading(NamedTuple):
    """How a model is read.

    Attributes:
        readout: None: as it was saved, a base by its words.
        judge: how a judge is asked.
        dimensions: what a model that was not trained is asked about.
        options: how it is loaded.
    """

    readout: str | None
    judge: JudgeOptions | JudgeSpec
    dimensions: tuple[str, ...]
    options: ScorerOptions


def reading_of(request: EvalRequest, dimensions: Sequence[str]) -> Reading:
    """Returns how the model of a request is read.

    Args:
        request: of `medrm evaluate`.
        dimensions: what a model that was not trained is asked about, unless `like` says it.

    Raises:
        AdapterError: `like` is no saved model.
        ConfigError: options for a model in memory, but it is none; the model is not the base of
            `like`, or other options contradict its contract.
    """
    _refuse_for_services(request)
    options = ScorerOptions(
        revision=request.revision,
        base=request.base,
        shared_prefix=request.shared_prefix,
        deterministic=request.deterministic,
        batch_rows=request.evaluation_batch_rows or BATCH_ROWS,
        trust_remote_code=request.trust_remote_code,
        dtype=request.dtype,
        min_pixels=request.min_pixels,
        max_pixels=request.max_pixels,
        max_length=request.max_length,
    )
    if request.like is None:
        return Reading(request.readout, request.judge, tuple(dimensions), options)
    return _reading_like(request, saved_folder(request.like), options)


def conversion_of(request: EvalRequest) -> str | None:
    """Returns how medical images of a benchmark become pictures: as for the model, else as asked.

    None: as the benchmark says.

    Raises:
        ConfigError: another one is asked for than the model was trained on, or options for a model
            in memory, but it is none.
    """
    _refuse_for_services(request)
    if request.like is not None:
        contract: AdapterConfig | None = read_adapter_config(saved_folder(request.like))
    else:
        _, contract = saved_contract(request.model, request.engine, request.revision)
    trained = None if contract is None else contract.image_conversion
    agreed = agreed_conversion(request.image_conversion, trained, request.like or request.model)
    return None if agreed is None else str(agreed)


def _refuse_for_services(request: EvalRequest) -> None:
    """Raises ConfigError where options are for a model in memory, but it is none."""
    stated = [name for name in _IN_MEMORY if _stated(request, name)]
    if stated and (request.engine != "transformers" or request.model.startswith(PREFIX)):
        raise ConfigError(
            f"{', '.join(f'--{name}' for name in stated)}: only a model that medrm loads itself "
            f"takes such options; {request.model} (engine {request.engine}) is none. Leave them "
            "out, or give --engine transformers and a base or a saved model."
        )


def _reading_like(request: EvalRequest, folder: Path, options: ScorerOptions) -> Reading:
    """Returns how a base is read like the model that was trained on it."""
    contract = read_adapter_config(folder)
    revision = request.revision or contract.base_revision
    base = reference_of(ModelOptions(request.model, model_revision=revision or "main"))
    if not base.is_same(contract.base):
        raise ConfigError(
            f"--like {request.like} was trained on {contract.base.identity}; --model "
            f"{request.model} is {base.identity}. Give that base, or leave --like out."
        )
    readout, judge = request.readout, request.judge
    # Rows of one answer, as a reward model reads them; a verdict's prompt holds both answers.
    reads_answers = readout is not None and writes_rewards(readout)
    _refuse(request, contract, (*_PIXELS, "dtype", *(["max_length"] if reads_answers else [])))
    spec = None if readout in BASE_READOUTS else contract.judge
    like = replace(
        options,
        revision=revision,
        dtype=contract.dtype,
        min_pixels=None,  # its processor was saved with them
        max_pixels=None,
        max_length=contract.max_length if reads_answers else request.max_length,
        quantisation=contract.quantisation,
        processor=folder,
    )
    if spec is None:
        return Reading(readout, judge, contract.dimensions, like)
    as_saved = sampled_as_asked(contract, judge) or spec
    return Reading(readout or contract.readout, as_saved, contract.dimensions, like)


def refuse_contradictions(request: EvalRequest, contract: AdapterConfig) -> None:
    """Refuses options with which a saved model would read another input than its contract says.

    Raises:
        ConfigError: names them.
    """
    if request.like is not None:
        raise ConfigError(
            f"--like is for a base; {request.model} is a saved model and is read as it was trained."
        )
    _refuse(request, contract, (*_PIXELS, *(["max_length"] if contract.judge is None else [])))


def _refuse(request: EvalRequest, contract: AdapterConfig, names: Sequence[str]) -> None:
    problems = [
        f"--{name} {getattr(request, name)}: it was trained with {_named(getattr(contract, name))}"
        for name in names
        if _stated(request, name) and getattr(request, name) != getattr(contract, name)
    ]
    model = request.like or request.model
    refuse(problems, f"{model} is read as it was trained; on other inputs it is another model.")


def _named(value: object) -> str:
    return "the processor's own, or no limit" if value is None else str(value)


def _stated(request: EvalRequest, name: str) -> bool:
    return getattr(request, name) not in (None, "auto")
