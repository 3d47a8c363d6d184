"""What all endpoints share: the loaded model, and a request's way through the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from medrm.data.decoding import MAX_PIXELS
from medrm.data.images import pixel_count
from medrm.data.readers.messages import with_pictures
from medrm.errors import DataError, nearest
from medrm.schema import Turn, Verdict
from medrm.scorer import Scorer
from medrm.scorer.caller_cases import ANY_IMAGES, CallerImages, row_case, unscored_reason
from medrm.scorer.readouts.answer_rewards import SavedScorer
from medrm.scorer.verdict_rules import agreed_verdicts
from medrm.serve.admission import Gate
from medrm.serve.case_queue import Answered, CaseQueue, QueueFullError, SizedCase, UnscoredError
from medrm.serve.row_counter import RowCounter
from medrm.serve.service_metrics import ServiceMetrics


class AskedCase(NamedTuple):
    """A case as a client describes it.

    Attributes:
        question: about the images.
        images: data URLs or base64, or stored bytes.
        answers: to be scored or compared.
        context: the turns before the question.
    """

    question: str
    images: Sequence[str | bytes]
    answers: Sequence[str]
    context: Sequence[Turn] = ()


Rewards = Mapping[str, Sequence[float]]
"""The rewards of a case's answers on each dimension."""


class Service:
    """A loaded model and its queue.

    Attributes:
        name: by which clients may name the model.
        scorer: the model.
        queue: scores cases.
        gate: what is let in.
        metrics: what is counted.
    """

    def __init__(self, scorer: Scorer, names: Sequence[str], queue: CaseQueue, gate: Gate) -> None:
        self.name, self._names = names[0], names
        self.scorer, self.queue, self.gate = scorer, queue, gate
        self.metrics: ServiceMetrics = gate.metrics
        self._counter = RowCounter(cast("SavedScorer", scorer))
        self._caller_images: CallerImages = getattr(scorer, "caller_images", ANY_IMAGES)

    @property
    def gives_rewards(self) -> bool:
        """Whether a reward model is loaded, not a judge."""
        return isinstance(self.scorer, SavedScorer)

    def reward_model(self, model: str | None) -> SavedScorer:
        """Returns the reward model that a request asks for.

        Raises:
            HTTPException: another one is asked for, or a judge is loaded.
        """
        self.check_model(model)
        if isinstance(self.scorer, SavedScorer):
            return self.scorer
        raise HTTPException(
            404,
            f"{self.name} is a judge: it compares two answers and gives no reward to one. Ask "
            "/v1/compare, or serve a reward model.",
        )

    def check_model(self, model: str | None) -> None:
        """Refuses a request for another model.

        Raises:
            HTTPException: 404.
        """
        if model is not None and model not in self._names:
            raise HTTPException(404, f"No model {model[:200]!r} is loaded here, but {self.name}.")

    def chosen(self, dimensions: Sequence[str] | None) -> list[str]:
        """Returns the dimensions that a request asks for, each once, in its order.

        Raises:
            HTTPException: the model lacks one.
        """
        accepted = self.scorer.dimensions
        for name in dimensions or ():
            if name not in accepted:
                raise HTTPException(
                    404,
                    f"{self.name} has no dimension {name[:200]!r}.{nearest(name[:200], accepted)} "
                    f"It has {', '.join(accepted)}.",
                )
        return list(dict.fromkeys(dimensions or accepted))

    async def rewards(self, cases: Sequence[AskedCase]) -> list[Rewards | str]:
        """Returns the rewards of each case, or in words why it has none."""
        return await self._outcomes(cases, self._rewards_of)

    async def counted_rewards(self, asked: AskedCase) -> tuple[Rewards, int] | str:
        """Returns the rewards of a case and its row's tokens, or in words why there are none."""
        (outcome,) = await self._outcomes([asked], self._counted)
        counted: tuple[Rewards, int] | str = outcome
        return counted

    async def verdicts(self, cases: Sequence[AskedCase]) -> list[Mapping[str, Verdict] | str]:
        """Returns the verdicts on each case, or in words why it has none."""
        return await self._outcomes(cases, self._verdicts_of)

    async def _outcomes(self, cases: Sequence[AskedCase], outcome_of: Any) -> list[Any]:
        """Scores cases together with those of other requests.

        Raises:
            HTTPException: the queue is full.
        """
        prepared = await run_in_threadpool(self._prepared, cases)
        sized = [case for case in prepared if not isinstance(case, str)]
        try:
            waiting = self.queue.submit(sized)
        except QueueFullError as error:
            raise self._full(error) from error
        answers = iter(
            await asyncio.gather(*map(asyncio.wrap_future, waiting), return_exceptions=True)
        )
        outcomes = [case if isinstance(case, str) else next(answers) for case in prepared]
        return await run_in_threadpool(self._in_words, outcomes, outcome_of)

    def _full(self, error: QueueFullError) -> HTTPException:
        if error.seconds is None:
            return HTTPException(
                413,
                f"More than {self.queue.capacity} answers in one request. Send fewer at once, or "
                "start the service with a larger --queue_rows.",
            )
        return HTTPException(
            429, "Too many answers wait for the model.", {"Retry-After": str(error.seconds)}
        )

    def _prepared(self, cases: Sequence[AskedCase]) -> list[SizedCase | str]:
        """Returns each case with its images' sizes, or why it cannot be asked about."""
        prepared: list[SizedCase | str] = []
        for asked in cases:
            try:
                prepared.append(self._sized(asked))
            except DataError as error:
                prepared.append(str(error))
        return prepared

    def _sized(self, asked: AskedCase) -> SizedCase:
        """Returns a case, of whose images the headers alone have been read.

        Raises:
            DataError: an image that is none, or beyond the limits; not two answers for a judge.
        """
        if not self.gives_rewards and len(asked.answers) != 2:
            raise DataError(f"a judge compares two answers; {len(asked.answers)} were given")
        held = self._caller_images
        by_image = [
            held.encoded(image, index) if isinstance(image, str) else held.stored(image, index)
            for index, image in enumerate(asked.images)
        ]
        images = list(chain.from_iterable(by_image))
        pixels = sum(map(pixel_count, images))
        if pixels > MAX_PIXELS:
            raise DataError(f"its images have {pixels} pixels together; at most {MAX_PIXELS}")
        question: Any = asked.question
        if asked.context:
            context = with_pictures(asked.context, list(map(len, by_image)))
            left = len(images) - sum(turn.images for turn in context)
            turns = (*context, Turn("user", question, max(left, 0)))
            question = list(map(_message, turns))
        row = {"question": question, "answers": list(asked.answers), "images": images}
        return SizedCase(row_case(row, 1), pixels)

    def _in_words(self, outcomes: Sequence[Any], outcome_of: Any) -> list[Any]:
        """Returns what each case came to; of one that could not be scored, why."""
        told = [
            str(outcome)
            if isinstance(outcome, str | UnscoredError)
            else self._problem_of(outcome) or outcome_of(outcome)
            for outcome in outcomes
        ]
        for outcome in told:
            self.metrics.case(not isinstance(outcome, str))
        return told

    def _problem_of(self, answered: Answered) -> str | None:
        """Returns why a case was not scored; None where it was.

        Raises:
            BaseException: neither an answer nor a failure of the model.
        """
        if isinstance(answered, BaseException):
            raise answered
        limit = getattr(self.scorer, "longest_row", None)
        for response in answered.responses:
            reason = unscored_reason(answered.case, response, limit)
            if reason is not None:
                return reason
        return None

    def _rewards_of(self, answered: Answered) -> Rewards | str:
        (response,) = answered.responses
        if response.rewards is None:
            return response.reason or "the model gave no reward"
        return response.rewards

    def _counted(self, answered: Answered) -> tuple[Rewards, int] | str:
        rewards = self._rewards_of(answered)
        if isinstance(rewards, str):
            return rewards
        return rewards, self._counter.tokens_of(answered.case)

    def _verdicts_of(self, answered: Answered) -> Mapping[str, Verdict] | str:
        if self.gives_rewards and isinstance(rewards := self._rewards_of(answered), str):
            return rewards
        return agreed_verdicts(answered.case, answered.responses, self.scorer.dimensions)


def _message(turn: Turn) -> dict[str, Any]:
    """Returns a turn as a message whose images stand before its text."""
    images = [{"type": "image"}] * turn.images
    return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}
