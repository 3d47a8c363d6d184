"""Where a run goes on: its checkpoints, and which of them `resume_from_checkpoint` means."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from medrm.config.parse import Run


def resume_point(option: str | None) -> str | bool | None:
    """Returns what `resume_from_checkpoint` means: a checkpoint's folder, or True for the last."""
    if option is not None and option.lower() in ("true", "false"):
        return option.lower() == "true"
    return option


def checkpoint_of(run: Run, output: Path) -> str | bool | None:
    """Returns where the training goes on; the Trainer's own choice takes half a checkpoint."""
    point = resume_point(run.training.resume_from_checkpoint)
    return last_checkpoint(output) if point is True else point


def last_checkpoint(output: Path) -> str | None:
    """Returns the latest checkpoint's folder, None where there is none.

    Its state is written last: a folder without it is what a killed run had half written, and one
    whose name ends in no number is none.
    """
    checkpoints: dict[int, Path] = {}
    for folder in output.glob("checkpoint-*"):
        with suppress(FileNotFoundError, ValueError):
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            checkpoints[int(folder.name.removeprefix("checkpoint-"))] = folder
    return str(checkpoints[max(checkpoints)]) if checkpoints else None
