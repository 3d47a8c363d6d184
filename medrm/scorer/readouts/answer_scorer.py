"""What readouts share that give every answer of a case a number: a reward or a likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.data.images import decode
from medrm.errors import DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.schema import Case, Response, Verdict
from medrm.scorer.caller_case import ImageInput, caller_case
from medrm.scorer.runner import Array, BatchRunner, text_digest
from medrm.scorer.settings import model_settings
from medrm.scorer.verdict_rules import agreed_verdicts


class AnswerScorer:
    """Scores the answers of a case, each alone unless trained otherwise; higher is better.

    Only differences between answers to the same question about the same images mean anything.

    Attributes:
        dimensions: names of the D columns of the scores.
        model: with its head or adapter, if any.
        processor: of the base model.

    Args:
        model: as above.
        dimensions: as above.
        runner: computes the scores [K, D] of each case.
    """

    readout: str

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        dimensions: Sequence[str],
        runner: BatchRunner[Case, Any, Array],
    ) -> None:
        self.model = model
        self.processor: ProcessorMixin = runner.collator.processor
        self.dimensions = tuple(dimensions)
        self._runner = runner

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a score."""
        return model_settings(self.model, self.processor)

    @property
    def lookahead(self) -> int:
        """How many cases are computed together."""
        return self._runner.lookahead

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the rewards of every case; one that cannot be scored has a state that says why."""
        for output in self._runner.run(cases):
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

    Args:
        model: from `load_adapter`.
        contract: from the same folder.
        runner: computes the scores [K, D] of each case.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        contract: AdapterConfig,
        runner: BatchRunner[Case, Any, Array],
    ) -> None:
        super().__init__(model, contract.dimensions, runner)
        self.contract = contract

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a score."""
        return {**super().settings, "max_length": self.contract.max_length}

    def score(self, images: Sequence[ImageInput], question: str, answers: Sequence[str]) -> Array:
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
        case = caller_case("score", images, question, answers)
        return next(rewards for _, rewards in self.score_cases([case]))

    def score_cases(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Array]]:
        """Yields (case, rewards [K, D]) in the order of the cases, in bounded memory.

        Args:
            cases: any iterable; read a window at a time.

        Raises:
            DataError: a case has an unreadable image or is over-long; `respond` goes on there.
        """
        for output in self._runner.run(cases):
            case = output.prompts.case
            if output.values is None:
                for ref in case.images:
                    decode(ref)  # the reason of an unreadable image is in its own message
                raise DataError(
                    f"Case {case.case_id!r} cannot be scored ({output.reason}): its longest row "
                    f"has more than {self.contract.max_length} tokens, the model's max_length. "
                    "Shorten the texts or scale the images down."
                )
            yield case, output.values

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
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
        case = caller_case("compare", images, question, answers)
        responses = list(self.respond([case]))
        if responses[0].rewards is None:
            next(self.score_cases([case]))  # says why
        return agreed_verdicts(case, responses, self.dimensions)


def rewards_by_dimension(dimensions: Sequence[str], scores: Array) -> dict[str, tuple[float, ...]]:
    """Returns the scores [K, D] as a `Response` has them: the K numbers of each dimension."""
    return {name: tuple(column) for name, column in zip(dimensions, scores.T.tolist(), strict=True)}
