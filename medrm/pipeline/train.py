"""The run of `recipes/train_rm.py`: one model, or one for each fold, from the data to the report.

In a cross-fitted run one set is cut into folds by cluster. For each fold a model is trained on the
others, with a development part of its own to choose by; together they judge every case once.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from medrm.config.parse import Run
from medrm.errors import refuse
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.folds import Fold, notes_of_folds, pool
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.report import read_json, write_json
from medrm.hub import push, write_card
from medrm.objectives import load_objective
from medrm.pipeline.checkpoints import last_checkpoint, resume_point
from medrm.pipeline.context import ReportRow, RunContext, stage
from medrm.pipeline.evaluate import refuse_seen_init_adapter
from medrm.pipeline.prepare_data import (
    DataSplits,
    agreement_lines,
    ceiling_lines,
    prepare_data,
    prepare_folds,
)
from medrm.pipeline.run_folder import (
    FOLDS,
    check_options,
    check_output,
    compare_rows,
    repo_of,
    start_folder,
    write_manifest,
)
from medrm.pipeline.run_lock import owned
from medrm.pipeline.run_needs import check_needs
from medrm.pipeline.stages import DEVELOPMENT, StageResults, in_all, run_stages, settle_before
from medrm.readouts import READOUTS

logger = logging.getLogger(__name__)

DONE = "fold.json"
"""Written when a fold is finished; a run that goes on skips the folds that have it."""

MAY_DIFFER = ("resume_from_checkpoint", "overwrite_output_dir", "output_dir")
"""Options that say how a run starts and where it lies, not what it does."""


def train(run: Run) -> None:
    """Does the whole job of one recipe and leaves a run folder.

    Raises:
        MedrmError: the configuration, the data or the model is not as it should be, or another run
            owns the folder.
    """
    output = Path(run.training.output_dir)
    check_needs(run)
    check_options(run, load_objective(run.objective))
    with owned(output):
        _train(run, output)


def _train(run: Run, output: Path) -> None:
    check_output(output, run)
    if run.data.crossfit:
        train_folds(run, output)
        return
    state = PartialState()
    with stage("data"), state.main_process_first():
        splits = prepare_data(run)
    refuse_seen_init_adapter(run, splits.benchmark)
    context = RunContext.prepare(run, splits, output)
    start_folder(output, run, context.splits.summary(), context.splits.describe())
    results = run_stages(context)
    if state.is_main_process:
        compare_rows(output, run, splits.primary, results.controls)
        adapter = output / "adapter"
        write_card(adapter, output)
        logger.info("report: %s\nadapter: %s", write_page(output), adapter)
        if run.training.push_to_hub:
            logger.info("pushed: %s", push(adapter, repo_of(run), run.training.hub_private_repo))
    state.wait_for_everyone()


def train_folds(run: Run, output: Path) -> None:
    """Trains and measures a model for each fold, pools their verdicts and compares.

    Raises:
        MedrmError: as in `train`; the run to go on with had other options or data.
    """
    state = PartialState()
    with stage("data"), state.main_process_first():
        benchmark, splits_of_folds = prepare_folds(run)
    refuse_seen_init_adapter(run, benchmark)
    contexts = [  # all first: what can be known to be wrong of any fold is raised here
        _fold_context(run, splits, output / FOLDS / str(number))
        for number, splits in enumerate(splits_of_folds, start=1)
    ]
    summary = _summary(benchmark, [context.splits for context in contexts])
    resumed = bool(resume_point(run.training.resume_from_checkpoint))
    if resumed:
        _check_same(output, run, summary)
    start_folder(output, run, summary, _describe(benchmark, summary))
    for number, context in enumerate(contexts, start=1):
        if resumed and (context.output / DONE).is_file():
            logger.info("fold %d of %d: done before", number, len(contexts))
            continue
        with stage(f"fold {number} of {len(contexts)}"):
            _run_fold(context)
    if state.is_main_process:
        _conclude(run, benchmark, contexts[0].splits.primary, output)
    state.wait_for_everyone()


def _fold_context(run: Run, splits: DataSplits, folder: Path) -> RunContext:
    """Returns the context of one fold, which goes on from the last checkpoint that the fold has."""
    arguments = copy.copy(run.training)
    arguments.output_dir = str(folder)
    goes_on = resume_point(run.training.resume_from_checkpoint) and last_checkpoint(folder)
    arguments.resume_from_checkpoint = "true" if goes_on else None
    return RunContext.prepare(replace(run, training=arguments), splits, folder)


def _run_fold(context: RunContext) -> None:
    """Runs the stages of one fold's model, and lets it judge its development cases."""
    state = PartialState()
    if state.is_main_process:
        context.output.mkdir(parents=True, exist_ok=True)
        write_manifest(context.output, context.run, context.splits.summary())
    state.wait_for_everyone()
    results = run_stages(context)
    if READOUTS[context.readout].gives_probabilities:
        weights, development = context.saved_weights, context.development_benchmark()
        context.measure(
            ReportRow(DEVELOPMENT, lambda: context.scorer(context.saved()), weights, development)
        )
    if state.is_main_process:
        write_json(context.output / DONE, asdict(results))
    state.wait_for_everyone()
    gc.collect()  # trainers contain reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _conclude(run: Run, benchmark: Benchmark, primary: str, output: Path) -> None:
    """Pools the folds, compares, and writes the page."""
    folders = [output / FOLDS / str(number) for number in range(1, run.data.crossfit + 1)]
    evaluations = [folder / "evaluation" for folder in folders]
    stage_results = [StageResults(**read_json(folder / DONE)) for folder in folders]
    if stage_results[0].development:
        settle_before(evaluations, [results.development for results in stage_results])
    controls = in_all([results.controls for results in stage_results])
    for name in ("before", "after", *controls):
        folds = [
            Fold(path / name, path / DEVELOPMENT if name == "after" else None)
            for path in evaluations
        ]
        pool(folds, benchmark, primary, output / "evaluation" / name)
    notes = notes_of_folds(run.data.crossfit, run.training.seed)
    compare_rows(output, run, primary, controls, notes)
    logger.info(
        "report: %s\n%d adapters, each of which has seen a part of what is measured, so that "
        "none is published: %s",
        write_page(output),
        len(folders),
        output / FOLDS / "*" / "adapter",
    )


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
            *agreement_lines(benchmark.source),
            *ceiling_lines(benchmark),
        ]
    )


def _check_same(output: Path, run: Run, summary: dict[str, Any]) -> None:
    """Refuses to go on with a run that had other options or other data.

    Raises:
        ConfigError: names them.
    """
    earlier = read_json(output / "run.json")
    now = json.loads(json.dumps({"config": run.resolved(), "data": summary}, default=str))
    problems = [
        f"{name}: {earlier['config'].get(name)} then, {value} now"
        for name, value in now["config"].items()
        if name not in MAY_DIFFER and value != earlier["config"].get(name)
    ]
    if now["data"] != earlier["data"]:
        problems.append("the data or its folds are other ones now")
    title = (
        f"The run in {output} cannot be gone on with: its models would not belong together. Give "
        "the same options, or --overwrite_output_dir true."
    )
    refuse(problems, title)
