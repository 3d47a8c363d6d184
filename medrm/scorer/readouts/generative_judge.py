"""A generative judge: shows both answers in both orders and reports what an engine replied."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from medrm.chat import JudgePrompt
from medrm.data.images import decode
from medrm.errors import DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.parsers import PARSER_VERSION, Outcome, majority, parse_verdict, stored_outcome
from medrm.schema import LETTERS, ORDERS, TIE, UNREAD, Case, Choice, Order, Response, Verdict
from medrm.scorer.engines.base import Completion, Engine, Request, Sampling
from medrm.scorer.readouts.reward import ImageInput, given_case
from medrm.scorer.round_robin import in_pairs
from medrm.scorer.runner import Scored

GREEDY = Sampling()


class Judge:
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
        plain: breaks up what the engine's tokenizer would read as a command
            (`chat.break_control_tokens`); None for an engine that takes a question and an answer
            as nothing but text.
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
        plain: Callable[[str], str] | None = None,
        contract: AdapterConfig | None = None,
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.readout = "votes" if votes > 1 else "generate"
        self.contract = contract
        self._engine = engine
        self._prompt = prompt
        self._votes = votes
        self._sampling = sampling
        self._plain = plain

    @property
    def window(self) -> int | None:
        """How many cases the engine computes together; None: each by itself."""
        return self._engine.window

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

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields the responses of every case, first of its forward order, then of the reversed one.

        Of more than two answers every two are compared. Cases are read as far as the engine reads
        its requests.
        """
        return in_pairs(self._judge, cases)

    def _judge(self, pairs: Iterable[Case]) -> Iterator[Scored]:
        asked: deque[tuple[Case, list[Request]]] = deque()

        def requests() -> Iterator[Request]:
            for pair in pairs:
                asked.append((pair, self._requests(pair)))
                yield from asked[-1][1]

        completed: list[Completion] = []
        for completion in self._engine.complete(requests(), self._sampling):
            completed.append(completion)
            if len(completed) == len(asked[0][1]):
                yield from self._scored(*asked.popleft(), completed)
                completed = []

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the preferred answer on each dimension, read by the strict parser.

        An answer is preferred where both orders, each by the majority of its votes, say so. Where
        they differ there is no choice, and the reason is "orders_disagree".

        Args:
            images: any number, none included.
            question: about the images.
            answers: two.

        Raises:
            DataError: other than two answers, or an image that cannot be read.
        """
        case = pair_case(images, question, answers)
        forward, backward = (preferences(scored, self.dimensions) for scored in self.judge([case]))
        return {name: agreed(name, forward[name], backward[name]) for name in self.dimensions}

    def _requests(self, case: Case) -> list[Request]:
        """Returns the calls of a case, one after another, so that an engine can share a prefix."""
        plain = self._plain or str
        question = plain(case.question)
        first, second = map(plain, case.answers)
        shown: dict[Order, tuple[str, str]] = {
            "forward": (first, second),
            "reversed": (second, first),
        }
        requests = []
        for order in ORDERS:
            for dimension in self._prompt.dimensions_per_call(self.dimensions):
                names = self.dimensions if dimension is None else (dimension,)
                messages = self._prompt.messages(question, len(case.images), shown[order], names)
                requests += [
                    Request(case, order, dimension, vote, messages, names)
                    for vote in range(self._votes)
                ]
        return requests

    def _scored(
        self, case: Case, requests: Sequence[Request], completions: Sequence[Completion]
    ) -> Iterator[Scored]:
        responses = [
            self._response(request, completion)
            for request, completion in zip(requests, completions, strict=True)
        ]
        half = len(responses) // 2
        for order, calls in zip(ORDERS, (responses[:half], responses[half:]), strict=True):
            yield Scored(case, order, responses=tuple(calls))

    def _response(self, request: Request, completion: Completion) -> Response:
        return Response(
            case_id=request.case.case_id,
            order=request.order,
            dimension=request.dimension,
            vote=request.vote,
            readout=self.readout,
            prompt_digest=completion.prompt_digest,
            text=completion.text,
            probabilities=None,
            finish_reason=completion.finish_reason,
            state=completion.state,
            reason=completion.reason,
        )


class Preference(NamedTuple):
    """Which stored answer one order prefers; None where it has no majority, and why."""

    choice: Choice | None
    reason: str | None


def preferences(scored: Scored, dimensions: Sequence[str]) -> dict[str, Preference]:
    """Returns what most votes of one order prefer on each dimension, read by the strict parser.

    Votes that cannot be read abstain.
    """
    votes: dict[str, list[Outcome]] = {name: [] for name in dimensions}
    reasons: dict[str, str] = {}
    for response in scored.responses:
        names = dimensions if response.dimension is None else (response.dimension,)
        if response.text is None:
            reasons |= dict.fromkeys(names, response.reason or response.state)
            continue
        parsed = parse_verdict(response.text, "strict", names)
        for name, outcome in parsed.outcomes.items():
            if outcome is None:
                reasons[name] = parsed.reason or "unread"
            else:
                votes[name].append(stored_outcome(outcome, scored.order))
    return {name: _preference(votes[name], reasons.get(name)) for name in dimensions}


def _preference(votes: Sequence[Outcome], reason: str | None) -> Preference:
    most = majority(votes)
    if most is None:
        return Preference(None, "votes_split" if votes else reason)
    return Preference("tie" if most == "tie" else "AB".index(most), None)


def agreed(dimension: str, forward: Preference, backward: Preference) -> Verdict:
    """Returns the choice in which both orders agree, or why there is none."""
    reason = forward.reason or backward.reason
    if reason is None and forward.choice != backward.choice:
        reason = "orders_disagree"
    choice = forward.choice
    outcome = LETTERS[choice] if isinstance(choice, int) else TIE
    return Verdict("compare", dimension, None, "both", UNREAD if reason else outcome, reason)


def pair_case(images: Sequence[ImageInput], question: str, answers: Sequence[str]) -> Case:
    """Returns a case of two answers given by a caller.

    Raises:
        DataError: other than two answers, or an image that cannot be read.
    """
    if len(answers) != 2:
        raise DataError(
            f"compare() was given {len(answers)} answers; a judge compares two. Ask about "
            "pairs, or use a reward model."
        )
    case = given_case("compare", images, question, answers)
    for ref in case.images:
        decode(ref)
    return case
