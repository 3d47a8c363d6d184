"""A generative judge: shows both answers in both orders and reports what an engine replied."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from medrm.chat import JudgePrompt
from medrm.models.adapter_config import AdapterConfig
from medrm.parsers import PARSER_VERSION
from medrm.schema import ORDERS, Case, Order, Response
from medrm.scorer.engines.base import Completion, Engine, Request, Sampling
from medrm.scorer.readouts.pair_judge import PairJudge

GREEDY = Sampling()


class Judge(PairJudge):
    """Asks an engine which of two answers is better.

    Attributes:
        dimensions: what is asked about.
        readout: "generate", or "votes" where each call is sampled several times.
        contract: of the saved judge, None for any other.

    Args:
        engine: completes the conversations.
        prompt: how it is asked.
        dimensions: what to ask about.
        votes: samples of each call.
        sampling: how replies are drawn.
        contract: of a saved judge.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: JudgePrompt,
        dimensions: Sequence[str],
        *,
        votes: int = 1,
        sampling: Sampling = GREEDY,
        contract: AdapterConfig | None = None,
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.readout = "votes" if votes > 1 else "generate"
        self.contract = contract
        self._engine = engine
        self._prompt = prompt
        self._votes = votes
        self._sampling = sampling

    @property
    def lookahead(self) -> int | None:
        """How many cases the engine computes together; None: each by itself."""
        return self._engine.lookahead

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return {
            "engine": self._engine.name,
            **self._engine.settings,
            "prompt": f"{self._prompt.name} {self._prompt.version}",
            "prompt_digest": self._prompt.digest,
            "votes": self._votes,
            "temperature": self._sampling.temperature,
            "max_new_tokens": self._sampling.max_new_tokens,
            "seed": self._sampling.seed,
            "parser": PARSER_VERSION,
        }

    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        waiting: deque[list[Request]] = deque()

        def requests() -> Iterator[Request]:
            for pair in pairs:
                waiting.append(self._requests(pair))
                yield from waiting[-1]

        responses: list[Response] = []
        for completion in self._engine.complete(requests(), self._sampling):
            responses.append(self._response(waiting[0][len(responses)], completion))
            if len(responses) == len(waiting[0]):
                yield responses
                waiting.popleft()
                responses = []

    def _requests(self, case: Case) -> list[Request]:
        """Returns the calls of a case, one after another, so that an engine can share a prefix."""
        question = self._engine.plain(case.question)
        first, second = map(self._engine.plain, case.answers)
        answers_shown: dict[Order, tuple[str, str]] = {
            "forward": (first, second),
            "reversed": (second, first),
        }
        requests = []
        for order in ORDERS:
            for dimension in self._prompt.dimensions_per_call(self.dimensions):
                names = self.dimensions if dimension is None else (dimension,)
                messages = self._prompt.messages(
                    question, len(case.images), answers_shown[order], names
                )
                requests += [
                    Request(case, order, dimension, vote, messages, names)
                    for vote in range(self._votes)
                ]
        return requests

    def _response(self, request: Request, completion: Completion) -> Response:
        return Response(
            case_id=request.case.case_id,
            order=request.order,
            dimension=request.dimension,
            vote=request.vote,
            readout=self.readout,
            prompt_digest=completion.prompt_digest,
            text=completion.text,
            finish_reason=completion.finish_reason,
            state=completion.state,
            reason=completion.reason,
        )
