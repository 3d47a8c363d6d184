"""How a model will be read, known before its weights are loaded: from options and its contract."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from medrm.chat import JudgePrompt, load_prompt
from medrm.config.options import JudgeOptions
from medrm.errors import AdapterError, ConfigError, nearest
from medrm.files import PEFT_CONFIG, PHANTOM_BASE, asset
from medrm.models.adapter_config import AdapterConfig, JudgeSpec, read_adapter_config
from medrm.models.adapter_files import MEDRM_FILE, download, is_saved_on_hub
from medrm.models.mapped_model import is_mapping, mapped_folder
from medrm.models.model_name import check_model_name
from medrm.readouts import BASE_READOUTS, JUDGE_READOUTS, READOUTS
from medrm.scorer.engines import ENGINES
from medrm.scorer.mock_judges import PREFIX

_SAMPLING = {
    "votes": "votes",
    "judge_temperature": "temperature",
    "max_new_tokens": "max_new_tokens",
}
"""Options that sample a saved judge otherwise than it was saved, and their fields in its spec."""

_ADVICE = (
    "Give an existing adapter folder, such as RUN/adapter, or ORG/NAME of a repository that is "
    "reachable or in the cache."
)


@dataclass(frozen=True)
class ScorerPlan:
    """How a model will be read.

    Attributes:
        readout: one of `medrm.readouts.READOUTS`.
        dimensions: what is scored or asked about.
        judge: how a judge or a base is asked; None for a reward model.
        contract: of a saved model; None for any other.
        folder: where a saved model lies; None for any other.
    """

    readout: str
    dimensions: tuple[str, ...]
    judge: JudgeSpec | None
    contract: AdapterConfig | None = None
    folder: Path | None = None


def plan_scorer(
    model: str,
    readout: str | None,
    engine: str,
    *,
    dimensions: Sequence[str],
    judge: JudgeOptions | JudgeSpec,
    revision: str | None = None,
) -> ScorerPlan:
    """Returns how the model of that name will be read; a saved one is looked for first.

    Args:
        model: as `open_scorer` takes it.
        readout: None: as it was saved, else as the judge's options say.
        engine: what runs it.
        dimensions: what a model that was not trained is asked about.
        judge: how such a judge is asked: by options, or as a saved judge is.
        revision: branch, tag or commit of a hub repository.

    Raises:
        AdapterError: the model is a run folder, or its contract is not as it should be.
        ConfigError: a readout or an option that is not for this model or engine.
    """
    if model.startswith(PREFIX):  # a rule writes its verdict, however a model would be asked
        return ScorerPlan("generate", tuple(dimensions), judge_spec(JudgeOptions()))
    folder, contract = saved_contract(model, engine, revision)
    if engine != "transformers" and contract is not None and contract.judge is None:
        raise ConfigError(
            f"{model} was trained as {contract.objective}; vLLM runs judges. Give --engine "
            "transformers."
        )
    plan = plan_readout(contract, readout, dimensions=dimensions, judge=judge)
    if engine != "transformers" and READOUTS[plan.readout].writes != "text":
        raise ConfigError(
            f"--engine {engine} writes verdicts; --readout {plan.readout} needs the model itself. "
            "Give --readout generate or votes, or --engine transformers."
        )
    return replace(plan, folder=folder)


def saved_contract(
    model: str, engine: str, revision: str | None
) -> tuple[Path | None, AdapterConfig | None]:
    """Returns folder and contract of a model that medrm saved; None, None of any other.

    Raises:
        AdapterError: the model is a run folder, or its contract is not as it should be.
    """
    named = model.startswith(PREFIX) or ENGINES[engine].holds_weights
    folder = None if named else find_saved(model, revision)
    return folder, None if folder is None else read_adapter_config(folder)


def plan_readout(
    contract: AdapterConfig | None,
    readout: str | None,
    *,
    dimensions: Sequence[str],
    judge: JudgeOptions | JudgeSpec,
) -> ScorerPlan:
    """Returns how a model will be read; see `plan_scorer`.

    A saved judge keeps the prompt that it was trained with.

    Raises:
        AdapterError: the contract of a judge has no prompt.
        ConfigError: a readout or an option that is not for this model.
    """
    if contract is None:
        if isinstance(judge, JudgeSpec):
            options_spec, readout = judge, readout or JudgeOptions.judge_readout
        else:
            options_spec, readout = judge_spec(judge), readout or judge.judge_readout
        if readout not in BASE_READOUTS:
            _check_judge_readout(readout, options_spec)
        return ScorerPlan(readout, tuple(dimensions), options_spec)
    spec = judge if isinstance(judge, JudgeSpec) else sampled_as_asked(contract, judge)
    for_judges = spec is not None and readout not in BASE_READOUTS
    if readout not in (None, contract.readout) and not for_judges:
        raise ConfigError(
            f"The model is scored by {contract.readout}; readout {readout!r} is for "
            f"{'' if spec else 'judges and '}base models. Leave it out."
        )
    readout = readout or contract.readout
    if spec is not None:
        _check_judge_readout(readout, spec)
    elif READOUTS[readout].reads == "judge":
        raise AdapterError(
            f"{MEDRM_FILE} names the readout {readout!r} but no judge's prompt. Save the "
            "adapter again."
        )
    return ScorerPlan(readout, contract.dimensions, spec, contract)


def sampled_as_asked(contract: AdapterConfig, judge: JudgeOptions) -> JudgeSpec | None:
    """Returns how a saved judge is asked, sampled as the options say; None for a reward model.

    Raises:
        ConfigError: other options than those of sampling, or any for a reward model.
    """
    default = asdict(JudgeOptions())
    changed = {name: value for name, value in asdict(judge).items() if value != default[name]}
    changed.pop("judge_readout", None)  # as the readout
    sampling = {
        _SAMPLING[name]: changed.pop(name)
        for name in _SAMPLING
        if contract.judge is not None and name in changed
    }
    if changed:
        trained_as = "no judge" if contract.judge is None else "a judge that keeps its prompt"
        raise ConfigError(
            f"The model was trained, as {contract.objective}: {trained_as}. Leave out "
            f"{', '.join(f'--{name}' for name in changed)}."
        )
    return None if contract.judge is None else replace(contract.judge, **sampling)


def _check_judge_readout(readout: str, spec: JudgeSpec) -> None:
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


def judge_spec(options: JudgeOptions) -> JudgeSpec:
    """Returns how the options ask a judge.

    Raises:
        ConfigError: the prompt is unknown, or its file is no prompt.
    """
    prompt = load_prompt(options.judge_prompt, options.prompt_file)
    sampling = (options.votes, options.judge_temperature, options.max_new_tokens)
    values = (*astuple(prompt), *sampling)  # a spec's first fields are those of a prompt
    return JudgeSpec(*values)


def prompt_of(spec: JudgeSpec) -> JudgePrompt:
    """Returns the prompt that a spec describes."""
    return JudgePrompt(*astuple(spec)[: len(fields(JudgePrompt))])


def find_saved(path_or_repo: str, revision: str | None = None) -> Path | None:
    """Returns the folder of a model that medrm saved, downloaded where it is a hub repository.

    None: a base model. A repository that cannot be asked is taken for one; loading it as a base
    says why it failed.

    Raises:
        AdapterError: it is a run folder, which holds the model as `adapter`, or no model can have
            that name.
    """
    folder = Path(path_or_repo)
    if path_or_repo == PHANTOM_BASE:
        return None
    if is_mapping(folder):
        return mapped_folder(folder)
    if folder.is_dir():
        adapter = folder / "adapter"
        if (folder / MEDRM_FILE).is_file():
            return folder
        if (adapter / MEDRM_FILE).is_file():
            raise AdapterError(
                f"{path_or_repo!r} is a run folder, no model. Did you mean {adapter}?"
            )
        return None
    check_model_name(path_or_repo, AdapterError)
    try:
        is_saved = is_saved_on_hub(path_or_repo, revision, _ADVICE)
    except AdapterError:
        return None
    return download(path_or_repo, revision, _ADVICE) if is_saved else None


def refuse_needless_base(base: str | None, model: str, folder: Path | None) -> None:
    """Refuses to be told where the base lies of a model that is no saved one.

    Args:
        base: as it was given; None: it was not.
        model: as it is named.
        folder: where it lies if it is a saved one, else None.

    Raises:
        ConfigError: it is none.
    """
    if base is not None and folder is None:
        raise ConfigError(f"--base is for a saved model, which {model} is not. Leave it out.")


def files_at_hand(model: str, revision: str | None = None) -> Path | None:
    """Returns where a model's files lie without any download: a folder, or the hub's cache."""
    if model == PHANTOM_BASE:
        return asset(f"recipes/quickstart/{PHANTOM_BASE}")
    if Path(model).is_dir():
        return Path(model)
    with suppress(HFValidationError):
        for name in ("config.json", PEFT_CONFIG):
            file = try_to_load_from_cache(model, name, revision=revision)
            if isinstance(file, str):
                return Path(file).parent
    return None


def saved_folder(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a model that medrm saved, downloaded where it is a hub repository.

    Raises:
        AdapterError: not found, or not a model that medrm saved.
    """
    name = str(path_or_repo)
    is_here = name == PHANTOM_BASE or os.path.exists(name)
    if not is_here and is_saved_on_hub(name, revision, _ADVICE):
        return download(name, revision, _ADVICE)
    folder = find_saved(name) if is_here else None
    if folder is None:
        raise AdapterError(
            f"{name!r} is no saved model of medrm: it has no {MEDRM_FILE}. A base "
            "model has neither head nor judge's prompt; train one with recipes/train_rm.py, whose "
            "run also measures the base, or measure it with medrm evaluate. Give the adapter "
            "folder of a run, such as RUN/adapter."
        )
    return folder
