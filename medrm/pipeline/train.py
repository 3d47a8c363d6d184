"""The run of `recipes/train_rm.py`: one model, or one for each fold, from the data to the report.

In a cross-fitted run one set is cut into folds by cluster. For each fold a model is trained on the
others, with a development part of its own to choose by; together they judge every case once.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from medrm.config.options import STAGES
from medrm.config.parse import Run
from medrm.evaluation.benchmark import Benchmark
from medrm.objectives import load_objective
from medrm.pipeline.conclusion import conclude, conclude_folds
from medrm.pipeline.context import RunContext, stage
from medrm.pipeline.data_splits import (
    DataSplits,
    agreement_lines,
    ceiling_lines,
    mixture_lines,
    mixture_record,
)
from medrm.pipeline.manifest import inputs_of, manifest_of
from medrm.pipeline.option_checks import check_options
from medrm.pipeline.prepare_data import prepare_data, prepare_folds
from medrm.pipeline.processes import check_launch, first_ones_first
from medrm.pipeline.run_folder import FOLDS, FolderStart, check_output, open_folder, plan_start
from medrm.pipeline.run_lock import owned
from medrm.pipeline.run_needs import check_needs
from medrm.pipeline.seen_images import refuse_seen_init_adapter
from medrm.pipeline.stages import run_stages

logger = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Does the whole job of one recipe, or the stages that it names, and leaves a run folder.

    A run that lies in the folder already goes on: what is done stays.

    Raises:
        MedrmError: the configuration, the data or the model is not as it should be, or the folder
            holds another run, or is owned by one.
    """
    output = Path(run.training.output_dir)
    check_needs(run)
    check_launch(run)
    check_options(run, load_objective(run.objective))
    with owned(output):
        _train(run, output)


def _train(run: Run, output: Path) -> None:
    check_output(output, run)
    if run.data.crossfit:
        train_folds(run, output)
        return
    state = PartialState()
    with stage("data"), first_ones_first():
        splits = prepare_data(run)
    refuse_seen_init_adapter(run, splits.benchmark, splits.source)
    context = RunContext.prepare(run, splits, output)
    open_folder(start_of(context, inputs_of(run, context.processor)))
    if state.is_main_process:
        logger.info("%s", context.splits.describe())
    run_stages(context)
    if "compare" in run.job.stages and state.is_main_process:
        conclude(context)
    elif state.is_main_process:
        _say_what_is_left([context])
    state.wait_for_everyone()


def _say_what_is_left(contexts: Sequence[RunContext]) -> None:
    """Says which stages are not done yet, after a start without the last one."""
    is_done = {
        "before": all(context.holds("before") for context in contexts),
        "train": all(context.is_trained for context in contexts),
        "after": all(
            context.is_trained and context.holds("after", context.saved_weights)
            for context in contexts
        ),
    }
    left = ",".join(name for name in STAGES if not is_done.get(name, False))
    logger.info("still to do: %s. The same command with --stages %s does it", left, left)


def train_folds(run: Run, output: Path) -> None:
    """Trains and measures a model for each fold, pools their verdicts and compares.

    Raises:
        MedrmError: as in `train`.
    """
    state = PartialState()
    with stage("data"), first_ones_first():
        benchmark, splits_of_folds = prepare_folds(run)
    refuse_seen_init_adapter(run, benchmark, benchmark.source)
    contexts = [  # all first: what can be known to be wrong of any fold is raised here
        fold_context(run, splits, output / FOLDS / str(number))
        for number, splits in enumerate(splits_of_folds, start=1)
    ]
    summary = _summary(benchmark, [context.splits for context in contexts])
    inputs = inputs_of(run, contexts[0].processor)
    starts = [start_of(context, inputs) for context in contexts]
    manifest = manifest_of(run, summary, inputs)
    whole = replace(run, job=replace(run.job, stages=list(STAGES)))  # stages are those of a fold
    open_folder(plan_start(output, manifest, whole, contexts[0].epoch_rows))
    if state.is_main_process:
        logger.info("%s", _describe(benchmark, summary))
    for number, (context, start) in enumerate(zip(contexts, starts, strict=True), start=1):
        with stage(f"fold {number} of {len(contexts)}"):
            open_folder(start)
            run_stages(context)
        gc.collect()  # trainers contain reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if "compare" in run.job.stages and state.is_main_process:
        conclude_folds(run, benchmark, contexts)
    elif state.is_main_process:
        _say_what_is_left(contexts)
    state.wait_for_everyone()


def start_of(
    context: RunContext, inputs: Mapping[str, Any], where: Mapping[str, Any] | None = None
) -> FolderStart:
    """Returns how the run of one model starts in its folder.

    Args:
        context: of the run.
        inputs: `inputs_of` the run.
        where: what the manifest says of the devices, where this process is not on them.
    """
    manifest = manifest_of(context.run, context.splits.summary(), inputs)
    manifest = {**manifest, **(where or {})}
    return plan_start(context.output, manifest, context.run, context.epoch_rows)


def fold_context(run: Run, splits: DataSplits, folder: Path) -> RunContext:
    """Returns the context of one fold, a run in a folder of its own."""
    arguments = copy.copy(run.training)
    arguments.output_dir = str(folder)
    return RunContext.prepare(replace(run, training=arguments), splits, folder)


def _summary(benchmark: Benchmark, splits_of_folds: Sequence[DataSplits]) -> dict[str, Any]:
    """Returns the data section of run.json: the set once, and what each fold holds."""
    summaries = [splits.summary() for splits in splits_of_folds]
    first, source, cases = summaries[0], benchmark.source, len(benchmark.cases)
    excluded = {case["case_id"]: case for summary in summaries for case in summary["excluded"]}
    per_fold = [
        {
            "fold": number,
            "train": len(splits.train),
            "development": len(splits.development),
            "cases": len(splits.benchmark.cases),
            "clusters": splits.benchmark.clusters,
            "digest": splits.benchmark.source.digest,
            "leaks": asdict(splits.leaks),
        }
        for number, splits in enumerate(splits_of_folds, start=1)
    ]
    return {
        **mixture_record(source, {"benchmark": benchmark.cases}),
        "train": {**first["train"], "cases": cases},
        "benchmark": {**first["benchmark"], "digest": source.digest, "cases": cases},
        "dimensions": first["dimensions"],
        "primary_dimension": first["primary_dimension"],
        "excluded": list(excluded.values()),
        "crossfit": {"folds": len(splits_of_folds), "per_fold": per_fold},
    }


def _describe(benchmark: Benchmark, summary: dict[str, Any]) -> str:
    """Returns what the terminal says of the data."""
    folds = summary["crossfit"]["per_fold"]
    return "\n".join(
        [
            f"{benchmark.name}: {len(benchmark.cases)} cases in {benchmark.clusters} clusters, "
            f"cut into {len(folds)} folds",
            *(
                f"fold {fold['fold']}: judges {fold['cases']} cases in {fold['clusters']} "
                f"clusters, learns from {fold['train']}, chooses by {fold['development']}"
                for fold in folds
            ),
            *mixture_lines(benchmark.source, {"benchmark": benchmark.cases}),
            *agreement_lines(benchmark.source),
            *ceiling_lines(benchmark),
        ]
    )
