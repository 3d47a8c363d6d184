"""What every stage of one run shares: options, cases, processor, and how a model is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config.parse import Run
from medrm.data.store.indexed_cases import TokenCounts, column, concatenate
from medrm.data.store.token_counts import count_tokens
from medrm.evaluation.benchmark import Benchmark, benchmark_from_cases
from medrm.evaluation.comparison.gate import check_declared
from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.evaluation.folder import seal_evaluation
from medrm.evaluation.leak_check import UNTRAINED, LeakCheck, check_images
from medrm.evaluation.records.stored_cases import CASES_FILE, IMAGES_FOLDER, write_cases
from medrm.evaluation.report import read_report
from medrm.integrity import changing, is_sealed
from medrm.models.adapter import load_adapter, saved_identity
from medrm.models.adapter_config import AdapterConfig, JudgeSpec, new_adapter_config
from medrm.models.adapter_files import MEDRM_FILE
from medrm.models.base_model import load_base, load_config
from medrm.models.base_reference import reference_of
from medrm.models.families import family_of, longest_row
from medrm.models.processors import load_processor, refuse_images
from medrm.models.reward_model import HeadSpec, attach_head, has_head
from medrm.models.start_head import StartHead, start_head
from medrm.models.trainable import add_adapter
from medrm.models.training_images import KnownImages
from medrm.objectives import load_objective
from medrm.objectives.objective import Objective, fit_for_training
from medrm.pipeline.data_splits import DataSplits
from medrm.pipeline.option_checks import check_init_adapter, skeleton_control_applies
from medrm.pipeline.prepare_data import check_excluded
from medrm.pipeline.processes import first_ones_first, from_main
from medrm.pipeline.seen_images import images_of_training
from medrm.pipeline.whole_evaluations import sealing, whole_report
from medrm.readouts import JUDGE_READOUTS, writes_rewards
from medrm.scorer import Scorer
from medrm.scorer.collator import Collator
from medrm.scorer.open import LoadedModel, ScorerOptions, open_scorer
from medrm.scorer.proof_cache import check_loaded, processor_digest, proven_weights
from medrm.scorer.specs import judge_spec, saved_folder

logger = logging.getLogger(__name__)

DEVELOPMENT = "development"
"""The name of the folders in which models judge development cases."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what is under way and how long it took, in seconds."""
    logger.info("%s ...", name)
    started = time.perf_counter()
    yield
    logger.info("%s: %.1f s", name, time.perf_counter() - started)


@dataclass(frozen=True)
class ReportRow:
    """A row of the run's report that is to be measured.

    Attributes:
        name: of the row, and of its folder below `evaluation/`.
        open: opens the scorer once it is the row's turn: not every model fits beside another.
        weights: which ones the scorer has; None: drawn or trained for this row alone.
        benchmark: what is judged; None: the run's.
        leaks: whether the model was trained on images of it.
    """

    name: str
    open: Callable[[], Scorer]
    weights: str | None = None
    benchmark: Benchmark | None = None
    leaks: LeakCheck = UNTRAINED


@dataclass(frozen=True)
class RunContext:
    """One run's options and checked cases, and the parts of the base that need no weights.

    `lengths` has the tokens of the longest row of training and development cases, of which the
    base reads `longest_row`; None: no limit is known.
    """

    run: Run
    splits: DataSplits
    objective: Objective
    processor: ProcessorMixin
    collator: Collator
    lengths: TokenCounts
    longest_row: int | None
    output: Path

    @classmethod
    def prepare(cls, run: Run, splits: DataSplits, output: Path) -> RunContext:
        """Loads the processor, measures lengths and sets over-long training cases aside.

        Raises:
            ConfigError: the base model cannot be found, or options do not fit it or the cases.
            AdapterError: the adapter to go on from is not found.
            DataError: too many cases are too long.
        """
        options = run.model
        where = (options.model_name_or_path, options.model_revision)
        config = load_config(*where, options.trust_remote_code)
        family_of(config)  # its parts are found
        every = (splits.train, splits.development, splits.benchmark.cases)
        pictured = sum(int((column(cases, "image_count") > 0).sum()) for cases in every)
        if pictured:
            subject = f"{pictured} cases of training and benchmark {splits.benchmark.name}"
            refuse_images(subject, *where, options.trust_remote_code)
        processor = load_processor(
            *where, options.min_pixels, options.max_pixels, options.trust_remote_code
        )
        check_init_adapter(run)
        collator = Collator(
            processor, options.reward_template, contextual_orders=options.contextual_orders
        )
        objective = load_objective(run.objective)
        objective.check(run, splits.dimensions, splits.train, splits.development)
        cases = concatenate(splits.train, splits.development)
        # What a judge's rows hold depends on more than processor and template.
        key = f"{processor_digest(processor)} {options.reward_template} {options.contextual_orders}"
        lengths = count_tokens(
            cases,
            lambda: objective.lengths(run, collator, splits.dimensions, cases, splits.facts),
            key if objective.readout(run) == "reward" else None,
        )
        most_tokens = longest_row(config, options.max_length)
        train, long_train = fit_for_training(splits.train, lengths, most_tokens)
        development, long = fit_for_training(splits.development, lengths, most_tokens)
        excluded = (*splits.excluded, *long_train, *long)
        check_excluded(excluded, len(train) + len(development), run.data.max_excluded_share)
        if objective.check_lengths is not None:
            objective.check_lengths(run, concatenate(train, development), lengths)
        splits = replace(splits, train=train, development=development, excluded=excluded)
        context = cls(run, splits, objective, processor, collator, lengths, most_tokens, output)
        _ = context.head_spec  # that of the base fits, or is refused before any weights are loaded
        return context

    def folder(self, name: str) -> Path:
        """The evaluation folder of that name."""
        return self.output / "evaluation" / name

    def base(self) -> PreTrainedModel:
        """Loads the base model afresh; no stage inherits what another did to it."""
        model = load_base(self.run.model, self.run.training.device).requires_grad_(False)
        self._check(model, self.processor, self.base_weights)
        return model

    def _check(
        self, model: PreTrainedModel | PeftModel, processor: ProcessorMixin, weights: str
    ) -> None:
        """Proves what the run relies on, in one process first: the others read what it found."""
        template = self.run.model.reward_template
        with first_ones_first():
            check_loaded(model, processor, weights, template, images=bool(self.splits.facts))

    @property
    def epoch_rows(self) -> Callable[[], int] | None:
        """Counts the rows of an epoch; None where steps are planned in cases."""
        count = self.objective.epoch_rows
        return count and partial(count, self.run, self.splits.dimensions, self.splits.train)

    @cached_property
    def readout(self) -> str:
        """How the trained adapter is scored."""
        return self.objective.readout(self.run)

    @cached_property
    def judge_spec(self) -> JudgeSpec | None:
        """How a judge is asked; None in a run that trains scores."""
        return judge_spec(self.run.judge) if self.readout in JUDGE_READOUTS else None

    @property
    def has_skeleton_control(self) -> bool:
        """Whether a judge is also read with its JSON given."""
        spec = self.judge_spec
        return spec is not None and skeleton_control_applies(self.readout, spec.rationale)

    @cached_property
    def _start_head(self) -> StartHead | None:
        """The trained head of the base, which the training starts from."""
        spec = self._asked_head
        return None if spec is None else start_head(self.run.model, spec)

    @cached_property
    def _asked_head(self) -> HeadSpec | None:
        spec = self.objective.head_spec
        return spec and spec(self.run, self.splits.dimensions, self.splits.train)

    @property
    def head_spec(self) -> HeadSpec | None:
        """The shape of the head that is trained; None: the objective needs none."""
        spec, start = self._asked_head, self._start_head
        return start.fit(spec) if spec and start else spec

    def with_head(self) -> PreTrainedModel:
        """Returns a fresh base with its trained head, one drawn from the run's seed, or none."""
        model, spec = self.base(), self.head_spec
        if spec is not None:
            model = attach_head(model, spec, self.run.training.seed)
        if self._start_head is not None:
            self._start_head.fill(model)
        return model

    def trainable(self) -> PreTrainedModel | PeftModel:
        """Returns what is trained: a fresh adapter on the base, or the one to go on from.

        Raises:
            AdapterError: the one to go on from cannot be loaded.
        """
        start = self.run.judge.init_adapter
        if start is None:
            return add_adapter(self.with_head(), self.run.adapter, self.run.training.seed)
        options = self.run.model
        model, processor, _ = load_adapter(
            saved_folder(start),
            self.run.training.device,
            None if options.dtype == "auto" else getattr(torch, options.dtype),
            options.attn_implementation,
            options.shared_prefix,
            options.model_name_or_path,
        )
        self._check(model, processor, proven_weights(saved_folder(start)))
        model.set_adapter("default")  # trainable again
        return model

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter: whole and checked once it is there."""
        return self.output / "adapter"

    @property
    def is_trained(self) -> bool:
        """Whether the training is done; version 0.2 wrote `medrm.json` last."""
        return (self.adapter / MEDRM_FILE).is_file()

    def saved(self, folder: Path | None = None) -> LoadedModel:
        """Returns the trained adapter as it was saved, or what lies in a folder, loaded anew."""
        folder, device = folder or self.adapter, self.run.training.device
        saved = LoadedModel(
            *load_adapter(folder, device, shared_prefix=self.run.model.shared_prefix)
        )
        self._check(*saved[:2], proven_weights(folder))
        return saved

    def in_memory(self, model: PreTrainedModel | PeftModel) -> LoadedModel:
        """Returns a model that was not saved: for controls, never for "after"."""
        contract = self.new_contract(model) if has_head(model) else None
        return LoadedModel(model.requires_grad_(False).eval(), self.processor, contract)

    def new_contract(
        self, model: PreTrainedModel | PeftModel, dimensions: Sequence[str] | None = None
    ) -> AdapterConfig:
        """Returns the contract of a model as it is now; `dimensions` as `new_adapter_config`."""
        run = self.run
        return new_adapter_config(
            model, self.processor, run.model, run.objective, self.readout, dimensions
        )

    def scorer(
        self,
        loaded: LoadedModel,
        readout: str | None = None,
        dimensions: Sequence[str] | None = None,
    ) -> Scorer:
        """Returns a scorer of a model in memory.

        Args:
            loaded: the saved adapter, or a model `in_memory`.
            readout: None: the run's.
            dimensions: what a base is asked about; None: all that the run learns.
        """
        readout, evaluation = readout or self.readout, self.run.evaluation
        # A base that is read answer by answer reads the rows of the reward model to come.
        answer_by_answer = loaded.contract is None and writes_rewards(readout)
        return open_scorer(
            loaded,
            readout,
            dimensions=dimensions or self.splits.dimensions,
            judge=self.run.judge if loaded.contract is None else None,
            options=ScorerOptions(
                batch_rows=evaluation.evaluation_batch_rows,
                deterministic=evaluation.deterministic,
                max_length=self.run.model.max_length if answer_by_answer else None,
            ),
        )

    def development_benchmark(self) -> Benchmark:
        """The development cases, to choose by."""
        return benchmark_from_cases("development", self.splits.source, self.splits.development)

    @cached_property
    def base_weights(self) -> str:
        """Which weights the base has."""
        return reference_of(self.run.model).identity

    @cached_property
    def saved_weights(self) -> str:
        """Which weights the trained adapter has, once it is saved."""
        return saved_identity(self.adapter)

    @cached_property
    def trained_images(self) -> KnownImages:
        """What the adapter will have been trained on."""
        return images_of_training(self.run, self.splits)

    @cached_property
    def leak_check(self) -> LeakCheck:
        """Whether these are images of the benchmark."""
        return check_images(self.trained_images, self.splits.benchmark, self.splits.facts)

    def holds(self, name: str, weights: str | None = None, digest: str | None = None) -> bool:
        """Returns whether the evaluation of that name is whole.

        Args:
            name: of its folder.
            weights: that must have been measured; None: any, as of this run.
            digest: of the benchmark that must have been measured; None: any.
        """
        report = whole_report(self.folder(name))
        return report is not None and all(
            wanted in (None, measured)
            for wanted, measured in (
                (weights, report["weights"]),
                (digest, report["benchmark"]["digest"]),
            )
        )

    def measure(self, row: ReportRow) -> float:
        """Evaluates into the row's folder and returns the primary dimension's accuracy.

        Where no case has a majority on it, that is 0. What an earlier start has measured stays, and
        no model is opened. "after" keeps small copies of the images, unless `no_images`.

        Raises:
            ConfigError: the recipe declares a difference that `compare` does not know; said at the
                first measurement, long before the comparison.
        """
        benchmark = row.benchmark or self.splits.benchmark
        images = row.name == "after" and not self.run.evaluation.no_images
        if from_main(lambda: self.holds(row.name, row.weights, benchmark.source.digest)):
            logger.info("%s: measured before", row.name)
            folder = self.folder(row.name)
            if PartialState().is_main_process:
                if images != (folder / IMAGES_FOLDER).is_dir():
                    with changing(folder / CASES_FILE):
                        write_cases(folder, benchmark.cases, images)
                if not is_sealed(folder):  # it was whole, and killed before it was sealed
                    seal_evaluation(folder)
        else:
            self._evaluate(row, benchmark, images)
        report = read_report(self.folder(row.name))
        check_declared(self.run.evaluation.allowed_differences, report)
        measures = report["protocols"]["robust"]["dimensions"][self.splits.primary]
        return float(measures["accuracy"] or 0.0)

    def _evaluate(self, row: ReportRow, benchmark: Benchmark, images: bool) -> None:
        base = self.run.model.model_name_or_path
        base = Path(base).resolve().name if Path(base).is_dir() else base  # no local path
        with stage(row.name), sealing(self.folder(row.name)):
            scorer = row.open()
            evaluate(
                scorer,
                benchmark,
                self.folder(row.name),
                NamedModel(f"{base} ({row.name})", row.weights, row.leaks),
                settings=scorer.settings,
                images=images,
                overwrite=True,  # what was stopped may have been asked of other weights
            )
