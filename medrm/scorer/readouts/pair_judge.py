"""What all judges share: they are shown two answers at a time, in both orders.

A case of two answers is one pair. A case of K > 2 answers is asked about as K (K - 1) / 2 pairs,
and its responses name theirs:

    case of 3 answers -> pairs (0, 1), (0, 2), (1, 2) -> responses of all pairs, forward order first
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from medrm.chat import JudgePrompt
from medrm.data.images import decode
from medrm.errors import DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.parsers import PARSER_VERSION
from medrm.schema import ORDERS, Case, Order, RankingLabel, Response, Verdict
from medrm.scorer.caller_cases import ANY_IMAGES, CallerImages, ImageInput, caller_case
from medrm.scorer.engines.base import Engine, RendersPrompts, Request, Sampling
from medrm.scorer.readouts.answer_rewards import rewards_by_dimension
from medrm.scorer.runner import Array, by_group
from medrm.scorer.verdict_rules import agreed_verdicts

Pair = tuple[int, int]
"""Two of a case's answers, by their indices."""


class PairJudge(ABC):
    """A judge of two answers.

    Attributes:
        prompt: how it is asked.
        dimensions: what is asked about.
        readout: how its verdicts are read.
        caller_images: how images that a caller gives are read.
    """

    prompt: JudgePrompt
    dimensions: tuple[str, ...]
    readout: str
    caller_images: CallerImages = ANY_IMAGES

    @abstractmethod
    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        """Yields all responses to each case of two answers, the forward order first."""

    @abstractmethod
    def _plain(self, text: str) -> str:
        """Returns a question or an answer without what the model would take for a command."""

    @abstractmethod
    def _rendered(self, request: Request) -> str | None:
        """Returns a prompt as the model reads it; None where only a service knows it."""

    def prompts(self, case: Case) -> list[tuple[Request, str | None]]:
        """Returns the calls about a case's first two answers, each with its rendered prompt."""
        calls = self._requests(_pairs_of(case)[0])
        return [(request, self._rendered(request)) for request in calls]

    def _requests(self, case: Case, votes: int = 1) -> list[Request]:
        """Returns the calls of a case, one after another, so that they can share a prefix.

        Args:
            case: of two answers.
            votes: samples of each call.
        """
        question, first, second = map(self._plain, (case.asked, *case.answers))
        answers_shown: dict[Order, tuple[str, str]] = {
            "forward": (first, second),
            "reversed": (second, first),
        }
        requests = []
        for order in ORDERS:
            for dimension in self.prompt.dimensions_per_call(self.dimensions):
                names = self.dimensions if dimension is None else (dimension,)
                messages = self.prompt.messages(
                    question, len(case.images), answers_shown[order], names
                )
                requests += [
                    Request(case, order, dimension, vote, messages, names) for vote in range(votes)
                ]
        return requests

    def _response(self, request: Request, **outcome: Any) -> Response:
        """Returns the response to a call, of which `outcome` came."""
        identity = (request.case.case_id, request.order, request.dimension, request.vote)
        return Response(*identity, readout=self.readout, **outcome)

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the responses to every case, first in the forward order, then in the reversed one.

        Of more than two answers every two are compared. Cases are read only as far as they are
        computed together.
        """
        compared = ((case, _pairs_of(case)) for case in cases)
        for case, by_pair in by_group(compared, self._ask):
            if len(by_pair) == 1:
                yield from by_pair[0]
                continue
            pairs = combinations(range(len(case.answers)), 2)
            named = (
                replace(response, case_id=case.case_id, pair=pair)
                for pair, responses in zip(pairs, by_pair, strict=True)
                for response in responses
            )
            yield from sorted(named, key=lambda response: response.order)

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the answer that both orders prefer, on each dimension.

        Where the orders differ there is no choice, and the reason is "orders_disagree". Replies are
        read by the strict parser, each order by the majority of its votes. Where the judge is read
        by probabilities, `probability_a` is the mean of the orders, given that one of the answers
        is named; where an order has no probability on either answer, the reason is "no_mass".

        Args:
            images: any number, none included.
            question: about the images.
            answers: two.

        Raises:
            DataError: other than two answers, or an image that cannot be read.
        """
        if len(answers) != 2:
            raise DataError(
                f"compare() was given {len(answers)} answers; a judge compares two. Ask about "
                "pairs, or use a reward model."
            )
        case = caller_case("compare", images, question, answers, self.caller_images)
        for ref in case.images:
            decode(ref)
        return agreed_verdicts(case, list(self.respond([case])), self.dimensions)


def _pairs_of(case: Case) -> list[Case]:
    """Returns every two answers of a case as a case of their own; a pair as it is."""
    pairs = list(combinations(range(len(case.answers)), 2))
    return [case] if len(pairs) == 1 else [pair_of(case, pair) for pair in pairs]


def pair_of(case: Case, pair: Pair) -> Case:
    """Returns two answers of a case as a case of its own, labelled by who ranked which higher."""
    first, second = pair
    return replace(
        case,
        case_id=f"{case.case_id}#{first}-{second}",
        answers=(case.answers[first], case.answers[second]),
        labels={
            name: label.of_pair(pair) if isinstance(label, RankingLabel) else label
            for name, label in case.labels.items()
        },
    )


GREEDY = Sampling()


@dataclass(eq=False)
class Judge(PairJudge):
    """Asks an engine which of two answers is better.

    Attributes:
        engine: completes the conversations.
        prompt: how it is asked.
        dimensions: what is asked about.
        votes: samples of each call.
        sampling: how replies are drawn.
        contract: of a saved judge, None for any other.
        readout: "generate", or "votes" where each call is sampled several times.
    """

    engine: Engine
    prompt: JudgePrompt
    dimensions: tuple[str, ...]
    votes: int = 1
    sampling: Sampling = GREEDY
    contract: AdapterConfig | None = None

    def __post_init__(self) -> None:
        self.readout = "votes" if self.votes > 1 else "generate"

    @property
    def lookahead(self) -> int | None:
        """How many cases the engine computes together; None: each by itself."""
        return self.engine.lookahead

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return {
            "engine": self.engine.name,
            **self.engine.settings,
            "prompt": f"{self.prompt.name} {self.prompt.version}",
            "prompt_digest": self.prompt.digest,
            "votes": self.votes,
            "temperature": self.sampling.temperature,
            "max_new_tokens": self.sampling.max_new_tokens,
            "seed": self.sampling.seed,
            "parser": PARSER_VERSION,
        }

    def _plain(self, text: str) -> str:
        return self.engine.plain(text)

    def _rendered(self, request: Request) -> str | None:
        return self.engine.rendered(request) if isinstance(self.engine, RendersPrompts) else None

    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        request_groups = (self._requests(pair, self.votes) for pair in pairs)
        for requests, completions in by_group(
            ((requests, requests) for requests in request_groups),
            lambda requests: self.engine.complete(requests, self.sampling),
        ):
            yield [
                self._response(request, **asdict(completion))
                for request, completion in zip(requests, completions, strict=True)
            ]


class AveragedOrders:
    """Averages P(an answer is better) over the two orders, so that position cancels out.

    Balanced position calibration (https://arxiv.org/abs/2305.17926, section 4.2) with probabilities
    in place of written scores. Each order counts alike: of the two answers' probabilities in it
    only the ratio is used.

    Attributes:
        readout: "verdict_averaged".
        dimensions: what the judge was asked about.
        settings: what besides the weights could change a probability.
        lookahead: None; what is said of a case depends on the case alone.

    Args:
        responses: of a judge that was read by probabilities, on pairs, in both orders.
        dimensions: what it was asked about.
        settings: its own.
    """

    readout = "verdict_averaged"
    lookahead = None

    def __init__(
        self,
        responses: Iterable[Response],
        dimensions: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.settings = settings
        self._by_case: dict[str, list[Response]] = {}
        for response in responses:
            self._by_case.setdefault(response.case_id, []).append(response)

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the mean probabilities of both answers as rewards, or why there are none."""
        for case in cases:
            responses = self._by_case[case.case_id]
            failed = next((call for call in responses if call.state != "ok"), None)
            averaged = Response(case.case_id, "forward", None, 0, self.readout)
            if failed is not None:
                yield replace(averaged, state=failed.state, reason=failed.reason or failed.state)
                continue
            means = self._means(responses)
            if np.isfinite(means).all():
                yield replace(averaged, rewards=rewards_by_dimension(self.dimensions, means))
            else:
                yield replace(averaged, state="error", reason="no_mass")

    def _means(self, responses: Sequence[Response]) -> Array:
        """Returns [2 answers, D]; not a number where an order names neither answer."""
        probabilities = np.full((len(ORDERS), 2, len(self.dimensions)), np.nan, dtype=np.float32)
        for response in responses:
            for name, (first, second, _) in (response.probabilities or {}).items():
                cell = ORDERS.index(response.order), slice(None), self.dimensions.index(name)
                total = first + second
                probabilities[cell] = (first / total, second / total) if total else np.nan
        means: Array = probabilities.mean(axis=0)
        return means
