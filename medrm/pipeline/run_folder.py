"""The folder of a run: whether it may be written, and what an earlier run left in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from medrm.config import Run
from medrm.errors import ConfigError
from medrm.hub import check_push
from medrm.pipeline.fit import last_checkpoint, resume_point

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


def check_output(output: Path, run: Run) -> None:
    """Refuses a run folder that is in use, and a push that would fail in the end.

    Raises:
        ConfigError: it holds an earlier run and neither overwriting nor resuming is asked; there
            is nothing to resume; the hub cannot take the adapter.
    """
    if resume_point(run.training.resume_from_checkpoint):
        _check_resumable(output, run)
    elif (output / "run.json").exists() and not run.evaluation.overwrite_output_dir:
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
    given = run.training.resume_from_checkpoint
    point = resume_point(given)
    if run.data.crossfit:
        if point is not True or not (output / "run.json").is_file():
            raise ConfigError(
                f"resume_from_checkpoint is {given}: a cross-fitted run goes on in its own folder. "
                "Give true, with the output_dir of a stopped run that has the same options."
            )
        return
    folder = last_checkpoint(output) if point is True else point
    if not isinstance(folder, str) or not Path(folder, "trainer_state.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint is {given}: no checkpoint there. Give the folder of one, or "
            "true with the output_dir of a stopped run."
        )


def clear(output: Path, run: Run) -> None:
    """Makes the run folder; what an earlier run left there goes, unless it is resumed."""
    output.mkdir(parents=True, exist_ok=True)
    if resume_point(run.training.resume_from_checkpoint) or not (output / "run.json").exists():
        return
    for entry in [*(output / name for name in STALE), *output.glob("checkpoint-*")]:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def repo_of(run: Run) -> str:
    """Returns where the adapter is pushed: hub_model_id, else the run folder's name."""
    return str(run.training.hub_model_id or Path(run.training.output_dir).resolve().name)
