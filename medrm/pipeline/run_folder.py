"""Whether a run may start, and its folder: options, what lies there, manifest, comparison."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from medrm.chat import load_prompt
from medrm.config.options import CONTROLS, STAGES
from medrm.config.parse import Run
from medrm.data.image_ablations import IMAGE_ABLATIONS
from medrm.errors import ConfigError, applying, refuse
from medrm.evaluation.compare import compare
from medrm.evaluation.tables.terminal import print_comparison
from medrm.files import write_atomically
from medrm.hub import check_push
from medrm.models.adapter_config import BaseReference, read_adapter_config, reference_of
from medrm.objectives.objective import Objective
from medrm.pipeline.checkpoints import checkpoint_of, resume_point
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
    if run.job.stages != list(STAGES):
        problems.append("stages: not built yet; leave it out")
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
        f"its base is {_named(base)}, the run's is {_named(run_base)}": base != run_base,
        f"its base's weights are {contract.quantisation or 'not quantised'}, the run's are "
        f"{quantisation or 'not quantised'}": contract.quantisation != quantisation,
        f"it was trained as {contract.objective}, not as a judge": contract.judge is None,
        "it holds whole weights, not a LoRA adapter": contract.trained != "lora",
    }
    refuse(applying(mismatches), f"init_adapter {start} cannot be gone on from.")


def _named(origin: BaseReference) -> str:
    mark = origin.revision or (origin.digest or "")[:12]
    return f"{origin.name} ({mark})" if mark else origin.name


STALE = (
    "adapter",
    "evaluation",
    "folds",
    "runs",
    "completions",
    "comparison.json",
    "report.html",
    "metrics.jsonl",
    "run.json",
)
"""What a run writes and an overwriting run removes; checkpoint-* as well."""

FOLDS = "folds"

PACKAGES = (
    "medrm",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "numpy",
    "pillow",
)
"""Libraries that decide numbers."""


def check_output(output: Path, run: Run) -> None:
    """Refuses a run folder that is in use, and a push that would fail in the end.

    Raises:
        ConfigError: it holds an earlier run and neither overwriting nor resuming is asked; there
            is nothing to resume; the hub cannot take the adapter.
    """
    if resume_point(run.training.resume_from_checkpoint):
        _check_resumable(output, run)
    elif (output / "run.json").exists() and not run.job.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {output} holds an earlier run. Give another --output_dir, "
            "--overwrite_output_dir true to replace it, or --resume_from_checkpoint true to "
            "go on."
        )
    if run.training.push_to_hub and run.data.crossfit:
        raise ConfigError(
            f"push_to_hub publishes one adapter, but crossfit {run.data.crossfit} trains as many, "
            "to judge each case by a model that has not seen it. Leave push_to_hub out, and train "
            "without crossfit what is to be published."
        )
    if run.training.push_to_hub:
        check_push(repo_of(run))


def _check_resumable(output: Path, run: Run) -> None:
    option = run.training.resume_from_checkpoint
    if run.data.crossfit:
        if resume_point(option) is not True or not (output / "run.json").is_file():
            raise ConfigError(
                f"resume_from_checkpoint is {option}: a cross-fitted run goes on in its own "
                "folder. Give true, with the output_dir of a stopped run that has the same options."
            )
        return
    folder = checkpoint_of(run, output)
    if not isinstance(folder, str) or not Path(folder, "trainer_state.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint is {option}: no checkpoint there. Give the folder of one, or "
            "true with the output_dir of a stopped run."
        )


def start_folder(output: Path, run: Run, data: Mapping[str, Any], description: str) -> None:
    """Clears the run folder and writes its manifest, before the first step.

    Args:
        output: the run folder.
        run: all options.
        data: the data section of run.json.
        description: what the terminal says of the data.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        resumed = resume_point(run.training.resume_from_checkpoint)
        if not resumed and (output / "run.json").exists():
            # Only now: a run that cannot start leaves the earlier one alone.
            for stale in [*(output / name for name in STALE), *output.glob("checkpoint-*")]:
                if stale.is_dir():
                    shutil.rmtree(stale)
                else:
                    stale.unlink(missing_ok=True)
        write_manifest(output, run, data)
        logger.info("%s", description)
    state.wait_for_everyone()


def compare_rows(
    output: Path, run: Run, primary: str, controls: Sequence[str], notes: Sequence[str] = ()
) -> None:
    """Compares `after` with `before` and the controls; writes and prints the comparison.

    Args:
        output: the run folder.
        run: all options.
        primary: dimension of the headline.
        controls: names of the evaluation folders that stand beside the headline.
        notes: what the reader of the headline must know.
    """
    evaluations = output / "evaluation"
    comparison = compare(
        evaluations / "before",
        evaluations / "after",
        primary=primary,
        controls={name: evaluations / name for name in controls},
        allowed_differences=run.evaluation.allowed_differences,
        output_dir=output,
        notes=notes,
    )
    print_comparison(comparison)


def repo_of(run: Run) -> str:
    """Returns where the adapter is pushed: hub_model_id, else the run folder's name."""
    return str(run.training.hub_model_id or Path(run.training.output_dir).resolve().name)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide numbers."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def git_commit() -> str | None:
    """Returns the commit of the checkout that medrm runs from, "+dirty" when changed, else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        dirty = git("status", "--porcelain", "-uno")
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    return None


def write_manifest(folder: Path, run: Run, data: Mapping[str, Any]) -> None:
    """Writes run.json: resolved configuration, versions, commit, seed, device and data digests."""
    manifest = {
        "config": run.resolved(),
        "seed": run.training.seed,
        "device": str(run.training.device),
        "processes": PartialState().num_processes,
        "versions": versions(),
        "git_commit": git_commit(),
        "data": data,
    }
    # A killed run can be resumed only if this file is complete.
    write_atomically(
        folder / "run.json", [json.dumps(manifest, indent=2, default=str).encode(), b"\n"]
    )
