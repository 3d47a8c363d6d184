"""Whether options apply to what a run trains, and whether it can go on from an adapter."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

from medrm.chat import load_prompt
from medrm.config.options import CONTROLS
from medrm.config.parse import Run
from medrm.data.image_ablations import IMAGE_ABLATIONS
from medrm.errors import applying, refuse
from medrm.models.adapter_config import read_adapter_config
from medrm.models.base_reference import BaseReference, reference_of
from medrm.objectives.objective import Objective
from medrm.readouts import JUDGE_READOUTS
from medrm.scorer.specs import saved_folder

logger = logging.getLogger(__name__)

_OF_HEADS = ("head", "head_hidden_size", "reward_template")


def check_options(run: Run, objective: Objective) -> None:
    """Refuses options that the run would not look at.

    Raises:
        ConfigError: all of them in one message, or a prompt that is none.
    """
    readout, problems = objective.readout(run), []
    if readout not in JUDGE_READOUTS:
        why = f"a model that is scored by {readout} writes no verdict"
        problems += _changed(run.judge, why)
        if "readout" not in run.evaluation.allowed_differences:
            logger.warning(
                "The base is read by its words, the trained model by %s: the comparison will say "
                "Not shown unless the recipe declares it, allowed_differences: [readout].",
                readout,
            )
    if objective.head_spec is None:
        why = f"a model that is scored by {readout} has no head"
        problems += _changed(run.model, why, _OF_HEADS)
    if run.judge.init_adapter is not None:
        problems += _changed(run.adapter, "init_adapter is trained on as it is")
    if run.evaluation.controls != list(CONTROLS):  # by default those that apply are measured
        applicable = _applicable(run, objective)
        problems += [
            f"controls: {name} does not apply; this run can have {', '.join(applicable)}"
            for name in run.evaluation.controls
            if name not in applicable
        ]
    refuse(problems, f"Options do not apply to objective {run.objective}, readout {readout}.")


def _changed(group: Any, why: str, names: Collection[str] = ()) -> list[str]:
    """Returns the options of a group (of those names, or all) that have not their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(group)}
    return [
        f"{name} is {value!r}; leave it out: {why}"
        for name, value in vars(group).items()
        if (not names or name in names) and value != defaults[name]
    ]


def _applicable(run: Run, objective: Objective) -> list[str]:
    """Returns the controls that a run can have; whether there are images its data says."""
    readout = objective.readout(run)
    if readout not in JUDGE_READOUTS:
        heads = ["untrained_head", "frozen_probe"] if objective.head_spec else []
        zero_shot = ["zero_shot_verdict", "zero_shot_averaged", "zero_shot_likelihood"]
        return [*zero_shot, *heads, *IMAGE_ABLATIONS]
    prompt = load_prompt(run.judge.judge_prompt, run.judge.prompt_file)
    with_json = ["base_skeleton", "base_averaged", "skeleton"]
    with_json = with_json if skeleton_control_applies(readout, prompt.rationale) else []
    start_adapter = ["init_adapter"] if run.judge.init_adapter else []
    return [*with_json, *start_adapter, *IMAGE_ABLATIONS]


def skeleton_control_applies(readout: str, rationale: bool) -> bool:
    """Whether a judge is also read with its JSON given, as a control.

    Not where reasons come first, nor where the run reads it so anyway.
    """
    return not rationale and readout != "skeleton"


def check_init_adapter(run: Run) -> None:
    """Refuses an `init_adapter` that the run cannot go on from, by its contract alone.

    Args:
        run: whose base model's configuration has been loaded.

    Raises:
        AdapterError: it is not found, or no saved model.
        ConfigError: it is no LoRA judge of the run's base.
    """
    start = run.judge.init_adapter
    if start is None:
        return
    contract = read_adapter_config(saved_folder(start))
    base, run_base = contract.base, reference_of(run.model)
    options = run.model
    quantisation = "nf4" if options.load_in_4bit else "int8" if options.load_in_8bit else None
    mismatches = {
        f"its base is {_named(base)}, the run's is {_named(run_base)}": not base.is_same(run_base),
        f"its base's weights are {contract.quantisation or 'not quantised'}, the run's are "
        f"{quantisation or 'not quantised'}": contract.quantisation != quantisation,
        f"it was trained as {contract.objective}, not as a judge": contract.judge is None,
        "it holds whole weights, not a LoRA adapter": contract.trained != "lora",
    }
    refuse(applying(mismatches), f"init_adapter {start} cannot be gone on from.")


def _named(origin: BaseReference) -> str:
    mark = origin.revision or (origin.digest or "")[:12]
    return f"{origin.name} ({mark})" if mark else origin.name
