"""Hand-made cases, and scorers whose numbers are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from medrm.data.case_set import CaseSet
from medrm.evaluation.benchmark import Benchmark
from medrm.schema import Case, Order, PairLabel, RankingLabel, Response

SHARES = {"A": (1.0, 0.0, 0.0), "B": (0.0, 0.0, 1.0), "tie": (0.0, 1.0, 0.0), "-": (0.5, 0.0, 0.5)}
DIMENSIONS = ("accuracy", "overall")


Answered = partial(
    Response,
    dimension=None,
    vote=0,
    readout="generate",
    prompt_digest="0",
    text=None,
    probabilities=None,
    finish_reason="stop",
    state="ok",
)
"""One call of a judge; `case_id` and `order` are left to give."""


def rewarded(
    case: Case, scores: np.ndarray | None, dimensions: Sequence[str] = ("accuracy",), **others: str
) -> Response:
    """A reward model's response to a case: scores [K, D], or a `state` that says why none."""
    rewards = None
    if scores is not None:
        rewards = dict(zip(dimensions, map(tuple, scores.T.tolist()), strict=True))
    made = {"readout": "reward", "finish_reason": None, "reason": others.get("state"), **others}
    return Answered(case.case_id, "forward", rewards=rewards, **made)


def make_cases(accuracy: str = "AABB", overall: str = "") -> list[Case]:
    """One case for each letter (t = tie, - = no majority); odd cases belong to the organ lung.

    Cases 0 and 1 share a cluster, and so on: half as many clusters as cases.
    """
    cases = []
    for number, letter in enumerate(accuracy):
        labels = {"accuracy": PairLabel(SHARES["tie" if letter == "t" else letter], 3)}
        if overall:
            labels["overall"] = PairLabel(SHARES[overall[number]], 3)
        cases.append(
            Case(
                case_id=f"case-{number:03d}",
                images=(),
                question="Which?",
                answers=("short", "much longer") if number % 2 else ("much longer", "short"),
                labels=labels,
                cluster=f"cluster-{number // 2:03d}",
                groups={"organ": "lung" if number % 2 else "brain"},
            )
        )
    return cases


def make_benchmark(cases: Sequence[Case], dimensions: Sequence[str] = ("accuracy",)) -> Benchmark:
    source = CaseSet(
        name="hand-made",
        revision="local",
        digest="d" * 64,
        cases=tuple(cases),
        dimensions=tuple(dimensions),
        ceiling={"accuracy": 0.96},
        synthetic=True,
    )
    return Benchmark("hand-made", source)


class Rewards:
    """A scalar model whose scores of a case are what `rule` returns; None is an unread case."""

    readout = "reward"
    lookahead = None
    settings: ClassVar[dict[str, object]] = {}

    def __init__(
        self,
        rule: Callable[[Case], Sequence[float] | None],
        dimensions: tuple[str, ...] = ("accuracy",),
    ) -> None:
        self.rule = rule
        self.dimensions = dimensions

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for case in cases:
            scores = self.rule(case)
            if scores is None:
                yield rewarded(case, None, state="bad_image")
            else:
                column = np.array(scores, dtype=np.float32)[:, None]
                repeated = np.repeat(column, len(self.dimensions), axis=1)
                yield rewarded(case, repeated, self.dimensions)


class Judge:
    """A judge of both orders; `rule` returns P(first stored answer) or None."""

    readout = "verdict_probability"
    dimensions = ("accuracy",)
    lookahead = None
    settings: ClassVar[dict[str, object]] = {}

    def __init__(self, rule: Callable[[Case, str], float | None]) -> None:
        self.rule = rule

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for case in cases:
            for order in ("forward", "reversed"):
                first = self.rule(case, order)
                said = {
                    "dimension": "accuracy",
                    "readout": self.readout,
                    "finish_reason": None,
                    "state": "too_long" if first is None else "ok",
                }
                if first is not None:
                    row = (0.9 * first, 0.9 * (1 - first), 0.9)
                    said["probabilities"] = {"accuracy": row}
                yield Answered(case.case_id, order, **said)


class Writer:
    """A judge that writes what `rule` returns for case, order, dimension and vote; None: no call.

    A reply that equals `cut` was stopped by the limit.
    """

    lookahead = None
    settings: ClassVar[dict[str, object]] = {}

    def __init__(
        self,
        rule: Callable[[Case, Order, str | None, int], str | None],
        dimensions: tuple[str, ...] = DIMENSIONS,
        votes: int = 1,
        per_dimension: bool = False,
        cut: str | None = None,
    ) -> None:
        self.rule = rule
        self.dimensions = dimensions
        self.readout = "votes" if votes > 1 else "generate"
        self.votes = votes
        self.asked = dimensions if per_dimension else (None,)
        self.cut = cut

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for case in cases:
            for order in ("forward", "reversed"):
                for name in self.asked[::-1]:
                    for vote in range(self.votes):
                        yield self.reply(case, order, name, vote)

    def reply(self, case: Case, order: Order, name: str | None, vote: int) -> Response:
        text = self.rule(case, order, name, vote)
        said = {"dimension": name, "vote": vote, "readout": self.readout, "text": text}
        if text is None:
            said |= {"state": "bad_image", "finish_reason": None}
        elif text == self.cut:
            said["finish_reason"] = "length"
        return Answered(case.case_id, order, **said)


def oracle(case: Case) -> tuple[float, float]:
    """Scores by the accuracy label."""
    first, _, second = case.labels["accuracy"].shares
    return first, second


def ranked_case(number: int, best: int, answers: int = 4) -> Case:
    """Three votes, two of them for `best`."""
    others = tuple(index for index in range(answers) if index != best)
    ranking = ((best,), others)
    other = ((others[0],), (best, *others[1:]))
    return Case(
        case_id=f"ranked-{number}",
        images=(),
        question="Which?",
        answers=tuple("abcdefgh"[:answers]),
        labels={"accuracy": RankingLabel((ranking, ranking, other))},
        cluster=f"cluster-{number}",
    )
