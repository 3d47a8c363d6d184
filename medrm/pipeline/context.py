"""What every stage of one run shares: options, cases, processor, and how a model is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.config import Run
from medrm.data.image_ablations import IMAGE_ABLATIONS, ablate_images
from medrm.data.store.indexed_cases import TokenCounts, column, concatenate
from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark, benchmark_from_cases
from medrm.evaluation.comparison.gate import check_declared
from medrm.evaluation.evaluator import Scorer, evaluate
from medrm.evaluation.records.journal import RESPONSES_FILE
from medrm.evaluation.records.responses import read_responses
from medrm.models.adapter import add_adapter
from medrm.models.adapter_config import JudgeSpec, new_adapter_config
from medrm.models.base_model import load_base, load_config, load_processor
from medrm.models.base_reference import reference_of
from medrm.models.families import Family, family_of
from medrm.models.image_smoke_test import check_image_reaches
from medrm.models.reward_model import attach_head
from medrm.models.save_load import load_adapter, saved_identity
from medrm.objectives import load_objective
from medrm.objectives.objective import Objective, fit_for_training
from medrm.pipeline.checks import check_start, gives_skeleton
from medrm.pipeline.prepare_data import DataSplits, check_excluded
from medrm.pipeline.token_counts import count_tokens, processor_digest
from medrm.scorer.collator import Collator
from medrm.scorer.open import Saved, folder_of, scorer_of
from medrm.scorer.readouts.likelihood import Likelihood
from medrm.scorer.readouts.reward import RewardModel
from medrm.scorer.readouts.verdict_averaged import AveragedOrders
from medrm.scorer.readouts.verdict_probability import VerdictProbability
from medrm.scorer.specs import JUDGE_READOUTS, judge_spec, local_judge

logger = logging.getLogger(__name__)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what is under way and how long it took, in seconds."""
    logger.info("%s ...", name)
    started = time.perf_counter()
    yield
    logger.info("%s: %.1f s", name, time.perf_counter() - started)


class Measurable(Scorer, Protocol):
    """A scorer that says what besides its weights could change a number."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """By name; what belongs to one readout alone stands there alone."""


def settings_of(
    scorer: Measurable, min_pixels: int | None, max_pixels: int | None
) -> dict[str, Any]:
    """Returns what besides the weights could change a number; `compare` checks it."""
    return {"min_pixels": min_pixels, "max_pixels": max_pixels, **scorer.settings}


@dataclass(frozen=True)
class RunContext:
    """One run's options and checked cases, and the parts of the base that need no weights.

    `lengths` has the tokens of the longest row of training and development cases.
    """

    run: Run
    splits: DataSplits
    objective: Objective
    processor: ProcessorMixin
    family: Family
    collator: Collator
    lengths: TokenCounts
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
        family = family_of(load_config(*where, options.trust_remote_code))
        processor = load_processor(
            *where, options.min_pixels, options.max_pixels, options.trust_remote_code
        )
        check_start(run)
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
        parts, excluded = [], list(splits.excluded)
        for part in (splits.train, splits.development):
            kept, long = fit_for_training(part, lengths, options.max_length)
            parts.append(kept)
            excluded += long
        check_excluded(excluded, sum(map(len, parts)), run.data.max_excluded_share)
        if objective.check_lengths is not None:
            objective.check_lengths(run, concatenate(*parts), lengths)
        splits = replace(splits, train=parts[0], development=parts[1], excluded=tuple(excluded))
        return cls(run, splits, objective, processor, family, collator, lengths, output)

    def folder(self, name: str) -> Path:
        """The evaluation folder of that name."""
        return self.output / "evaluation" / name

    @property
    def base_name(self) -> str:
        """The base model's name without a local path."""
        name = self.run.model.model_name_or_path
        return Path(name).resolve().name if Path(name).is_dir() else name

    def base(self) -> PreTrainedModel:
        """Loads the base model afresh; no stage inherits what another did to it."""
        return load_base(self.run.model, self.run.training.device).requires_grad_(False)

    def check_image(self, model: PreTrainedModel) -> None:
        """Stops the run when images do not reach the model."""
        if self.splits.pictured:
            check_image_reaches(model, self.processor, self.family)

    @cached_property
    def readout(self) -> str:
        """How the trained adapter is scored."""
        return self.objective.readout(self.run)

    @cached_property
    def judge_spec(self) -> JudgeSpec | None:
        """How a judge is asked; None in a run that trains scores."""
        return judge_spec(self.run.judge) if self.readout in JUDGE_READOUTS else None

    @property
    def can_be_given(self) -> bool:
        """Whether a judge is also read with its JSON given."""
        spec = self.judge_spec
        return spec is not None and gives_skeleton(self.readout, spec.rationale)

    def with_head(self) -> PreTrainedModel:
        """Returns a fresh base with a head drawn from the run's seed; without one, the base."""
        if self.objective.head_spec is None:
            return self.base()
        spec = self.objective.head_spec(self.run, self.splits.dimensions, self.splits.train)
        return attach_head(self.base(), spec, self.run.training.seed)

    def trainable(self) -> PreTrainedModel | PeftModel:
        """Returns what is trained: a fresh adapter on the base, or the one to go on from.

        Raises:
            AdapterError: the one to go on from cannot be loaded.
        """
        start = self.run.judge.init_adapter
        if start is None:
            return add_adapter(
                self.with_head(), self.run.adapter, self.family, self.run.training.seed
            )
        options = self.run.model
        model, _, _ = load_adapter(
            folder_of(start),
            self.run.training.device,
            None if options.dtype == "auto" else getattr(torch, options.dtype),
            options.attn_implementation,
            options.shared_prefix,
        )
        model.set_adapter("default")  # trainable again
        return model

    def judge(self, model: PreTrainedModel | PeftModel, readout: str | None = None) -> Measurable:
        """Returns a judge of a model in memory: for controls, never for "after".

        Args:
            model: a base, with or without an adapter.
            readout: None: the run's.
        """
        if self.judge_spec is None:
            raise ValueError("a run that trains scores has no judge")
        return local_judge(
            model.requires_grad_(False).eval(),
            self.processor,
            self.judge_spec,
            readout or self.readout,
            self.splits.dimensions,
            self.run.evaluation.evaluation_batch_rows,
        )

    def saved(self, *readouts: str | None) -> list[Saved]:
        """Returns the trained adapter as it was saved, loaded anew once, by each readout.

        Args:
            readouts: None: as it was saved; for judges also others.
        """
        loaded = load_adapter(
            self.output / "adapter",
            self.run.training.device,
            shared_prefix=self.run.model.shared_prefix,
        )
        rows = self.run.evaluation.evaluation_batch_rows
        return [scorer_of(*loaded, rows, readout) for readout in readouts]

    def reward_model(self, model: PreTrainedModel | PeftModel) -> RewardModel:
        """Returns a scorer of a model in memory: for controls, never for "after"."""
        contract = new_adapter_config(
            model, self.processor, self.run.model, self.run.objective, self.readout
        )
        rows = self.run.evaluation.evaluation_batch_rows
        return RewardModel(model.eval(), self.processor, contract, rows)

    def zero_shot(
        self, model: PreTrainedModel, dimensions: Sequence[str]
    ) -> Iterator[tuple[str, Measurable]]:
        """Yields the base's zero-shot readouts by the names of their rows.

        Without max_length: a verdict prompt holds both answers, and what is too long for it would
        count against the base.
        """
        settings: dict[str, Any] = {
            "dimensions": dimensions,
            "batch_rows": self.run.evaluation.evaluation_batch_rows,
        }
        benchmark = self.splits.benchmark
        counts = [
            column(cases, "answer_count") for cases in (benchmark.cases, self.splits.development)
        ]
        if (np.concatenate(counts) == 2).all():
            yield (
                "zero_shot_verdict",
                VerdictProbability(model, self.processor, **settings),
            )
        yield (
            "zero_shot_likelihood",
            Likelihood(model, self.processor, **settings),
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
        return saved_identity(self.output / "adapter")

    def measure(
        self,
        scorer: Measurable,
        name: str,
        benchmark: Benchmark | None = None,
        weights: str | None = None,
    ) -> float:
        """Evaluates into the folder `name` and returns the primary dimension's accuracy.

        Where no case has a majority on it, that is 0.

        Args:
            scorer: of the base or the adapter.
            name: of the folder; "after" keeps small copies of the images, unless `no_images`.
            benchmark: None: the run's.
            weights: which ones they are; None: drawn or trained for this row alone.

        Raises:
            ConfigError: the recipe declares a difference that `compare` does not know; said at the
                first measurement, long before the comparison.
        """
        options = self.run.model
        report = evaluate(
            scorer,
            benchmark or self.splits.benchmark,
            self.folder(name),
            model_name=f"{self.base_name} ({name})",
            settings=settings_of(scorer, options.min_pixels, options.max_pixels),
            identity=weights,
            images=name == "after" and not self.run.evaluation.no_images,
            overwrite=True,  # a resumed run has other weights
        )
        check_declared(self.run.evaluation.allowed_differences, report)
        entry = report["protocols"]["robust"]["dimensions"][self.splits.primary]
        return float(entry["accuracy"] or 0.0)

    def measure_averaged(self, scorer: Measurable, measured: str, name: str) -> None:
        """Evaluates what a judge of the base said with both orders averaged, where asked for.

        The model is not asked again. More than two answers are compared by wins, not by means.

        Args:
            scorer: the judge, read by probabilities.
            measured: the folder of its evaluation.
            name: of the control and its folder.
        """
        pairs = (column(self.splits.benchmark.cases, "answer_count") == 2).all()
        if name not in self.run.evaluation.controls or not pairs:
            return
        responses = read_responses(self.folder(measured) / RESPONSES_FILE)
        averaged = AveragedOrders(responses, scorer.dimensions, scorer.settings)
        with stage(name):
            self.measure(averaged, name, weights=self.base_weights)

    def measure_pictures(self, scorer: Measurable) -> list[str]:
        """Evaluates with other pictures or none: the controls asked for that the cases allow."""
        benchmark, done = self.splits.benchmark, []
        pictured = column(benchmark.cases, "image_count").any()
        for name in IMAGE_ABLATIONS if pictured else ():
            if name not in self.run.evaluation.controls:
                continue
            try:
                cases = ablate_images(
                    name, benchmark.cases, self.splits.facts, benchmark.source.synthetic
                )
            except DataError as error:
                logger.info("%s is left out: %s", name, error)
                continue
            with stage(name):
                other = benchmark_from_cases(benchmark.name, benchmark.source, cases)
                self.measure(scorer, name, other, self.saved_weights)
            done.append(name)
        return done
