"""The stages of one model: the base is measured, the adapter trained, and measured as it was saved.

What is measured is a list of rows: the headline's `before` and `after`, and the controls beside
them. A row opens its scorer when its turn comes and lets it go afterwards; the rows of one model in
memory follow each other, and no row inherits what another did to a model.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
from accelerate import PartialState
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
)

from medrm.data.image_ablations import IMAGE_ABLATIONS, ablate_images
from medrm.data.store.indexed_cases import column
from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark, benchmark_from_cases
from medrm.evaluation.leak_check import CHOSEN_BY, check_images
from medrm.failures import naming
from medrm.files import DRAFT, replace_folder
from medrm.integrity import write_record
from medrm.models.adapter import save_adapter, saved_identity
from medrm.models.adapter_config import AdapterConfig, read_adapter_config, update_adapter_config
from medrm.models.published_contract import images_of
from medrm.models.reward_model import head_of
from medrm.models.trainable import freeze_backbone
from medrm.models.training_images import record_of, write_digests
from medrm.objectives.bradley_terry import gathered_head
from medrm.objectives.objective import TrainingInputs
from medrm.objectives.sharding import forget_accelerator
from medrm.objectives.training_faults import WatchedSteps
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.pipeline.checkpoints import checkpoint_of
from medrm.pipeline.context import DEVELOPMENT, ReportRow, RunContext, stage
from medrm.pipeline.load_back import check_load_back, trained_scores
from medrm.pipeline.processes import from_main
from medrm.pipeline.run_folder import TRAINED, run_identity_in
from medrm.pipeline.run_identity import row_draws
from medrm.pipeline.stop_checkpoint import StopCheckpoint
from medrm.pipeline.stop_signals import in_training
from medrm.pipeline.tensorboard_log import keep_host_out
from medrm.pipeline.training_bar import TrainingBar
from medrm.pipeline.zero_shot import measure_zero_shot, rows_with_average
from medrm.readouts import READOUTS
from medrm.schema import DIMENSIONS, PairLabel, Response
from medrm.scorer import Scorer
from medrm.scorer.open import LoadedModel
from medrm.scorer.readouts.answer_rewards import RewardModel
from medrm.scorer.specs import saved_folder
from medrm.statistics.calibration import fit_temperature

logger = logging.getLogger(__name__)

MEASURED = (
    *("zero_shot_verdict", "zero_shot_averaged", "zero_shot_likelihood"),
    *("base_skeleton", "base_averaged", "untrained_head", "frozen_probe", "init_adapter"),
)
"""The controls that are measured before the training, in their order."""

MEASURED_OF_TRAINED = (*IMAGE_ABLATIONS, "skeleton")
"""The controls that are measured of the trained adapter."""


def run_stages(context: RunContext) -> None:
    """Measures the base and its controls, trains the adapter, and measures it as it was saved.

    Of these stages those that the run names; what an earlier start has done is not done again.
    """
    stages, saved = context.run.job.stages, None
    if "before" in stages:
        measure_before(context)
    if "train" in stages:
        saved = train_adapter(context)
    if "after" in stages:
        _measure_after(context, saved)


def measured_controls(context: RunContext) -> list[str]:
    """Returns the controls that stand beside the headline: wanted, and measured by now."""
    wanted = context.run.evaluation.controls
    of_trained = context.saved_weights if context.is_trained else ""
    names = [name for name in MEASURED if name in wanted and context.holds(name)]
    return names + [
        name for name in MEASURED_OF_TRAINED if name in wanted and context.holds(name, of_trained)
    ]


def measure_before(context: RunContext) -> None:
    """Measures the base, and what the training starts from."""
    if context.judge_spec is None:
        measure_zero_shot(context)
    for row in chain(_judge_rows(context), _start_rows(context)):
        context.measure(row)


def _judge_rows(context: RunContext) -> Iterator[ReportRow]:
    """Yields a judge's base by the run's readout, as the adapter will be, and by its JSON."""
    spec = context.judge_spec
    if spec is None:
        return

    def open_base() -> Scorer:
        return context.scorer(context.in_memory(context.base()))

    yield ReportRow("before", open_base, context.base_weights)
    if spec.per_dimension or not set(DIMENSIONS) <= set(context.splits.dimensions):
        logger.info(
            "No official number for text: the released scorer reads one reply about %s.",
            ", ".join(DIMENSIONS),
        )
    wanted = {"base_skeleton", "base_averaged"} & {*context.run.evaluation.controls}
    if wanted and context.has_skeleton_control:
        base = cache(lambda: context.in_memory(context.base()))
        yield from rows_with_average(context, "base_skeleton", "skeleton", base)


def _start_rows(context: RunContext) -> Iterator[ReportRow]:
    """Yields what training starts from: a head as it was drawn, one trained alone, an adapter."""
    wanted = context.run.evaluation.controls

    def open_built(build: Callable[[], PreTrainedModel]) -> Scorer:
        return context.scorer(context.in_memory(build()))

    if context.objective.head_spec is not None and "untrained_head" in wanted:
        yield ReportRow("untrained_head", partial(open_built, context.with_head))
    if context.objective.head_spec is not None and "frozen_probe" in wanted:
        probe = partial(open_built, partial(train_probe, context))
        yield ReportRow("frozen_probe", probe, leaks=context.leak_check)
    start = context.run.judge.init_adapter
    if start is not None and "init_adapter" in wanted:
        folder = saved_folder(start)
        leaks = check_images(images_of(folder), context.splits.benchmark, context.splits.facts)
        opened = partial(open_built, context.trainable)
        yield ReportRow("init_adapter", opened, saved_identity(folder), leaks=leaks)


def _measure_after(context: RunContext, saved: LoadedModel | None) -> None:
    """Measures the adapter as it was saved: as it is, on other images, and with its JSON given.

    Args:
        context: of the run.
        saved: the adapter, loaded anew; None: it is loaded when a row needs it.
    """
    loaded = cache(lambda: saved or context.saved())
    scorer, weights = cache(lambda: context.scorer(loaded())), context.saved_weights
    if context.readout == "reward" and from_main(
        lambda: not read_adapter_config(context.adapter).score_statistics
    ):
        add_statistics(context, scorer(), context.adapter)
    for row in rows_after(context, loaded, scorer, weights):
        context.measure(row)


def rows_after(
    context: RunContext,
    loaded: Callable[[], LoadedModel],
    scorer: Callable[[], Scorer],
    weights: str,
) -> Iterator[ReportRow]:
    """Yields the rows of the trained adapter.

    Args:
        context: of the run.
        loaded: the adapter, loaded anew.
        scorer: of it, by the run's readout.
        weights: which ones it has.
    """
    leaks = context.leak_check
    yield ReportRow("after", scorer, weights, leaks=leaks)
    for name, benchmark in _picture_benchmarks(context):
        yield ReportRow(name, scorer, weights, benchmark, leaks)
    if "skeleton" in context.run.evaluation.controls and context.has_skeleton_control:
        yield ReportRow(
            "skeleton", lambda: context.scorer(loaded(), "skeleton"), weights, leaks=leaks
        )
    if context.run.data.crossfit and READOUTS[context.readout].gives_probabilities:
        development = context.development_benchmark()
        yield ReportRow(DEVELOPMENT, scorer, weights, development, CHOSEN_BY)


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


def build_trainer(
    context: RunContext, model: PreTrainedModel | PeftModel, output: Path, name: str
) -> Trainer:
    """Returns the objective's trainer of `model`, writing below `output`."""
    forget_accelerator()
    trainer = context.objective.build_trainer(training_inputs(context, model, output))
    if isinstance(trainer, WatchedSteps):
        trainer.draws = row_draws(context.run.resolved())
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    keep_host_out(trainer)
    trainer.add_callback(TrainingBar(name))
    return trainer


def training_inputs(
    context: RunContext, model: PreTrainedModel | PeftModel, output: Path
) -> TrainingInputs:
    """Returns what the trainer of `model` is built from."""
    run, arguments = context.run, copy.copy(context.run.training)
    arguments.output_dir = str(output)
    arguments.push_to_hub = False  # the run pushes the adapter folder at its end, not checkpoints
    # Those of all cases: a case that is set aside may be the only one with some label.
    data = replace(run.data, dimensions=list(context.splits.dimensions))
    return TrainingInputs(
        replace(run, training=arguments, data=data),
        model,
        context.collator,
        context.splits.train,
        context.splits.development,
        context.lengths,
    )


def _fit(trainer: Trainer, checkpoint: str | bool | None = None) -> None:
    """Trains, from the start or from a checkpoint; the bar ends with it, however it ends."""
    try:
        with naming(Path(str(trainer.args.output_dir))):  # TensorBoard's thread names nothing
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TrainingBar):
                callback.bar.stop()


def train_probe(context: RunContext) -> PreTrainedModel:
    """Returns a fresh base whose head alone was trained, on the same data and steps."""
    folder = context.folder("frozen_probe") / "training"
    _remove(folder)  # of a run that was stopped in it
    model = freeze_backbone(context.with_head())
    trainer = build_trainer(context, model, folder, "frozen_probe")
    _fit(trainer)
    trained = gathered_head(trainer, model)
    _remove(folder)
    # Into a fresh model: a DeepSpeed engine may hold the one that was trained.
    model = context.with_head()
    head_of(model).load_state_dict(trained)
    return model


def _remove(folder: Path) -> None:
    """Removes a folder once every process is here, and lets none go on before."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()


def train_adapter(context: RunContext) -> LoadedModel | None:
    """Trains the adapter and the head, and saves them as the adapter folder.

    The folder appears when it is whole and, loaded anew, scores as the model that was trained. One
    that is there already is kept.

    Returns:
        the adapter, loaded anew; None: it was there.

    Raises:
        AdapterError: what was saved scores otherwise; it is left as a draft.
    """
    if from_main(lambda: context.is_trained):
        logger.info(
            "training: done before, %s is there; what it scores when loaded was compared with the "
            "trained model then",
            context.adapter,
        )
        return None
    draft = context.output / f"{DRAFT}adapter"
    trained = _train(context, draft)
    saved = context.saved(draft)
    check_load_back(context, draft, saved, trained)
    add_statistics(context, context.scorer(saved), draft)
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        write_record(context.output / TRAINED, {"weights": saved_identity(draft)})
        replace_folder(draft, context.adapter)
    state.wait_for_everyone()
    return saved


def _train(context: RunContext, folder: Path) -> list[Response] | None:
    """Trains from the last checkpoint, if any, and saves the model into a folder.

    Returns:
        what the trained model says of some cases (`trained_scores`); None: not compared.
    """
    model = context.trainable()
    trainer = build_trainer(context, model, context.output, "training")
    trainer.add_callback(StopCheckpoint())
    if isinstance(trainer, WholeCheckpoints):
        trainer.run_identity = from_main(lambda: run_identity_in(context.output))
    with stage("training"), in_training():
        _fit(trainer, from_main(lambda: checkpoint_of(context.run, context.output)))
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    contract = trained_config(context, model)
    if PartialState().is_main_process:
        write_digests(context.output, context.trained_images)
        save_adapter(folder, model, context.processor, contract, state_dict)
    PartialState().wait_for_everyone()
    return trained_scores(context, trainer, contract)


def trained_config(context: RunContext, model: PreTrainedModel | PeftModel) -> AdapterConfig:
    """Returns the contract of the trained model, with what it was trained on."""
    run = context.run
    return replace(
        context.new_contract(model, context.splits.dimensions),
        judge=context.judge_spec,
        implicit_beta=run.training.beta if context.readout == "implicit_reward" else None,
        image_conversion=context.splits.source.image_conversion,
        training_data_digest=context.splits.source.digest,
        training_images=record_of(context.trained_images),
    )


def add_statistics(context: RunContext, scorer: Scorer, folder: Path) -> None:
    """Adds mean, spread and temperature of the development cases' scores to a contract.

    Nothing is added for a judge.
    """
    if not isinstance(scorer, RewardModel) or not PartialState().is_main_process:
        return
    scored = list(scorer.score_cases(context.splits.development))
    scores = np.concatenate([rewards for _, rewards in scored])
    statistics = {}
    for index, name in enumerate(scorer.dimensions):
        column = scores[:, index]
        statistics[name] = {"mean": float(column.mean()), "std": float(column.std())}
        choices = [
            (float(rewards[0, index] - rewards[1, index]), label.choice == 0)
            for case, rewards in scored
            if isinstance(label := case.labels.get(name), PairLabel) and label.choice in (0, 1)
        ]
        if choices:
            statistics[name]["temperature"] = fit_temperature(*zip(*choices, strict=True))
    update_adapter_config(folder, score_statistics=statistics)
