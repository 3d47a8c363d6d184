"""Readouts that give every answer of a case a number: a reward or a likelihood.

A trained reward model has a head on the last hidden state of each answer's row. A model that DPO
trained on answers implies a reward: by how much it prefers an answer. A base model says before any
training how likely an answer is to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.data.images import decode
from medrm.errors import AdapterError, DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.families import longest_row
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.kv_cache import caches_answers
from medrm.models.reward_model import without_adapter
from medrm.schema import DIMENSIONS, Case, Response, Verdict
from medrm.scorer.caller_cases import ANY_IMAGES, Given, ImageInput, caller_case, drawn_cases
from medrm.scorer.collator import Collator, check_contextual
from medrm.scorer.engines.base import text_digest
from medrm.scorer.logprobs import AnswerTokens, Span
from medrm.scorer.runner import (
    BATCH_ROWS,
    Array,
    BatchRunner,
    PromptOutput,
    PromptRows,
    by_group,
    model_settings,
)
from medrm.scorer.verdict_rules import agreed_verdicts


class AnswerScorer(ABC):
    """Scores the answers of a case, each alone unless trained otherwise; higher is better.

    Only differences between answers to the same question about the same images mean anything.

    Attributes:
        dimensions: names of the D columns of the scores.
        model: with its head or adapter, if any.
        processor: of the base model.

    Args:
        model, dimensions: as above.
        collator: of the rows that it reads.
        prompts: gives the K rows of a case.
        batch_rows: most rows (case and answer) computed at once; a case is never split.
        max_length: longest row that is read, in tokens; None: as long as the model's positions.
        deterministic: whether each answer is computed by itself (`medrm.scorer.determinism`);
            answers that see each other are one batch for each case.
    """

    readout: str
    measures_noise = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        dimensions: Sequence[str],
        collator: Collator,
        prompts: Callable[[Case], PromptRows[Any]],
        batch_rows: int,
        max_length: int | None,
        deterministic: bool,
    ) -> None:
        self.model, base = model, without_adapter(model)
        self.processor: ProcessorMixin = collator.processor
        self.dimensions, self._max_length = tuple(dimensions), max_length
        self._splits = deterministic and not collator.contextual_orders
        self._runner: BatchRunner[Case, Any, Array] = BatchRunner(
            collator,
            prompts=prompts,
            rows=lambda case: len(case.answers),
            read=self._read,
            batch_rows=batch_rows,
            max_length=longest_row(base.config, max_length),
            shares=not self._splits
            and (shares_prefix(base) or (self.readout == "reward" and caches_answers(base))),
            deterministic=base if deterministic else None,
        )

    @abstractmethod
    def _scores(self, features: BatchFeature, prompts: list[PromptRows[Any]]) -> Tensor:
        """Returns the scores of the rows of a batch, [rows, D], or [rows] for all dimensions."""

    def _read(self, features: BatchFeature, prompts: list[PromptRows[Any]]) -> list[Array]:
        scores = self._scores(features.to(self.model.device), prompts)
        if scores.ndim == 1:
            scores = scores[:, None].repeat(1, len(self.dimensions))
        ends = np.cumsum([len(case_prompts.rows) for case_prompts in prompts])
        return np.split(scores.float().cpu().numpy(), ends[:-1])

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a score."""
        runner = self._runner
        how = (runner.shares, runner.deterministic is not None)
        return {**model_settings(self.model, self.processor, *how), "max_length": self._max_length}

    @property
    def longest_row(self) -> int | None:
        """The most tokens of a row that is read: those of the model's positions, or fewer."""
        return self._runner.max_length

    @property
    def batch_rows(self) -> int:
        """The most rows (case and answer) computed at once; a case is never split."""
        return self._runner.batch_rows

    @property
    def lookahead(self) -> int | None:
        """How many cases are computed together; None: each by itself."""
        return self._runner.lookahead

    def _run(self, cases: Iterable[Case]) -> Iterator[PromptOutput[Any, Array]]:
        """Yields an output for every case, in order; its answers may have been computed apart."""
        if not self._splits:
            yield from self._runner.run(cases)
            return
        split = (
            (case, [replace(case, answers=(answer,)) for answer in case.answers]) for case in cases
        )
        for case, outputs in by_group(split, self._runner.run):
            rows = [row for output in outputs for row in output.prompts.rows]
            failed = next((output for output in outputs if output.values is None), None)
            yield PromptOutput(
                PromptRows(case, rows, None),
                "ok" if failed is None else failed.state,
                np.concatenate([output.values for output in outputs]) if failed is None else None,
            )

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the rewards of every case; one that cannot be scored has a state that says why."""
        for output in self._run(cases):
            rewards = None
            if output.values is not None:
                rewards = rewards_by_dimension(self.dimensions, output.values)
            yield Response(
                output.prompts.case.case_id,
                order="forward",
                dimension=None,
                vote=0,
                readout=self.readout,
                prompt_digest=text_digest(output.prompts.rows),
                state=output.state,
                reason=output.reason,
                rewards=rewards,
            )


class SavedScorer(AnswerScorer):
    """A scorer of answers that was trained and saved: what `medrm.load` gives.

    Attributes:
        contract: what the model was saved with.
        caller_images: how images of callers are read.

    Args:
        model: from `load_adapter`.
        contract: from the same folder.
        collator: of the rows that it reads.
        prompts: gives the K rows of a case.
        batch_rows: most rows (case and answer) computed at once; a case is never split.
        deterministic: whether each answer is computed by itself.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        contract: AdapterConfig,
        collator: Collator,
        prompts: Callable[[Case], PromptRows[Any]],
        batch_rows: int,
        deterministic: bool,
    ) -> None:
        limits = (batch_rows, contract.max_length, deterministic)
        super().__init__(model, contract.dimensions, collator, prompts, *limits)
        self.contract, self.caller_images = contract, ANY_IMAGES

    def score(
        self, images: Sequence[ImageInput] | None, question: str, answers: Sequence[str]
    ) -> Array:
        """Returns the rewards of the answers, float32 [K, D].

        Args:
            images: any number, none included.
            question: about the images.
            answers: one or more.

        Raises:
            DataError: no answer, a text in place of a list of answers, an unreadable image, or more
                tokens than the model was trained on.
        """
        if not answers:
            raise DataError("score() was given no answer; give at least one.")
        case = caller_case("score", images, question, answers, self.caller_images)
        return next(rewards for _, rewards in self.score_cases([case]))

    def score_cases(self, cases: Iterable[Given]) -> Iterator[tuple[Given, Array]]:
        """Yields (case, rewards [K, D]) in the order of the cases, in bounded memory.

        Args:
            cases: any cases, or dictionaries as `row_case` reads them; a window at a time.

        Raises:
            DataError: a case has an unreadable image or is over-long; `respond` goes on there.
        """
        waiting: deque[Given] = deque()
        for output in self._run(drawn_cases(cases, waiting, self.caller_images)):
            case = output.prompts.case
            if output.values is None:
                for ref in case.images:
                    decode(ref)  # the reason of an unreadable image is in its own message
                raise DataError(
                    f"Case {case.case_id!r} cannot be scored ({output.reason}): its longest row "
                    f"has more than {self.longest_row} tokens, the model's limit. Shorten the "
                    "texts or scale the images down."
                )
            yield waiting.popleft(), output.values

    def compare(
        self, images: Sequence[ImageInput] | None, question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the preferred answer on each dimension.

        Equal scores at the top are a tie, and nothing else is: a learned tie parameter shapes the
        training alone. `probability_a` of a pair is that of Bradley-Terry: the sigmoid of the
        difference of the scores.

        Args:
            images: any number, none included.
            question: about the images.
            answers: two or more.

        Raises:
            DataError: fewer than two answers, or what `score` raises.
        """
        if len(answers) < 2:
            raise DataError(f"compare() was given {len(answers)} answers; give at least two.")
        case = caller_case("compare", images, question, answers, self.caller_images)
        responses = list(self.respond([case]))
        if responses[0].rewards is None:
            next(self.score_cases([case]))  # says why
        return agreed_verdicts(case, responses, self.dimensions)


def rewards_by_dimension(dimensions: Sequence[str], scores: Array) -> dict[str, tuple[float, ...]]:
    """Returns the scores [K, D] as a `Response` has them: the K numbers of each dimension."""
    return {name: tuple(column) for name, column in zip(dimensions, scores.T.tolist(), strict=True)}


class RewardModel(SavedScorer):
    """A trained reward model: one score for each answer and dimension.

    Attributes:
        readout: "reward".

    Args:
        model: from `load_adapter`.
        processor: from the same folder.
        contract: from the same folder.
        batch_rows: most rows (case and answer) computed at once; a case is never split. It changes
            a score by rounding: in fp32 by less than 1e-5, in bf16 by as much as 0.02.
        deterministic: whether each answer is computed by itself; then nothing else changes it.
    """

    readout = "reward"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        batch_rows: int = BATCH_ROWS,
        deterministic: bool = False,
    ) -> None:
        orders = contract.contextual_orders
        check_contextual(orders, shares_prefix(without_adapter(model)))
        collator = Collator(processor, contract.reward_template, contextual_orders=orders)
        super().__init__(model, contract, collator, self._prompts, batch_rows, deterministic)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a reward."""
        return {**super().settings, "reward_template": self.contract.reward_template}

    def _prompts(self, case: Case) -> PromptRows[None]:
        return PromptRows(case, self._runner.collator.answer_rows(case), None)

    def _scores(self, features: BatchFeature, prompts: list[PromptRows[None]]) -> Tensor:
        rewards: Tensor = self.model(**features).rewards
        return rewards


class ImplicitReward(SavedScorer):
    """beta x (log p(answer) with the adapter - log p(answer) without it).

    DPO's implicit reward (https://arxiv.org/abs/2305.18290, section 5), up to a constant of the
    question. The probability is that of all the answer's tokens and of the token that ends its
    turn. It is one number for an answer, the same on each dimension.

    Attributes:
        readout: "implicit_reward".

    Args:
        model: with the adapter that DPO trained.
        processor: of the base model.
        contract: with DPO's beta.
        batch_rows: most rows (case and answer) computed at once; a case is never split.
        deterministic: whether each answer is computed by itself.

    Raises:
        AdapterError: there is no adapter to take off, or no beta.
    """

    readout = "implicit_reward"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        batch_rows: int = BATCH_ROWS,
        deterministic: bool = False,
    ) -> None:
        if not isinstance(model, PeftModel) or contract.implicit_beta is None:
            lacking = "an adapter" if contract.implicit_beta is not None else "its implicit_beta"
            raise AdapterError(
                f"An implicit reward needs {lacking}: it compares the model with its adapter and "
                "without it, times DPO's beta. Train one with objective judge_dpo, dpo_pairs "
                "answers and use_peft."
            )
        self._adapted = model
        self._beta = contract.implicit_beta
        self._answers = answers = AnswerTokens(processor, turn_ends=True)
        reading = (answers.collator, answers.prompts, batch_rows, deterministic)
        super().__init__(model, contract, *reading)

    def _scores(self, features: BatchFeature, prompts: list[PromptRows[list[Span]]]) -> Tensor:
        adapted = self._sums(features, prompts)
        with self._adapted.disable_adapter():
            base = self._sums(features, prompts)
        return self._beta * (adapted - base)

    def _sums(self, features: BatchFeature, prompts: list[PromptRows[list[Span]]]) -> Tensor:
        """Returns log p of each whole answer, [rows], in double precision."""
        logprobs = self._answers.logprobs(without_adapter(self._adapted), features, prompts)
        return torch.stack([answer.double().sum() for answer in logprobs])


class Likelihood(AnswerScorer):
    """Scores an answer by the mean log-probability of its tokens, given images and question.

    The score is the same on each dimension. Only the answer's own tokens count, not those that end
    the turn; an empty answer is as likely as an immediate end.

    Attributes:
        readout: "likelihood".

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to call the D equal columns.
        batch_rows: most rows (case and answer) computed at once.
        max_length: longest row that is read, in tokens; None: as long as the model's positions.
        deterministic: whether each answer is computed by itself.
    """

    readout = "likelihood"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
        deterministic: bool = False,
    ) -> None:
        self._answers = answers = AnswerTokens(processor, turn_ends=False)
        limits = (batch_rows, max_length, deterministic)
        super().__init__(model, dimensions, answers.collator, answers.prompts, *limits)

    def _scores(self, features: BatchFeature, prompts: list[PromptRows[list[Span]]]) -> Tensor:
        logprobs = self._answers.logprobs(self.model, features, prompts)
        return torch.stack([answer.mean() for answer in logprobs])
