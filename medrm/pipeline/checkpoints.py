"""Where a run goes on: its checkpoints, and which of them `resume_from_checkpoint` means."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Literal

from accelerate import PartialState

from medrm.config.parse import Run
from medrm.errors import ConfigError, report
from medrm.files import status_of
from medrm.objectives.whole_checkpoints import (
    PREFIX,
    checkpoints_of,
    identity_in,
    problems_of,
)

logger = logging.getLogger(__name__)

_told: set[str] = set()
"""Warnings that this process has given."""


def resume_point(option: str | None) -> str | Literal[True] | None:
    """Returns what `resume_from_checkpoint` means: a checkpoint's folder, or True for the last.

    Raises:
        ConfigError: it is "false": a run goes on unless it replaces what is there.
    """
    if option is not None and option.lower() == "false":
        raise ConfigError(
            f"resume_from_checkpoint is {option}, but a run always goes on where it was stopped. "
            "Leave it out, or give --overwrite_output_dir true to start anew."
        )
    return True if option is not None and option.lower() == "true" else option


def is_own(point: str | Path, output: Path) -> bool:
    """Returns whether a checkpoint lies in a run folder, however both are spelled or linked."""
    folders = (Path(point).parent.resolve(), Path(point).resolve().parent)
    return output.resolve() in folders


def checkpoint_of(run: Run, output: Path) -> str | None:
    """Returns where the training goes on: at the checkpoint that is named, else at the last one.

    A checkpoint of another run is where this one begins: its own last one goes before.
    None: it starts anew.

    Raises:
        ConfigError: the checkpoint that was named is damaged.
    """
    point = resume_point(run.training.resume_from_checkpoint)
    ends_with_best = run.training.load_best_model_at_end
    if not isinstance(point, str) or not is_own(point, output):
        last = last_checkpoint(output, best=ends_with_best)
        if last is not None or not isinstance(point, str):
            return last
    if problems := _problems(Path(point), ends_with_best):
        raise ConfigError(
            report(
                f"resume_from_checkpoint is {point}: that checkpoint is damaged. Give the folder "
                "of another, or leave the option out: the last whole one is then taken.",
                problems,
            )
        )
    return point


def refuse_foreign(output: Path, identity: str) -> None:
    """Refuses checkpoints that were copied into a run folder from another run.

    Raises:
        ConfigError: names them.
    """
    folders = checkpoints_of(output)
    foreign = [
        folders[step].name
        for step in sorted(folders)
        if identity_in(folders[step]) not in (None, identity)
    ]
    if foreign:
        raise ConfigError(
            f"{', '.join(foreign)} in {output} is of another run than run.json says: seed, data or "
            "options are others. Move it out of the folder, or remove it, and start the same "
            "command again: the run goes on from its own last checkpoint, or trains anew."
        )


def last_checkpoint(output: Path, best: bool = True) -> str | None:
    """Returns the latest whole checkpoint's folder; None where there is none.

    Those that are damaged are named in warnings.

    Args:
        output: the run folder.
        best: whether the run ends with its best checkpoint: then the best one that a checkpoint
            records must be whole as well.
    """
    folders = checkpoints_of(output)
    for step in sorted(folders, reverse=True):
        problems = _problems(folders[step], best)
        if not problems:
            return str(folders[step])
        _warn(f"{folders[step]} is damaged and is passed over: {'; '.join(problems)}")
    if folders:
        _warn(f"No checkpoint in {output} is whole: the training starts anew.")
    return None


def _warn(message: str) -> None:
    """Warns once in each run: it is asked for its checkpoints more than once."""
    if message not in _told and PartialState().is_main_process:
        _told.add(message)
        logger.warning("%s", message)


def _problems(checkpoint: Path, best: bool) -> tuple[str, ...]:
    """Returns why training cannot go on from a checkpoint; it is read once while it stays as it is.

    Reading takes about a second for each GB.
    """
    files = [*checkpoint.rglob("*"), *checkpoint.parent.glob(f"{PREFIX}*/*")]
    return _read_problems(checkpoint, best, *(str([path, status_of(path)]) for path in files))


@lru_cache(maxsize=64)
def _read_problems(checkpoint: Path, best: bool, *_statuses: str) -> tuple[str, ...]:
    return tuple(problems_of(checkpoint, best))
