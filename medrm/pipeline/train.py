"""The run of `recipes/train_rm.py`: before, training, after, comparison, card, report."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import PartialState

from medrm.config import Run
from medrm.evaluation.compare import compare
from medrm.evaluation.report_page import write_page
from medrm.evaluation.tables.terminal import print_comparison
from medrm.hub import push, write_card
from medrm.objectives import load_objective
from medrm.pipeline.checks import check_options
from medrm.pipeline.context import RunContext, stage
from medrm.pipeline.crossfit import train_folds
from medrm.pipeline.manifest import write_manifest
from medrm.pipeline.prepare_data import prepare_data
from medrm.pipeline.run_folder import check_output, clear, repo_of
from medrm.pipeline.stages import check_start_is_blind, run_stages

logger = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Does the whole job of one recipe and leaves a run folder.

    Raises:
        MedrmError: the configuration, the data or the model is not as it should be.
    """
    output = Path(run.training.output_dir)
    check_options(run, load_objective(run.objective))
    check_output(output, run)
    if run.data.crossfit:
        train_folds(run, output)
    else:
        train_one(run, output)


def train_one(run: Run, output: Path) -> None:
    """Trains one model and measures it on the benchmark."""
    state = PartialState()
    with stage("data"), state.main_process_first():
        splits = prepare_data(run)
    check_start_is_blind(run, splits.benchmark)
    context = RunContext.prepare(run, splits, output)
    state.wait_for_everyone()
    if state.is_main_process:
        clear(output, run)  # only now: a run that cannot start leaves the earlier one alone
        write_manifest(output / "run.json", run, context.splits.summary(), state.num_processes)
        logger.info("%s", context.splits.describe())
    state.wait_for_everyone()
    results = run_stages(context)
    if state.is_main_process:
        conclude(context, results.controls)
    state.wait_for_everyone()


def conclude(context: RunContext, controls: list[str]) -> None:
    """Compares, writes card and report, and pushes where that is asked."""
    comparison = compare(
        context.folder("before"),
        context.folder("after"),
        primary=context.splits.primary,
        controls={name: context.folder(name) for name in controls},
        allowed_differences=context.run.evaluation.allowed_differences,
        output_dir=context.output,
    )
    print_comparison(comparison)
    write_card(context.output / "adapter", context.output)
    page = write_page(context.output)
    logger.info("report: %s\nadapter: %s", page, context.output / "adapter")
    if context.run.training.push_to_hub:
        private = context.run.training.hub_private_repo
        pushed = push(context.output / "adapter", repo_of(context.run), private=private)
        logger.info("pushed: %s", pushed)
