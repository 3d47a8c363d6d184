"""The registry of readouts: the ways in which a verdict is read from a model; imports no torch.

Every list of readouts in the package is derived from `READOUTS`. A new readout is one entry here
and one module with its implementation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

ModelKind = Literal["reward_model", "judge", "base", "responses"]
"""What a readout reads: a saved reward model; a judge, saved or a base that is asked like one; a
base model alone; or the responses of another readout, without a model."""


Content = Literal["rewards", "text", "probabilities"]
"""The fields of a `Response` of which a readout fills one."""


@dataclass(frozen=True)
class Readout:
    """One way of reading a model.

    Attributes:
        name: as `--readout`, `medrm.json` and `responses.jsonl` have it.
        reads: what kind of model.
        writes: which field of a `Response` it fills.
        implementation: module and class, such as ".answer_rewards:Likelihood"; a module with a
            leading dot lies in `medrm.scorer.readouts`. A reward model's class is called with
            (model, processor, contract, batch_rows=...), a base's with (model, processor,
            dimensions=..., batch_rows=...), a judge's with (model, processor, prompt,
            dimensions=..., batch_rows=..., max_length=..., contract=...), and each with
            deterministic=True where that is asked for. One that writes text has an engine in place
            of model and processor.
        official: whether the official protocol reads it at all; of a text, only one reply on all
            six dimensions.
        rewards_are: "log_odds" where differences of rewards are those of Bradley-Terry,
            "probabilities" where each reward is itself one; None: numbers that only rank.
        description: how a model card speaks of a base that was read so.
    """

    name: str
    reads: ModelKind
    writes: Content
    implementation: str
    official: bool = True
    rewards_are: Literal["log_odds", "probabilities"] | None = None
    description: str = ""

    @property
    def gives_probabilities(self) -> bool:
        """Whether its verdicts state probabilities that a temperature can scale."""
        return self.writes == "probabilities" or self.rewards_are is not None


_READOUTS = (
    Readout(
        "reward", "reward_model", "rewards", ".answer_rewards:RewardModel", rewards_are="log_odds"
    ),
    Readout(
        *("implicit_reward", "reward_model", "rewards", ".answer_rewards:ImplicitReward"),
        rewards_are="log_odds",
    ),
    Readout(
        *("generate", "judge", "text", ".pair_judge:Judge"),
        description="asked for its verdict in both orders with the same prompt",
    ),
    Readout(
        *("skeleton", "judge", "probabilities", ".probability_readout:ConstrainedJson"),
        description="asked in both orders with the same prompt, the JSON of the verdict given",
    ),
    Readout(
        *("votes", "judge", "text", ".pair_judge:Judge"),
        description="asked for several verdicts in both orders with the same prompt",
    ),
    Readout(
        *("verdict_probability", "base", "probabilities"),
        ".probability_readout:VerdictProbability",
        description="asked for its verdict in both orders, read from the probability of it",
    ),
    Readout(
        *("likelihood", "base", "rewards", ".answer_rewards:Likelihood"),
        description="read by how likely it finds each answer (mean log probability of its tokens)",
    ),
    Readout(
        *("verdict_averaged", "responses", "rewards", ".pair_judge:AveragedOrders"),
        rewards_are="probabilities",
    ),
)

READOUTS: dict[str, Readout] = {readout.name: readout for readout in _READOUTS}
"""All readouts by name, in the order in which messages list them."""


def writes_text(readout: str) -> bool:
    """Returns whether a model read so writes its verdict; one that is not registered does not."""
    return readout in READOUTS and READOUTS[readout].writes == "text"


def writes_rewards(readout: str) -> bool:
    """Returns whether a model read so gives rewards; one that is not registered does not."""
    return readout in READOUTS and READOUTS[readout].writes == "rewards"


class ReadoutNames(Collection[str]):
    """The names of the readouts of some kinds of model, in the registry's order.

    They are looked up each time, so that a readout registered later is among them.

    Args:
        reads: the kinds of model.
    """

    def __init__(self, *reads: ModelKind) -> None:
        self._reads = reads

    def __iter__(self) -> Iterator[str]:
        """Yields the names."""
        return (name for name, readout in READOUTS.items() if readout.reads in self._reads)

    def __contains__(self, name: object) -> bool:
        """Returns whether it is one of the names."""
        return name in list(self)

    def __len__(self) -> int:
        """Returns how many there are now."""
        return sum(1 for _ in self)


JUDGE_READOUTS = ReadoutNames("judge")
"""How a judge's verdict can be read."""

OPTION_READOUTS = ReadoutNames("judge", "base")
"""What `--readout` accepts."""

BASE_READOUTS = ReadoutNames("base")
"""How a base model can be read without asking it for a verdict as a judge."""

SAVED_READOUTS = ReadoutNames("reward_model", "judge")
"""What `medrm.json` may name."""
