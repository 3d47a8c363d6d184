"""The run of `recipes/train_rm.py`: before, training, after, comparison, card, report."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import PartialState

from medrm.config import Run
from medrm.evaluation.report_page import write_page
from medrm.hub import push, write_card
from medrm.objectives import load_objective
from medrm.pipeline.checks import check_options
from medrm.pipeline.context import RunContext, stage
from medrm.pipeline.crossfit import train_folds
from medrm.pipeline.prepare_data import prepare_data
from medrm.pipeline.run_folder import check_output, compare_rows, repo_of, start_folder
from medrm.pipeline.stages import refuse_seen_init_adapter, run_stages

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
    refuse_seen_init_adapter(run, splits.benchmark)
    context = RunContext.prepare(run, splits, output)
    start_folder(output, run, context.splits.summary(), context.splits.describe())
    results = run_stages(context)
    if state.is_main_process:
        compare_rows(output, run, splits.primary, results.controls)
        conclude(run, output)
    state.wait_for_everyone()


def conclude(run: Run, output: Path) -> None:
    """Writes card and report, and pushes where that is asked."""
    adapter = output / "adapter"
    write_card(adapter, output)
    page = write_page(output)
    logger.info("report: %s\nadapter: %s", page, adapter)
    if run.training.push_to_hub:
        logger.info("pushed: %s", push(adapter, repo_of(run), run.training.hub_private_repo))
