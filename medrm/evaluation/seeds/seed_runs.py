"""The runs of one recipe with several seeds, as they lie in `OUTPUT/seed-<n>/`; no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medrm.config.options import CONTROLS
from medrm.errors import DataError, refuse
from medrm.evaluation.comparison.gate import find_differences
from medrm.evaluation.comparison.pairing import Evaluation, read_evaluation
from medrm.evaluation.report import read_json
from medrm.files import RUN_FILE

SEED_FOLDER = "seed-"
"""What stands before the seed in the name of a run's folder."""

SIDES = ("before", "after")

_NAMED = re.compile(rf"{SEED_FOLDER}(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class SeedRun:
    """A finished run: its base and its trained model have judged the same cases.

    Attributes:
        seed: of the training.
        folder: of the run.
        before: evaluation of the base.
        after: evaluation of the trained model.
    """

    seed: int
    folder: Path
    before: Evaluation
    after: Evaluation

    @cached_property
    def controls(self) -> dict[str, Evaluation]:
        """The evaluations beside the headline, by name: those that the run asked for."""
        evaluations = self.folder / "evaluation"
        return {
            name: read_evaluation(evaluations / name)
            for name in self.manifest.get("config", {}).get("controls", CONTROLS)
            if (evaluations / name / "report.json").is_file()
        }

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The content of `run.json`; empty where there is none."""
        path = self.folder / RUN_FILE
        return read_json(path) if path.is_file() else {}


def seed_folders(output: Path) -> dict[int, Path]:
    """Returns the folders of the seeds below a folder, by seed, in order."""
    named = ((_NAMED.fullmatch(path.name), path) for path in output.glob(f"{SEED_FOLDER}*"))
    return dict(sorted((int(name[1]), path) for name, path in named if name and path.is_dir()))


def finished_seeds(
    output: Path, only: Collection[int] | None = None
) -> tuple[dict[int, Path], dict[str, str]]:
    """Returns the folders of finished runs by seed, and by folder's name why one is left out.

    Args:
        output: holds the runs in `seed-<n>/`.
        only: the seeds to take; None: all.
    """
    finished, left_out = {}, {}
    for seed, folder in seed_folders(output).items():
        sides = [folder / "evaluation" / side for side in SIDES]
        lacking = [side.name for side in sides if not (side / "report.json").is_file()]
        if only is not None and seed not in only:
            left_out[folder.name] = "not among the seeds of this run"
        elif lacking:
            left_out[folder.name] = f"no evaluation {' and '.join(lacking)} yet"
        else:
            finished[seed] = folder
    return finished, left_out


def read_seed_runs(
    output: Path, only: Collection[int] | None = None
) -> tuple[list[SeedRun], dict[str, str]]:
    """Returns the finished runs, and what is left out; arguments as those of `finished_seeds`.

    Raises:
        DataError: fewer than two are finished; a run has another seed than its folder says; two
            cannot be compared with each other.
    """
    finished, left_out = finished_seeds(output, only)
    runs = [
        SeedRun(seed, folder, *(read_evaluation(folder / "evaluation" / side) for side in SIDES))
        for seed, folder in finished.items()
    ]
    if len(runs) < 2:
        lacking = [f"{name}: {reason}" for name, reason in left_out.items()]
        found = [*(f"{run.folder.name}: finished" for run in runs), *lacking]
        raise DataError(
            f"{str(output)!r} holds {len(runs)} finished {'run' if len(runs) == 1 else 'runs'} in "
            f"{SEED_FOLDER}<n>/, and a spread over seeds needs two ({'; '.join(found) or 'none'}). "
            "Start the recipe with --seeds 0,1,2 and this --output_dir."
        )
    refuse(_problems(runs), f"The seeds in {output} cannot be compared with each other.", DataError)
    return runs, left_out


def _problems(runs: Sequence[SeedRun]) -> list[str]:
    """What is wrong with runs that should differ in their seed alone."""
    problems = [
        f"{run.folder.name} was trained with seed {run.manifest['seed']}"
        for run in runs
        if run.manifest.get("seed", run.seed) != run.seed
    ]
    first = runs[0]
    owners: dict[str | None, str] = {None: ""}
    for run in runs:
        sides = {"before": (first.before, run.before), "after": (first.after, run.after)}
        for side, evaluations in sides.items():
            if differences := find_differences(*evaluations):
                names = ", ".join(differences)
                problems.append(
                    f"{run.folder.name} differs from {first.folder.name} {side} in {names}"
                )
        if run.before.report["weights"] != first.before.report["weights"]:
            problems.append(f"{run.folder.name} has another base than {first.folder.name}")
        owner = owners.setdefault(run.after.report["weights"], run.folder.name)
        if owner not in ("", run.folder.name):
            problems.append(f"{run.folder.name} has the weights of {owner}: one training twice")
    return problems
