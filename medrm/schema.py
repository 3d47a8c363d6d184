"""The types that carry everything, `Case`, `Response` and `Verdict`; imports no torch.

Shape legend used in the whole package: B cases, K answers of a case, D dimensions, L tokens,
H hidden size.
`A` is always the first answer as stored (index 0), whichever was shown first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

DIMENSIONS = (
    "accuracy",
    "relevance",
    "comprehensiveness",
    "creativity",
    "responsiveness",
    "overall",
)
"""The six dimensions of Med-RewardBench (arXiv 2508.21430), in the released order."""

USAGE = ("prompt_tokens", "completion_tokens")
"""What is counted of a judge's call."""

Order = Literal["forward", "reversed"]
"""How two answers are shown: as stored, or the second one first."""

ORDERS: tuple[Order, Order] = ("forward", "reversed")
"""The orders in which a judge is shown every case."""

State = Literal["ok", "too_long", "bad_image", "error"]
"""How one call of a model ended."""

Protocol = Literal["official", "robust"]
"""Whose rules read a response: the released scorer's, or medrm's own."""

Outcome = str | int
"""`A`, `B`, `tie` or `unread`; for more than two answers the best one's index instead of A/B."""

Expected = Outcome | tuple[int, ...]
"""A label as it is written; of more than two answers several may be the best together."""

TIE = "tie"
NEITHER = "neither"
"""The label, and the vote, that no answer of a pair is acceptable; not a tie."""

UNREAD = "unread"
LETTERS = ("A", "B")
"""The outcomes that name an answer of a pair, in stored order."""

Choice = int | Literal["tie"]
"""The index of the preferred answer, or a tie."""

CHOICES: tuple[Choice, ...] = (0, "tie", 1)
"""What can be said of a pair, in the order of `PairLabel.shares`."""

Ranking = tuple[tuple[int, ...], ...]
"""Answer indices, best first; an inner tuple of several indices is a tie."""


def ranks_of(ranking: Ranking) -> dict[int, int]:
    """Returns the rank of each answer, 0 for the best; tied answers have the same.

    >>> ranks_of(((2,), (0, 1)))
    {2: 0, 0: 1, 1: 1}
    """
    return {answer: rank for rank, tied in enumerate(ranking) for answer in tied}


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One stored image: never pixels, only where they are and what they are.

    `digest` is the SHA-256 of the stored bytes in hex; empty when the bytes are unavailable, and
    then `problem` says why.
    """

    name: str
    digest: str
    read: Callable[[], bytes] = field(compare=False, repr=False)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PairLabel:
    """What the experts said about a pair on one dimension.

    `shares` are the (weighted) vote shares of the first answer, of a tie and of the second answer;
    they sum to 1. `votes` is the number of votes behind them. `neither` is the share of all votes
    that accept neither answer, which the shares and `votes` leave out; where all do, they are 0.
    `readers` holds each reader against the others: how many there are whose fellow readers prefer
    the first answer (by majority), how many of them do so themselves, and the same of the second
    answer; None where there are fewer than two readers, or it is not known.

    Two of three experts prefer the second answer, one sees a tie:

    >>> PairLabel((0.0, 1 / 3, 2 / 3), votes=3).choice
    1
    """

    shares: tuple[float, float, float]
    votes: int = 1
    neither: float = 0.0
    readers: tuple[int, int, int, int] | None = field(default=None, compare=False)

    @property
    def unacceptable(self) -> bool:
        """Whether more than half of all votes accept neither answer; then nothing is learned."""
        return self.neither > 0.5

    @property
    def choice(self) -> Choice | None:
        """0, 1 or "tie" where it holds more than half of the votes, else None (no majority).

        None as well where neither answer is acceptable.
        """
        if self.unacceptable:
            return None
        choices = zip(self.shares, CHOICES, strict=True)
        return next((choice for share, choice in choices if share > 0.5), None)


@dataclass(frozen=True, slots=True)
class RankingLabel:
    """The experts' rankings of K > 2 answers on one dimension, one ranking for each vote.

    One expert puts answers 0 and 2 on top together, another answer 2 alone:

    >>> RankingLabel((((0, 2), (1,)), ((2,), (0,), (1,)))).votes
    2
    """

    rankings: tuple[Ranking, ...]

    @property
    def votes(self) -> int:
        """The number of rankings."""
        return len(self.rankings)

    def of_pair(self, pair: tuple[int, int]) -> PairLabel:
        """Returns the label of two of the answers, given by their indices.

        >>> RankingLabel((((0, 2), (1,)), ((2,), (0,), (1,)))).of_pair((0, 2)).shares
        (0.0, 0.5, 0.5)
        """
        wins = [0, 0, 0]  # of the first, of neither, of the second
        for ranks in map(ranks_of, self.rankings):
            first, second = (ranks[index] for index in pair)
            wins[1 + (first > second) - (first < second)] += 1
        first_share, tie_share, second_share = (count / self.votes for count in wins)
        return PairLabel((first_share, tie_share, second_share), self.votes)


Label = PairLabel | RankingLabel


class Turn(NamedTuple):
    """A turn of the conversation that a case's question goes on.

    Attributes:
        role: "system", "user" or "assistant".
        text: what is said.
        images: how many of the case's images stand before the text.
    """

    role: str
    text: str
    images: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one or more images, with K >= 2 answers and the experts' labels.

    `cluster` names what is statistically independent: cases of one patient, study or image share
    it. `context` is the conversation before the question: a system prompt, earlier turns; images
    that none of its turns shows stand before the question.

    >>> case = Case("17", (), "Is there a fracture?", ("No.", "Yes."), cluster="patient:4")
    >>> len(case.answers), dict(case.labels)
    (2, {})
    """

    case_id: str
    images: tuple[ImageRef, ...]
    question: str
    answers: tuple[str, ...]
    labels: Mapping[str, Label] = field(default_factory=dict)
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    context: tuple[Turn, ...] = ()

    @property
    def asked(self) -> str:
        """What is asked as one text: the question, below the conversation before it.

        >>> case = Case("17", (), "And now?", ("No.",), context=(Turn("user", "Pain?"),))
        >>> case.asked.splitlines()
        ['user: Pain?', '', 'user: And now?']
        """
        if not self.context:
            return self.question
        turns = (*self.context, Turn("user", self.question))
        return "\n\n".join(f"{turn.role}: {turn.text}" for turn in turns)


@dataclass(frozen=True)
class Verdict:
    """Which answer one presentation of a case prefers on one dimension: a line of `verdicts.jsonl`.

    What `compare()` of a loaded model returns is one as well, of order "both", without protocol and
    label; such verdicts are never written to a file.

    Attributes:
        case_id: of the case that was judged.
        dimension: of quality.
        protocol: by whose rules the response was read; None from `compare()`.
        order: in which the answers were shown; "both" where both orders count together.
        outcome: "A", "B" or "tie"; of K > 2 answers the best one's index in place of a letter;
            "unread" where nothing could be read.
        reason: why it is unread, else None.
        label: what the experts' majority prefers, written like an outcome, or "neither"; None
            without a majority.
        label_shares: vote shares of (A, tie, B), of K > 2 answers those of each answer.
        probability_a: of A, given that there is no tie; None where the model states none.
        score_a: reward of the first answer of a pair; None for a judge.
        score_b: reward of the second answer of a pair; None for a judge.
        cluster: what is statistically independent.
        groups: such as organ or department.
        scores: K rewards where a case has more than two answers, else None.
    """

    case_id: str
    dimension: str
    protocol: Protocol | None
    order: Order | Literal["both"]
    outcome: Outcome
    reason: str | None = None
    label: Expected | None = None
    label_shares: tuple[float, ...] | None = None
    probability_a: float | None = None
    score_a: float | None = None
    score_b: float | None = None
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[float, ...] | None = None

    @property
    def correct(self) -> float | None:
        """1 or 0; None where the experts have no majority for an answer.

        Where several answers are the best together, each of them is right.
        """
        if self.label in (None, TIE, NEITHER):
            return None
        if isinstance(self.label, tuple):
            return float(self.outcome in self.label)
        return float(self.outcome == self.label)


@dataclass(frozen=True, slots=True)
class Response:
    """What a model said about one presentation of a case: a line of `responses.jsonl`.

    Everything after it (verdicts, reports, comparisons) is derived from these lines. One of `text`,
    `probabilities` and `rewards` is given, or `state` says why none is.

    Attributes:
        case_id: of the case that was judged.
        order: in which its answers were shown; "forward" for rewards.
        dimension: the one that was asked about; None: all in one response.
        vote: number of the sample, from 0.
        readout: how the verdict is read, a name of `medrm.readouts.READOUTS`.
        prompt_digest: SHA-256 of the prompt as it was sent; empty where there was none.
        text: a judge's reply, whose letters name the answers as shown.
        probabilities: dimension to the probabilities of naming the first stored answer and the
            second, and their sum.
        finish_reason: of a text: "stop", "length", or what the engine said.
        state: "ok", or why the model said nothing.
        reason: detail where the state is not "ok".
        rewards: dimension to the K rewards of the stored answers.
        pair: which two of a case's more than two answers were shown, by their indices; `A` and the
            first probability are then of the first one. None where a case has two answers, and for
            rewards.
        usage: `prompt_tokens` (images included) and `completion_tokens` of a text; None where the
            engine does not say.
    """

    case_id: str
    order: Order
    dimension: str | None
    vote: int
    readout: str
    prompt_digest: str = ""
    text: str | None = None
    probabilities: Mapping[str, tuple[float, float, float]] | None = None
    finish_reason: str | None = None
    state: State = "ok"
    reason: str | None = None
    rewards: Mapping[str, tuple[float, ...]] | None = None
    pair: tuple[int, int] | None = None
    usage: Mapping[str, int] | None = None
