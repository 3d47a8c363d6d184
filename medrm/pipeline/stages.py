"""The stages of one model: the base is measured, the adapter trained, and measured as it was saved.

What is measured is a list of rows: the headline's `before` and `after`, and the controls beside
them. A row opens its scorer when its turn comes and lets it go afterwards; the rows of one model in
memory follow each other, and no row inherits what another did to a model.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from statistics import fmean

import numpy as np
from accelerate import PartialState
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
)

from medrm.data.image_ablations import IMAGE_ABLATIONS, ablate_images
from medrm.data.store.indexed_cases import column, concatenate, list_column
from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark, benchmark_from_cases
from medrm.evaluation.records.jsonl import RESPONSES_FILE, read_responses
from medrm.models.adapter import freeze_backbone, save_adapter, saved_identity
from medrm.models.adapter_config import AdapterConfig, update_adapter_config
from medrm.models.reward_model import head_of
from medrm.objectives.bradley_terry import gathered_head
from medrm.objectives.objective import TrainingInputs
from medrm.pipeline.checkpoints import checkpoint_of
from medrm.pipeline.context import ReportRow, RunContext, stage
from medrm.pipeline.load_back import check_load_back, trained_scores
from medrm.pipeline.training_bar import TrainingBar
from medrm.schema import DIMENSIONS, Case, Response
from medrm.scorer import Scorer
from medrm.scorer.open import JudgeRecord, LoadedModel, open_scorer
from medrm.scorer.readouts.answer_rewards import RewardModel
from medrm.scorer.specs import saved_folder

logger = logging.getLogger(__name__)

DEVELOPMENT = "development"
"""The name of the folders in which models judge development cases."""

ZERO_SHOT = {"zero_shot_verdict": "verdict_probability", "zero_shot_likelihood": "likelihood"}
"""The controls that read a base by its words, and their readouts."""

_AVERAGED = {"zero_shot_verdict": "zero_shot_averaged", "base_skeleton": "base_averaged"}
"""The controls in which what another one's readout said counts with both orders averaged."""


@dataclass(frozen=True)
class StageResults:
    """What the stages of one model left beside `before` and `after`.

    Attributes:
        development: the base's readouts and their accuracy on the development cases, by which
            `before` was chosen; empty where there was no choice.
        controls: the evaluation folders that stand beside the headline.
    """

    development: dict[str, float]
    controls: list[str]


def run_stages(context: RunContext) -> StageResults:
    """Measures the base and its controls, trains the adapter, and measures it as it was saved."""
    development: dict[str, float] = {}
    if context.judge_spec is not None:
        measured = [*_measure(context, _judge_rows(context))]
    else:
        development, measured = _measure_zero_shot(context)
    measured += _measure(context, _start_rows(context))
    trained = train_adapter(context)
    measured += _measure(context, _trained_rows(context, trained))
    wanted = context.run.evaluation.controls
    return StageResults(development, [name for name in measured if name in wanted])


def _measure(context: RunContext, rows: Iterable[ReportRow]) -> dict[str, float]:
    """Evaluates rows one after another; returns the primary dimension's accuracy by row."""
    return {row.name: context.measure(row) for row in rows}


def _judge_rows(context: RunContext) -> Iterator[ReportRow]:
    """Yields a judge's base by the run's readout, as the adapter will be, and by its JSON."""

    def open_base() -> Scorer:
        return context.scorer(context.in_memory(context.base()))

    yield ReportRow("before", open_base, context.base_weights)
    spec = context.judge_spec
    per_dimension = spec is not None and spec.per_dimension
    if per_dimension or not set(DIMENSIONS) <= set(context.splits.dimensions):
        logger.info(
            "No official number for text: the released scorer reads one reply about %s.",
            ", ".join(DIMENSIONS),
        )
    wanted = {"base_skeleton", "base_averaged"} & {*context.run.evaluation.controls}
    if wanted and context.has_skeleton_control:
        base = context.in_memory(context.base())
        yield from _with_average(context, base, "base_skeleton", "skeleton")


def _measure_zero_shot(context: RunContext) -> tuple[dict[str, float], list[str]]:
    """Measures the base by its words, and makes the readout that is better on development `before`.

    A readout that no control asks for is not run. Where none is asked for, the headline needs the
    better of all: they are run on the development cases, and the better one alone on the benchmark
    (all in a cross-fitted run, which chooses by the mean over its folds). Returns the accuracies
    on the development cases, empty where there is no choice, and the names of the other rows.
    """
    base, splits = context.in_memory(context.base()), context.splits
    crossfit, wanted = context.run.data.crossfit, {*context.run.evaluation.controls}
    asked = [name for name in ZERO_SHOT if wanted & {name, _AVERAGED.get(name)}]
    readouts = {name: ZERO_SHOT[name] for name in asked or ZERO_SHOT}
    if not all(map(_are_pairs, (splits.benchmark.cases, splits.development))):
        readouts = {"zero_shot_likelihood": ZERO_SHOT["zero_shot_likelihood"]}
    chooses = len(readouts) > 1 or (crossfit and len(asked) != 1)  # a fold may have no pairs alone
    rows = (
        ReportRow(
            f"{name}/{DEVELOPMENT}",
            partial(context.scorer, base, readout, (splits.primary,)),
            context.base_weights,
            context.development_benchmark(),
        )
        for name, readout in readouts.items()
        if chooses
    )
    measured = _measure(context, rows)
    development = {name: measured[f"{name}/{DEVELOPMENT}"] for name in readouts if chooses}
    if not asked and not crossfit:
        better = max(readouts, key=lambda name: development.get(name, 0.0))
        readouts = {better: readouts[better]}
    rows_of = partial(_with_average, context, base)
    names = [*_measure(context, chain.from_iterable(starmap(rows_of, readouts.items())))]
    if PartialState().is_main_process:
        for name in development:
            shutil.rmtree(context.folder(name) / (DEVELOPMENT if name in names else ""))
        if development:
            settle_before([context.folder("")], [development])
        else:
            _copy_as_before(context.folder(""), names[0])
    return development, names


def _with_average(
    context: RunContext, base: LoadedModel, name: str, readout: str
) -> Iterator[ReportRow]:
    """Yields the base by one readout, and what it said with both orders averaged, if wanted.

    The model is not asked again. More than two answers are compared by wins, not by means.
    """
    scorer = context.scorer(base, readout)

    def open_average() -> Scorer:
        responses = read_responses(context.folder(name) / RESPONSES_FILE)
        record = JudgeRecord(responses, scorer.dimensions, scorer.settings)
        return open_scorer(record, "verdict_averaged")

    yield ReportRow(name, lambda: scorer, context.base_weights)
    averaged = _AVERAGED.get(name)
    pairs = _are_pairs(context.splits.benchmark.cases)
    if pairs and averaged in context.run.evaluation.controls:
        yield ReportRow(str(averaged), open_average, context.base_weights)


def settle_before(evaluations: Sequence[Path], accuracies: Sequence[Mapping[str, float]]) -> None:
    """Makes the readout that is best on the development cases `before`, the same in all folds.

    Args:
        evaluations: the folder of the evaluations of each fold, or of the one model.
        accuracies: of the readouts that each measured on its development cases.
    """
    means = {name: fmean(shares[name] for shares in accuracies) for name in in_all(accuracies)}
    better = max(means, key=means.__getitem__)
    for folder in evaluations:
        _copy_as_before(folder, better)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in means.items())
    of_folds = ", mean over the folds" if len(evaluations) > 1 else ""
    logger.info("before: %s (development%s: %s)", better, of_folds, shares)


def _copy_as_before(evaluations: Path, name: str) -> None:  # one may be there of a stopped run
    shutil.rmtree(evaluations / "before", ignore_errors=True)
    shutil.copytree(evaluations / name, evaluations / "before")


def in_all(names_of_folds: Sequence[Iterable[str]]) -> list[str]:
    """Returns the names that every fold has, in the order of the first."""
    first, *others = names_of_folds
    return [name for name in first if all(name in names for names in others)]


def _start_rows(context: RunContext) -> Iterator[ReportRow]:
    """Yields what training starts from: a head as it was drawn, one trained alone, an adapter."""
    wanted = context.run.evaluation.controls

    def open_built(build: Callable[[], PreTrainedModel]) -> Scorer:
        return context.scorer(context.in_memory(build()))

    if context.objective.head_spec is not None and "untrained_head" in wanted:
        yield ReportRow("untrained_head", partial(open_built, context.with_head))
    if context.objective.head_spec is not None and "frozen_probe" in wanted:
        yield ReportRow("frozen_probe", partial(open_built, partial(train_probe, context)))
    start = context.run.judge.init_adapter
    if start is not None and "init_adapter" in wanted:
        weights = saved_identity(saved_folder(start))
        yield ReportRow("init_adapter", partial(open_built, context.trainable), weights)


def _trained_rows(context: RunContext, trained: Sequence[Response] | None) -> Iterator[ReportRow]:
    """Yields the adapter as it was saved: as it is, on other images, and with its JSON given."""
    saved, weights = context.saved(), context.saved_weights
    check_load_back(context, saved, trained)
    scorer, wanted = context.scorer(saved), context.run.evaluation.controls
    if isinstance(scorer, RewardModel):
        add_statistics(context, scorer)
    yield ReportRow("after", lambda: scorer, weights)
    for name, benchmark in _picture_benchmarks(context):
        yield ReportRow(name, lambda: scorer, weights, benchmark)
    if "skeleton" in wanted and context.has_skeleton_control:
        yield ReportRow("skeleton", partial(context.scorer, saved, "skeleton"), weights)


def _picture_benchmarks(context: RunContext) -> Iterator[tuple[str, Benchmark]]:
    """Yields the benchmark with other pictures or none, as far as wanted and its cases allow."""
    benchmark = context.splits.benchmark
    pictured = column(benchmark.cases, "image_count").any()
    for name in IMAGE_ABLATIONS:
        if not pictured or name not in context.run.evaluation.controls:
            continue
        try:
            cases = ablate_images(
                name, benchmark.cases, context.splits.facts, benchmark.source.synthetic
            )
        except DataError as error:
            logger.info("%s is left out: %s", name, error)
            continue
        yield name, benchmark_from_cases(benchmark.name, benchmark.source, cases)


def _are_pairs(cases: Sequence[Case]) -> bool:
    """Returns whether every case has two answers."""
    return bool((column(cases, "answer_count") == 2).all())


def build_trainer(
    context: RunContext, model: PreTrainedModel | PeftModel, output: Path, name: str
) -> Trainer:
    """Returns the objective's trainer of `model`, writing below `output`."""
    # Else a second trainer of one process is refused under DeepSpeed.
    AcceleratorState._reset_state()
    run, arguments = context.run, copy.copy(context.run.training)
    arguments.output_dir = str(output)
    arguments.push_to_hub = False  # the run pushes the adapter folder at its end, not checkpoints
    # Those of all cases: a case that is set aside may be the only one with some label.
    data = replace(run.data, dimensions=list(context.splits.dimensions))
    inputs = TrainingInputs(
        replace(run, training=arguments, data=data),
        model,
        context.collator,
        context.splits.train,
        context.splits.development,
        context.lengths,
    )
    trainer = context.objective.build_trainer(inputs)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingBar(name))
    return trainer


def train_probe(context: RunContext) -> PreTrainedModel:
    """Returns a fresh base whose head alone was trained, on the same data and steps."""
    model = freeze_backbone(context.with_head())
    folder = context.folder("frozen_probe") / "training"
    trainer = build_trainer(context, model, folder, "frozen_probe")
    trainer.train()
    trained = gathered_head(trainer, model)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    # Into a fresh model: a DeepSpeed engine may hold the one that was trained.
    model = context.with_head()
    head_of(model).load_state_dict(trained)
    return model


def train_adapter(context: RunContext) -> list[Response] | None:
    """Trains the adapter and the head, and saves them as the adapter folder.

    Returns:
        what the trained model says of some cases (`trained_scores`); None: not compared.
    """
    model = context.trainable()
    trainer = build_trainer(context, model, context.output, "training")
    with stage("training"):
        trainer.train(resume_from_checkpoint=checkpoint_of(context.run, context.output))
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    contract = trained_config(context, model)
    if PartialState().is_main_process:
        save_adapter(context.output / "adapter", model, context.processor, contract, state_dict)
    PartialState().wait_for_everyone()
    return trained_scores(context, trainer, contract)


def trained_config(context: RunContext, model: PreTrainedModel | PeftModel) -> AdapterConfig:
    """Returns the contract of the trained model, with what it was trained on."""
    run, facts = context.run, context.splits.facts
    cases = concatenate(context.splits.train, context.splits.development)
    images = {digest.decode() for digest in np.unique(list_column(cases, "image_digests")[0])}
    return replace(
        context.new_contract(model, context.splits.dimensions),
        judge=context.judge_spec,
        implicit_beta=run.training.beta if context.readout == "implicit_reward" else None,
        training_data_digest=context.splits.source.digest,
        training_pixel_digests=tuple(sorted({facts[digest].pixel_digest for digest in images})),
    )


def add_statistics(context: RunContext, scorer: RewardModel) -> None:
    """Adds mean and standard deviation of the development cases' scores to the contract."""
    if not PartialState().is_main_process:
        return
    scores = np.concatenate(
        [rewards for _, rewards in scorer.score_cases(context.splits.development)]
    )
    statistics = {
        name: {"mean": float(column.mean()), "std": float(column.std())}
        for name, column in zip(scorer.dimensions, scores.T, strict=True)
    }
    update_adapter_config(context.output / "adapter", score_statistics=statistics)
