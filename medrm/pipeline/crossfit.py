"""The cross-fitted run: k models, each judging the cases that it has not seen.

One set is cut into folds by cluster. For each fold a model is trained on the others, with a
development part of its own to choose by; together they judge every case of the set once.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState

from medrm.config import Run
from medrm.errors import ConfigError, report
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.folds import Fold, notes_of_folds, pool
from medrm.evaluation.report import read_json, write_json
from medrm.evaluation.report_page import write_page
from medrm.pipeline.context import ReportRow, RunContext, stage
from medrm.pipeline.prepare_data import DataSplits, agreement_lines, ceiling_lines, prepare_folds
from medrm.pipeline.run_folder import (
    FOLDS,
    compare_rows,
    last_checkpoint,
    resume_point,
    start_folder,
    write_manifest,
)
from medrm.pipeline.stages import DEVELOPMENT, StageResults, refuse_seen_init_adapter, run_stages
from medrm.readouts import READOUTS

logger = logging.getLogger(__name__)

DONE = "fold.json"
"""Written when a fold is finished; a run that goes on skips the folds that have it."""

MAY_DIFFER = ("resume_from_checkpoint", "overwrite_output_dir", "output_dir")
"""Options that say how a run starts and where it lies, not what it does."""


def train_folds(run: Run, output: Path) -> None:
    """Trains and measures a model for each fold, pools their verdicts and compares.

    Raises:
        MedrmError: as in `train`; the run to go on with had other options or data.
    """
    state = PartialState()
    with stage("data"), state.main_process_first():
        benchmark, splits_of_folds = prepare_folds(run)
    refuse_seen_init_adapter(run, benchmark)
    contexts = _contexts(run, splits_of_folds, output)
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


def _contexts(run: Run, splits_of_folds: Sequence[DataSplits], output: Path) -> list[RunContext]:
    """Returns the context of each fold; what can be known to be wrong of any is raised here."""
    contexts: list[RunContext] = []
    for number, splits in enumerate(splits_of_folds, start=1):
        folder = output / FOLDS / str(number)
        contexts.append(RunContext.prepare(_run_in(run, folder), splits, folder))
    return contexts


def _run_in(run: Run, folder: Path) -> Run:
    """Returns the run of one fold, which goes on from the last checkpoint that the fold has."""
    arguments = copy.copy(run.training)
    arguments.output_dir = str(folder)
    goes_on = resume_point(run.training.resume_from_checkpoint) and last_checkpoint(folder)
    arguments.resume_from_checkpoint = "true" if goes_on else None
    return replace(run, training=arguments)


def _run_fold(context: RunContext) -> None:
    """Runs the stages of one fold's model, and lets it judge its development cases."""
    state = PartialState()
    if state.is_main_process:
        context.output.mkdir(parents=True, exist_ok=True)
        manifest = context.output / "run.json"
        write_manifest(manifest, context.run, context.splits.summary(), state.num_processes)
    state.wait_for_everyone()
    results = run_stages(context)
    if READOUTS[context.readout].gives_probabilities:
        context.measure(
            ReportRow(
                DEVELOPMENT,
                lambda: context.scorer(context.saved()),
                context.saved_weights,
                context.development_benchmark(),
            )
        )
    if state.is_main_process:
        write_json(context.output / DONE, asdict(results))
    state.wait_for_everyone()
    gc.collect()  # trainers hold themselves in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _conclude(run: Run, benchmark: Benchmark, primary: str, output: Path) -> None:
    """Pools the folds, compares, and writes the page."""
    folders = [output / FOLDS / str(number) for number in range(1, run.data.crossfit + 1)]
    stage_results = [StageResults(**read_json(folder / DONE)) for folder in folders]
    if stage_results[0].development:
        _settle_before(folders, stage_results)
    controls = [
        name
        for name in stage_results[0].controls
        if all(name in results.controls for results in stage_results)
    ]
    for name in ("before", "after", *controls):
        folds = [
            Fold(folder, _development(folder) if name == "after" else None)
            for folder in (fold / "evaluation" / name for fold in folders)
        ]
        pool(folds, benchmark, primary, output / "evaluation" / name)
    notes = notes_of_folds(run.data.crossfit, run.training.seed)
    compare_rows(output, run, primary, controls, notes)
    page = write_page(output)
    logger.info(
        "report: %s\n%d adapters, each of which has seen a part of what is measured, so that "
        "none is published: %s",
        page, len(folders), output / FOLDS / "*" / "adapter",
    )  # fmt: skip


def _development(after: Path) -> Path | None:
    folder = after.with_name(DEVELOPMENT)
    return folder if folder.is_dir() else None


def _settle_before(folders: Sequence[Path], stage_results: Sequence[StageResults]) -> None:
    """Makes `before` one readout in all folds: the one with the best mean on development cases."""
    names = [
        name
        for name in stage_results[0].development
        if all(name in results.development for results in stage_results)
    ]
    means = {name: fmean(results.development[name] for results in stage_results) for name in names}
    better = max(names, key=lambda name: means[name])
    for folder in folders:
        before = folder / "evaluation" / "before"
        if before.is_dir():  # a run that was killed right here has none
            shutil.rmtree(before)
        shutil.copytree(folder / "evaluation" / better, before)
    logger.info(
        "before: %s (development, mean over the folds: %s)",
        better,
        ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in means.items()),
    )


def _summary(benchmark: Benchmark, splits_of_folds: Sequence[DataSplits]) -> dict[str, Any]:
    """Returns the data section of run.json: the set once, and what each fold holds."""
    summaries = [splits.summary() for splits in splits_of_folds]
    first = summaries[0]
    return {
        "train": {**first["train"], "cases": len(benchmark.cases)},
        "benchmark": {
            **first["benchmark"],
            "digest": benchmark.source.digest,
            "cases": len(benchmark.cases),
        },
        "dimensions": first["dimensions"],
        "primary_dimension": first["primary_dimension"],
        "excluded": list(
            {case["case_id"]: case for each in summaries for case in each["excluded"]}.values()
        ),
        "crossfit": {
            "folds": len(splits_of_folds),
            "per_fold": [
                {
                    "fold": number,
                    "train": len(splits.train),
                    "development": len(splits.development),
                    "cases": len(splits.benchmark.cases),
                    "clusters": splits.benchmark.clusters,
                    "digest": splits.benchmark.source.digest,
                    "leaks": summary["leaks"],
                }
                for number, (splits, summary) in enumerate(
                    zip(splits_of_folds, summaries, strict=True), start=1
                )
            ],
        },
    }


def _describe(benchmark: Benchmark, summary: dict[str, Any]) -> str:
    """Returns what the terminal says of the data."""
    folds = summary["crossfit"]["per_fold"]
    lines = [
        f"{benchmark.name}: {len(benchmark.cases)} cases in {benchmark.clusters} clusters, cut "
        f"into {len(folds)} folds"
    ]
    lines += [
        f"fold {fold['fold']}: judges {fold['cases']} cases in {fold['clusters']} clusters, learns "
        f"from {fold['train']}, chooses by {fold['development']}"
        for fold in folds
    ]
    return "\n".join([*lines, *agreement_lines(benchmark.source), *ceiling_lines(benchmark)])


def _check_same(output: Path, run: Run, summary: dict[str, Any]) -> None:
    """Refuses to go on with a run that had other options or other data.

    Raises:
        ConfigError: names them.
    """
    earlier = read_json(output / "run.json")
    now: dict[str, Any] = json.loads(json.dumps(run.resolved(), default=str))
    problems = [
        f"{name}: {earlier['config'].get(name)} then, {value} now"
        for name, value in now.items()
        if name not in MAY_DIFFER and value != earlier["config"].get(name)
    ]
    if json.loads(json.dumps(summary, default=str)) != earlier["data"]:
        problems.append("the data or its folds are other ones now")
    if problems:
        raise ConfigError(
            report(
                f"The run in {output} cannot be gone on with: its models would not belong "
                "together. Give the same options, or --overwrite_output_dir true.",
                problems,
            )
        )
