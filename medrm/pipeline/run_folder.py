"""The folder of a run: what lies there, and whether a start replaces it, or goes on with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from medrm.config.parse import Run
from medrm.data.image_ablations import IMAGE_ABLATIONS
from medrm.errors import (
    ConfigError,
    DataError,
    applying,
    first_line,
    refuse,
)
from medrm.evaluation.report import read_json, write_json
from medrm.files import RUN_FILE, discard
from medrm.hub.connection import check_push
from medrm.integrity import damage, read_record
from medrm.leftovers import remove_drafts, remove_partials
from medrm.models.adapter import saved_identity
from medrm.models.adapter_files import MEDRM_FILE, damage_of
from medrm.models.training_images import DIGESTS_FILE
from medrm.objectives.exact_resume import METRICS
from medrm.objectives.training_faults import NAN_FILE
from medrm.objectives.whole_checkpoints import checkpoints_of, identity_in
from medrm.pipeline.checkpoints import is_own, refuse_foreign, resume_point
from medrm.pipeline.processes import from_main
from medrm.pipeline.run_identity import check_same_run, identity_of
from medrm.pipeline.zero_shot import CHOICE_FILE

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
"""Of what the comparison was made; written when all is done."""

TRAINED = "trained.json"
"""Which weights the run has trained; written before the adapter appears."""

FOLDS = "folds"

AFTER_TRAINING = (
    *("adapter", DIGESTS_FILE, TRAINED, "comparison.json", "report.html", FINISHED),
    *(f"evaluation/{name}" for name in ("frozen_probe", "after", "development", "skeleton")),
    *(f"evaluation/{name}" for name in IMAGE_ABLATIONS),
)
"""What a longer training makes anew."""

_WHERE = ("device", "processes", "sharding", "versions", "git_commit")

STALE = (
    "adapter",
    "evaluation",
    FOLDS,
    "runs",
    "completions",
    "comparison.json",
    "report.html",
    METRICS,
    CHOICE_FILE,
    DIGESTS_FILE,
    FINISHED,
    TRAINED,
    NAN_FILE,
    RUN_FILE,
)
"""What a run writes and an overwriting run removes; checkpoint-* as well."""


def check_output(output: Path, run: Run) -> None:
    """Refuses what is wrong with a run folder before any data are read.

    Raises:
        ConfigError: files of a run lie there, but nothing says of which; options contradict each
            other; there is no checkpoint to go on from; the hub cannot take the adapter.
    """
    point = resume_point(run.training.resume_from_checkpoint)
    is_named, overwrites = isinstance(point, str), run.job.overwrite_output_dir
    folders = [output / name for name in ("adapter", "evaluation", FOLDS)]
    orphans = [path.name for path in (*folders, *output.glob("checkpoint-*")) if path.exists()]
    no_manifest = not (output / RUN_FILE).exists()
    checks = {
        f"output_dir {output} holds {', '.join(orphans)}, but no run.json says of which run. Give "
        "another --output_dir, or --overwrite_output_dir true to replace it": (
            bool(orphans) and no_manifest and not overwrites
        ),
        f"overwrite_output_dir replaces the run in {output}, resume_from_checkpoint goes on with "
        "it; leave one of them out (--overwrite_output_dir false, where a recipe has it)": (
            overwrites and (point is True or (is_named and _is_replaced(Path(str(point)), output)))
        ),
        f"resume_from_checkpoint is {point}: a cross-fitted run goes on in its own folder, each "
        "fold from its last checkpoint. Leave it out": (is_named and run.data.crossfit > 0),
        f"resume_from_checkpoint is {point}: no checkpoint there. Give the folder of one, or leave "
        "it out to go on from the last one": (
            is_named and not Path(str(point), "trainer_state.json").is_file()
        ),
        f"push_to_hub publishes one adapter, but crossfit {run.data.crossfit} trains as many, to "
        "judge each case by a model that has not seen it. Leave push_to_hub out, and train without "
        "crossfit what is to be published": run.training.push_to_hub and run.data.crossfit > 0,
        "push_to_hub does not say where to: give --hub_model_id ORG/NAME": (
            run.training.push_to_hub and not run.training.hub_model_id
        ),
    }
    refuse(applying(checks))
    if run.training.push_to_hub:
        check_push(run.training.hub_model_id)


def _is_replaced(point: Path, output: Path) -> bool:
    """Returns whether an overwriting run in `output` would remove a checkpoint."""
    stale = [(output / name).resolve() for name in STALE]
    return is_own(point, output) or any(point.resolve().is_relative_to(path) for path in stale)


@dataclass(frozen=True)
class FolderStart:
    """How a run starts in its folder.

    Attributes:
        folder: of the run, or of one fold.
        manifest: the content of run.json from now on.
        goes_on: whether the run that lies there goes on.
        is_longer: whether it trains for more steps than it did.
        adapter_damage: what is wrong with a trained adapter, which is then made anew.
    """

    folder: Path
    manifest: Mapping[str, Any]
    goes_on: bool
    is_longer: bool
    adapter_damage: tuple[str, ...] = ()


def plan_start(
    folder: Path, manifest: Mapping[str, Any], run: Run, epoch_rows: Callable[[], int] | None
) -> FolderStart:
    """Returns how a run starts in a folder; nothing is written.

    Args:
        folder: of the run, or of one fold.
        manifest: of this start.
        run: all options.
        epoch_rows: as `check_same_run`.

    Raises:
        ConfigError: another run lies there, or a stage is asked for that needs another one first.
    """
    path = folder / RUN_FILE
    goes_on = path.exists() and not run.job.overwrite_output_dir
    is_longer, problems = False, list[str]()
    if goes_on:
        earlier = from_main(lambda: _manifest_there(folder, manifest))
        if not {"config", "data"} <= earlier.keys() or "max_steps" not in earlier["config"]:
            raise ConfigError(
                f"{path} does not say which run it is of. Give another --output_dir, or "
                "--overwrite_output_dir true to replace what is there."
            )
        is_longer = check_same_run(folder, earlier, manifest, epoch_rows)
        if is_longer and "train" not in run.job.stages:
            raise ConfigError(
                f"The training in {folder} is to be longer, which the stage train makes it. Add it "
                "to --stages, or give the length of then."
            )
        if "train" in run.job.stages:
            _check_sharding(folder, earlier, manifest)
            identity = earlier.get("identity", identity_of(manifest))
            problems = from_main(lambda: _refuse_foreign(folder, identity))
        manifest = _continued(earlier, manifest)
    elif manifest:  # a dry run of a new run has none
        manifest = {**manifest, "identity": identity_of(manifest)}
    start = FolderStart(folder, manifest, goes_on, is_longer, tuple(problems))
    _check_stages(start, run.job.stages)
    return start


def _manifest_there(folder: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the run.json of the run in a folder; where it is damaged, that of this start.

    That is safe where a whole checkpoint of that run says that it is this one.

    Raises:
        ConfigError: it is damaged, and nothing says which run lies there.
    """
    path = folder / RUN_FILE
    try:
        return read_json(path)
    except (DataError, OSError) as error:
        whole = [point for point in checkpoints_of(folder).values() if not damage(point)]
        if {identity_in(point) for point in whole} == {identity_of(manifest)}:
            logger.warning(
                "%s is damaged (%s), and is written anew: the checkpoints there are of the run "
                "that is started.",
                path,
                first_line(error),
            )
            return manifest
        raise ConfigError(
            f"{path} is damaged, and nothing else says which run lies there: {first_line(error)} "
            "Restore it from a copy and start the same command again. Without a copy give another "
            "--output_dir, or --overwrite_output_dir true to replace all that is there; `medrm "
            f"evaluate --model {folder / 'adapter'}` still measures an adapter that is whole."
        ) from error


def _refuse_foreign(folder: Path, identity: str) -> list[str]:
    """Refuses checkpoints and an adapter that another run has trained.

    Returns:
        what is wrong with the adapter, of which then nobody can tell whose it is.

    Raises:
        ConfigError: names what was put there.
    """
    refuse_foreign(folder, identity)
    adapter, trained = folder / "adapter", None
    with suppress(OSError, ValueError):
        trained = read_record(folder / TRAINED).get("weights")
    problems = damage_of(adapter)
    is_told = trained is not None and (adapter / MEDRM_FILE).is_file() and not problems
    if is_told and trained != saved_identity(adapter):
        raise ConfigError(
            f"{adapter} is not the one that this run has trained, says {TRAINED} beside it. Move "
            "it out of the folder and start the same command again: the run makes its own anew, "
            "from its last checkpoint."
        )
    return problems


def _continued(earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a run that goes on: it keeps what earlier starts were made with."""
    where = {name: earlier.get(name) for name in _WHERE}
    starts = list(earlier.get("earlier_starts", []))
    if where != {name: manifest[name] for name in _WHERE}:
        starts.append(where)
    identity = earlier.get("identity", identity_of(manifest))
    return {**manifest, "identity": identity, **({"earlier_starts": starts} if starts else {})}


def _check_sharding(folder: Path, earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Refuses to go on at a checkpoint whose parts this launch would not read.

    Trainer passes over an optimiser that was saved in other parts, and says nothing.

    Raises:
        ConfigError: the training is under way, and was launched otherwise.
    """
    then, now = earlier.get("sharding", manifest["sharding"]), manifest["sharding"]
    under_way = checkpoints_of(folder) and not (folder / "adapter" / MEDRM_FILE).is_file()
    if under_way and then != now:
        raise ConfigError(
            f"The training in {folder} is under way with sharding {then}, this launch has {now}, "
            "and cannot read its optimiser. Launch it as then, or remove its checkpoint-* folders: "
            "the training then starts anew."
        )


def _check_stages(start: FolderStart, stages: Collection[str]) -> None:
    """Refuses a stage that needs what another one makes, where that is neither there nor asked.

    Raises:
        ConfigError: names what is missing.
    """
    folder, kept = start.folder, start.goes_on and not start.is_longer
    reports = {name: folder / "evaluation" / name / "report.json" for name in ("before", "after")}
    adapter = folder / "adapter" / MEDRM_FILE
    needs = [
        ("after", "train", adapter, kept),
        ("compare", "before", reports["before"], start.goes_on),
        ("compare", "after", reports["after"], kept),
    ]
    problems = [
        f"the stage {stage} needs the stage {needed}, and there is no {path}"
        for stage, needed, path, stays in needs
        if stage in stages and needed not in stages and not (stays and path.is_file())
    ]
    refuse(problems, "Stages are missing. Add them to --stages, or start them first.")


def open_folder(start: FolderStart) -> None:
    """Clears what is replaced and writes the manifest, before the first step.

    A run that cannot start has left the earlier one alone.
    """
    state, folder = PartialState(), start.folder
    state.wait_for_everyone()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        stale = [*(folder / name for name in STALE), *folder.glob("checkpoint-*")]
        if start.adapter_damage:
            logger.warning(
                "%s is damaged, and is made anew from the last checkpoint: %s",
                folder / "adapter",
                "; ".join(start.adapter_damage),
            )
        if start.goes_on:
            is_redone = start.is_longer or start.adapter_damage
            stale = [folder / name for name in AFTER_TRAINING] if is_redone else []
        # The last one is run.json: until then the folder says which run it holds.
        for path in sorted(stale, key=lambda path: path.name == RUN_FILE):
            if path.is_dir():
                discard(path)
            else:
                path.unlink(missing_ok=True)
        if not start.goes_on or _readable(folder / RUN_FILE) != start.manifest:
            # A killed run can go on only if this file is complete.
            write_json(folder / RUN_FILE, start.manifest)
    state.wait_for_everyone()


def _readable(path: Path) -> Mapping[str, Any] | None:
    try:
        return read_json(path)
    except (DataError, OSError):
        return None


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed run has left half written, in a folder that is accepted as its own."""
    for model in (folder, *folder.glob(f"{FOLDS}/*/")):
        for drafted in (model, model / "evaluation"):
            remove_drafts(drafted)
    for name in (*STALE, "checkpoint-*"):
        for pattern in (name, f"{name}/**/*"):
            remove_partials(folder, pattern)


def run_identity_in(folder: Path) -> str | None:
    """Returns of which run a folder is, to be written into its checkpoints; None: of none."""
    path = folder / RUN_FILE
    identity: str | None = read_json(path).get("identity") if path.is_file() else None
    return identity
