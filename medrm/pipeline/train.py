"""The run of `recipes/train_rm.py`: before, training, after, comparison, card, report."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint

from medrm.config import Run
from medrm.errors import ConfigError
from medrm.evaluation.compare import compare
from medrm.evaluation.page import write_page
from medrm.evaluation.tables import print_comparison
from medrm.hub import check_push, push, write_card
from medrm.objectives import load_objective
from medrm.pipeline import judges, rewards
from medrm.pipeline.bench import Workbench, stage
from medrm.pipeline.checks import check_options
from medrm.pipeline.learn import resume_point, train_adapter
from medrm.pipeline.manifest import write_manifest
from medrm.pipeline.material import gather

logger = logging.getLogger(__name__)

STALE = (
    "adapter",
    "evaluation",
    "runs",
    "completions",
    "comparison.json",
    "report.html",
    "metrics.jsonl",
    "run.json",
)
"""What a run writes and an overwriting run removes; checkpoint-* as well."""


def train(run: Run) -> None:
    """Does the whole job of one recipe and leaves a run folder.

    Raises:
        MedrmError: the configuration, the data or the model is not as it should be.
    """
    state = PartialState()
    output = Path(run.training.output_dir)
    check_options(run, load_objective(run.objective))
    check_output(output, run)
    with stage("data"), state.main_process_first():
        material = gather(run)
    bench = Workbench.prepare(run, material, output)
    state.wait_for_everyone()
    if state.is_main_process:
        clear(output, run)  # only now: a run that cannot start leaves the earlier one alone
        write_manifest(output / "run.json", run, bench.material.summary(), state.num_processes)
        logger.info("%s", bench.material.describe())
    state.wait_for_everyone()
    measures = judges if bench.judge_spec else rewards
    measures.before(bench)
    controls = measures.controls_before(bench)
    train_adapter(bench)
    controls += measures.after(bench)
    if state.is_main_process:
        conclude(bench, controls)
    state.wait_for_everyone()


def check_output(output: Path, run: Run) -> None:
    """Refuses a run folder that is in use, and a push that would fail in the end.

    Raises:
        ConfigError: it holds an earlier run and neither overwriting nor resuming is asked; there
            is no checkpoint to resume from; the hub cannot take the adapter.
    """
    point = resume_point(run.training.resume_from_checkpoint)
    if point:
        folder = _last_checkpoint(output) if point is True else point
        if not isinstance(folder, str) or not Path(folder, "trainer_state.json").is_file():
            raise ConfigError(
                f"resume_from_checkpoint is {run.training.resume_from_checkpoint}: no checkpoint "
                f"there. Give the folder of one, or true with the output_dir of a stopped run."
            )
    elif (output / "run.json").exists() and not run.evaluation.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {output} holds an earlier run. Give another --output_dir, "
            "--overwrite_output_dir true to replace it, or --resume_from_checkpoint to go on."
        )
    if run.training.push_to_hub:
        check_push(repo_of(run))


def _last_checkpoint(output: Path) -> str | None:
    if not output.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(output))  # type: ignore[no-untyped-call]
    return found


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


def conclude(bench: Workbench, controls: list[str]) -> None:
    """Compares, writes card and report, and pushes where that is asked."""
    comparison = compare(
        bench.folder("before"),
        bench.folder("after"),
        primary=bench.material.primary,
        controls={name: bench.folder(name) for name in controls},
        allowed_differences=bench.run.evaluation.allowed_differences,
        output_dir=bench.output,
    )
    print_comparison(comparison)
    write_card(bench.output / "adapter", bench.output)
    page = write_page(bench.output)
    logger.info("report: %s\nadapter: %s", page, bench.output / "adapter")
    if bench.run.training.push_to_hub:
        private = bench.run.training.hub_private_repo
        pushed = push(bench.output / "adapter", repo_of(bench.run), private=private)
        logger.info("pushed: %s", pushed)


def repo_of(run: Run) -> str:
    """Returns where the adapter is pushed: hub_model_id, else the run folder's name."""
    return str(run.training.hub_model_id or Path(run.training.output_dir).resolve().name)
