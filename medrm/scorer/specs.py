"""How a judge is put together: from the options of a run, or from the contract of a saved model."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.chat import JudgePrompt, load_prompt
from medrm.config import JudgeOptions
from medrm.errors import ConfigError, nearest
from medrm.models.adapter_config import AdapterConfig, JudgeSpec
from medrm.readouts import readout_names
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.transformers_engine import TransformersEngine
from medrm.scorer.readouts.constrained_json import ConstrainedJson
from medrm.scorer.readouts.generative_judge import Judge
from medrm.scorer.runner import BATCH_ROWS

JUDGE_READOUTS = readout_names("judge")


def judge_spec(options: JudgeOptions) -> JudgeSpec:
    """Returns how the options ask a judge.

    Raises:
        ConfigError: the prompt is unknown, or its file is no prompt.
    """
    prompt = load_prompt(options.judge_prompt, options.prompt_file)
    return JudgeSpec(
        prompt=prompt.name,
        prompt_version=prompt.version,
        system=prompt.system,
        user=prompt.user,
        per_dimension=prompt.per_dimension,
        rationale=prompt.rationale,
        votes=options.votes,
        temperature=options.judge_temperature,
        max_new_tokens=options.max_new_tokens,
    )


def prompt_of(spec: JudgeSpec) -> JudgePrompt:
    """Returns the prompt that a spec describes."""
    return JudgePrompt(
        name=spec.prompt,
        version=spec.prompt_version,
        system=spec.system,
        user=spec.user,
        per_dimension=spec.per_dimension,
        rationale=spec.rationale,
    )


def sampling_of(spec: JudgeSpec) -> Sampling:
    """Returns how the replies of a spec are drawn."""
    return Sampling(spec.temperature, spec.max_new_tokens)


def local_judge(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    spec: JudgeSpec,
    readout: str,
    dimensions: Sequence[str],
    batch_rows: int = BATCH_ROWS,
    contract: AdapterConfig | None = None,
) -> Judge | ConstrainedJson:
    """Returns a judge that runs on a model in memory.

    What is too long for the model's own positions is not read. The max_length of a training run is
    no limit here: it sets training cases aside to save memory, the base before training has none,
    and what it kept from the trained judge would count as wrong.

    Args:
        model: a stock model, with or without an adapter.
        processor: of the model.
        spec: how it is asked.
        readout: one of `JUDGE_READOUTS`.
        dimensions: what is asked about.
        batch_rows: most rows (case and order) computed at once.
        contract: of a saved judge.

    Raises:
        ConfigError: the readout is unknown, or does not fit the spec.
    """
    _check_readout(readout, spec)
    prompt = prompt_of(spec)
    window = int(model.config.get_text_config().max_position_embeddings)
    if readout == "skeleton":
        return ConstrainedJson(
            model,
            processor,
            prompt,
            dimensions=dimensions,
            batch_rows=batch_rows,
            max_length=window,
            contract=contract,
        )
    engine = TransformersEngine(model, processor, batch_rows, max_length=window)
    return Judge(
        engine,
        prompt,
        dimensions,
        votes=spec.votes if readout == "votes" else 1,
        sampling=sampling_of(spec),
        plain=engine.plain,
        contract=contract,
    )


def _check_readout(readout: str, spec: JudgeSpec) -> None:
    if readout not in JUDGE_READOUTS:
        raise ConfigError(
            f"readout {readout!r} does not read a judge; accepted: {', '.join(JUDGE_READOUTS)}."
            f"{nearest(readout, JUDGE_READOUTS)} Choose one, or leave it out for a saved judge."
        )
    if readout == "votes" and (spec.votes < 2 or spec.temperature == 0):
        raise ConfigError(
            f"readout votes needs several samples; this judge has votes {spec.votes} and "
            f"temperature {spec.temperature:g}. Read it by generate or skeleton, or give votes "
            "above 1 and a temperature above 0."
        )
