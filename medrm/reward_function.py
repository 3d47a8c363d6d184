"""A saved reward model as a reward function of reinforcement learning.

    reward = medrm.RewardFunction("RUN/adapter", dimensions=["overall"])
    GRPOTrainer(..., reward_funcs=reward)                    # one weighted sum
    GRPOTrainer(..., reward_funcs=reward.each())             # one function for each dimension

TRL calls it with `prompts`, `completions` and the columns of its data set. Completions of the same
question about the same images are scored together, so that what they share is computed once. What
cannot be scored is `None`, never a constant: TRL leaves it out. A dimension is asked for by name.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from medrm.data.batched import batched
from medrm.errors import ConfigError, DataError, nearest, refuse
from medrm.schema import Case
from medrm.scorer.caller_cases import unscored_reason
from medrm.scorer.completion_cases import (
    Completion,
    Prompt,
    SeenImages,
    completion_case,
    special_tokens,
    without_end,
)
from medrm.scorer.open import load
from medrm.scorer.readouts.answer_rewards import SavedScorer
from medrm.serve.served_model import ADDRESSES, ServedModel

logger = logging.getLogger(__name__)

Rewards = Mapping[str, float]
"""The reward of one completion on each dimension."""


class _SingleCompletion(NamedTuple):
    """A call of `one` that waits for its rewards; an absent question or images are None."""

    prompt: Prompt
    completion: Completion
    question: str | None
    images: Any
    rewards: Future[Rewards | None]


class _Asked(NamedTuple):
    """What a call asks about; its lists and mappings are copies, which no caller changes."""

    prompts: list[Prompt]
    completions: list[Completion]
    columns: Mapping[str, list[Any]]

    def is_same(self, other: _Asked) -> bool:
        """Whether the same is asked: equal texts, and the same objects where they are no texts."""
        return (
            _are_same(self.completions, other.completions)
            and _are_same(self.prompts, other.prompts)
            and self.columns.keys() == other.columns.keys()
            and all(_are_same(self.columns[name], other.columns[name]) for name in self.columns)
        )


def _are_same(first: Any, second: Any) -> bool:
    """Whether two values are equal texts, the same object, or lists or mappings of such."""
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_are_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            _are_same(value, second[key]) for key, value in first.items()
        )
    return first is second or (isinstance(first, str) and first == second)


def _copied(value: Any) -> Any:
    """Returns a value whose lists and mappings nobody else changes; what they hold stays."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return list(map(_copied, value)) if isinstance(value, list | tuple) else value


class RewardFunction:
    """Scores completions by a saved reward model; callable as TRL's `reward_funcs` are.

    Attributes:
        model: the reward model.
        dimensions: what is rewarded.
        weights: of the dimensions, by name; the reward is the weighted sum.

    Args:
        model: an adapter folder, the id of a hub repository, what `medrm.load` gave, or the address
            of a `medrm serve` (http://...).
        dimensions: what is rewarded; None: overall, or the only dimension that the model has.
        weights: of dimensions, by name; those not named weigh 1.
        reads_system: whether the reward model reads the system turn of a prompt, as it should where
            it was trained on conversations with that turn. Else it is left out: it tells the policy
            how to answer.
        loading: as `medrm.load` takes it (`revision`, `device`, `batch_rows`, ...); of an address
            `token_env`, the variable with its token.

    Raises:
        AdapterError: the model cannot be loaded.
        ConfigError: it is a judge, or lacks a dimension, or a weight names none.
    """

    def __init__(
        self,
        model: str | Path | SavedScorer | ServedModel,
        dimensions: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        reads_system: bool = False,
        **loading: Any,
    ) -> None:
        if isinstance(model, str) and model.startswith(ADDRESSES):
            loaded: Any = ServedModel(model, **loading)
        else:
            loaded = load(model, **loading) if isinstance(model, str | Path) else model
        if not isinstance(loaded, SavedScorer | ServedModel):
            raise ConfigError(
                f"{model} is a judge, which compares two answers and gives no reward to one. Give "
                "a reward model (objective bradley_terry)."
            )
        self.model = loaded
        self.dimensions = _rewarded(loaded.dimensions, dimensions)
        unknown = [name for name in weights or {} if name not in self.dimensions]
        refuse(
            [f"weights name {name!r}.{nearest(name, self.dimensions)}" for name in unknown],
            f"Accepted are the dimensions that are rewarded: {', '.join(self.dimensions)}.",
        )
        self.weights = {name: float((weights or {}).get(name, 1)) for name in self.dimensions}
        self.__name__ = "medrm_" + "_".join(self.dimensions)
        self._lock = threading.Lock()
        self._turn, self._waiting = threading.Lock(), deque[_SingleCompletion]()
        self._reads_system = reads_system
        self._special_tokens = (
            loaded.special_tokens
            if isinstance(loaded, ServedModel)
            else special_tokens(loaded.processor)
        )
        self._latest: tuple[_Asked, list[Rewards | None]] | None = None

    @classmethod
    def from_environment(cls) -> RewardFunction:
        """Returns the function of MEDRM_REWARD_MODEL on MEDRM_REWARD_DIMENSIONS (a,b,...).

        For programs that load a file and call what is in it. MEDRM_REWARD_READS_SYSTEM=1 is
        `reads_system`.

        Raises:
            ConfigError: no model is named, or see above.
        """
        model, names = (os.environ.get(f"MEDRM_REWARD_{name}") for name in ("MODEL", "DIMENSIONS"))
        if not model:
            raise ConfigError(
                "MEDRM_REWARD_MODEL is not set; give the adapter folder or hub repository of a "
                "reward model, and in MEDRM_REWARD_DIMENSIONS what is rewarded, such as overall."
            )
        reads_system = os.environ.get("MEDRM_REWARD_READS_SYSTEM", "0")
        if reads_system not in ("0", "1"):
            raise ConfigError(f"MEDRM_REWARD_READS_SYSTEM is {reads_system!r}; give 0 or 1.")
        return cls(model, names.split(",") if names else None, reads_system=reads_system == "1")

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Returns the weighted sum of the dimensions' rewards; None for what cannot be scored.

        Args:
            prompts: N questions, as text or as a conversation that ends in a user's turn.
            completions: N answers to them, as text or as a conversation that ends in the answer.
            columns: N values each; `question` is read in place of the prompt, `images` or `image`
                in place of the images in it. Others are left alone.
        """
        scored = self.rewards(prompts, completions, **columns)
        return [None if rewards is None else self.weighted(rewards) for rewards in scored]

    def weighted(self, rewards: Rewards) -> float:
        """Returns the weighted sum of a completion's rewards."""
        return sum(weight * rewards[name] for name, weight in self.weights.items())

    def without_end(self, answer: str) -> str:
        """Returns an answer without special tokens behind it.

        For programs that decode answers with the tokens that end a turn.
        """
        return without_end(answer, self._special_tokens)

    def each(self) -> list[DimensionReward]:
        """Returns a function for each dimension; asked about the same completions, all of them
        share one forward pass. Their names end in the dimension, TRL logs them apart.
        """
        return [DimensionReward(self, name) for name in self.dimensions]

    def rewards(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[Rewards | None]:
        """Returns the rewards of each completion on each dimension; None: it cannot be scored.

        What was asked last is kept, so that the functions of `each` compute it once.
        """
        with self._lock:
            read = _beside(columns, len(completions))
            if len(prompts) != len(completions):
                raise DataError(
                    f"{len(prompts)} prompts and {len(completions)} completions; give as many."
                )
            asked = _Asked(_copied(prompts), _copied(completions), _copied(read))
            if self._latest is None or not asked.is_same(self._latest[0]):
                self._latest = (asked, self._scored(asked))
            return list(self._latest[1])

    def one(
        self,
        prompt: Prompt,
        completion: Completion,
        *,
        question: str | None = None,
        images: Any = None,
    ) -> Rewards | None:
        """Returns the rewards of one completion, for programs that ask for one at a time.

        Calls from several threads that come while others are computed are scored together.

        Returns:
            the reward of each dimension, unweighted (`weighted` sums them); None: it cannot be
            scored, and the log says why.
        """
        call = _SingleCompletion(prompt, completion, question, images, Future())
        self._waiting.append(call)
        with self._turn:
            if not call.rewards.done():  # nobody has taken it along
                calls = [self._waiting.popleft() for _ in range(len(self._waiting))]
                self._answer(calls)
        return call.rewards.result()

    def _answer(self, calls: Sequence[_SingleCompletion]) -> None:
        """Gives waiting calls their rewards, or the error of all of them."""
        prompts, completions, questions, images, waiting = zip(*calls, strict=True)
        try:
            scored = self.rewards(prompts, completions, question=questions, images=images)
        except BaseException as error:
            for future in waiting:
                future.set_exception(error)
            return
        for future, rewards in zip(waiting, scored, strict=True):
            future.set_result(rewards)

    def _scored(self, asked: _Asked) -> list[Rewards | None]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        cases, problems = dict[int, Case](), Counter[str]()
        seen = SeenImages(self.model.caller_images)
        for index, completion in enumerate(asked.completions):
            row = {name: values[index] for name, values in asked.columns.items()}
            prompt = asked.prompts[index]
            if isinstance(prompt, list) and not self._reads_system:
                prompt = [turn for turn in prompt if not _is_system(turn)]
            try:
                case = completion_case(prompt, completion, row, seen)
            except DataError as error:
                problems[str(error)] += 1
                continue
            cases[index] = case
            images = tuple(image.digest or image.name for image in case.images)
            key = (case.context, case.question, images)
            groups.setdefault(key, []).append(index)
        rewards: list[Rewards | None] = [None] * len(asked.completions)
        size = self.model.batch_rows  # a case is never split
        together = [part for group in groups.values() for part in batched(group, size)]
        failed = self._score(together, cases, rewards)
        # One answer that is too long must not cost those beside it their rewards.
        alone = [[index] for group, _ in failed for index in group if len(group) > 1]
        failed = [one for one in failed if len(one[0]) == 1] + self._score(alone, cases, rewards)
        problems.update(reason for _, reason in failed)
        if problems:
            told = "; ".join(f"{count} x {problem}" for problem, count in problems.items())
            total = sum(problems.values())
            logger.warning("%d of %d completions have no reward: %s", total, len(rewards), told)
        return rewards

    def _score(
        self,
        groups: Sequence[Sequence[int]],
        cases: Mapping[int, Case],
        rewards: list[Rewards | None],
    ) -> list[tuple[Sequence[int], str]]:
        """Writes the rewards of groups of completions; returns those that have none, and why."""
        asked = [
            replace(
                cases[group[0]],
                case_id=str(number),
                answers=tuple(cases[index].answers[0] for index in group),
            )
            for number, group in enumerate(groups)
        ]
        failed, longest_row = [], getattr(self.model, "longest_row", None)
        responses = self.model.respond(asked)
        for group, case, response in zip(groups, asked, responses, strict=True):
            reason = unscored_reason(case, response, longest_row) or response.reason
            if response.rewards is None or reason is not None:
                failed.append((group, reason or "the model gave no reward"))
                continue
            for answer, index in enumerate(group):
                rewards[index] = {name: response.rewards[name][answer] for name in self.dimensions}
        return failed


class DimensionReward:
    """The reward of one dimension, as a reward function of its own."""

    def __init__(self, rewards: RewardFunction, dimension: str) -> None:
        self.function, self.dimension = rewards, dimension
        self.__name__ = f"medrm_{dimension}"

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Returns the rewards on the dimension; None for what cannot be scored."""
        scored = self.function.rewards(prompts, completions, **columns)
        return [None if rewards is None else rewards[self.dimension] for rewards in scored]


def _rewarded(has: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the dimensions to reward.

    Raises:
        ConfigError: the model has not all of them, or none is named where it has several.
    """
    if asked is None and ("overall" in has or len(has) == 1):
        return ("overall",) if "overall" in has else tuple(has)
    if isinstance(asked, str):
        asked = [asked]
    if not asked:
        raise ConfigError(f"Name the dimensions to reward; the model has {', '.join(has)}.")
    unknown = [f"{name!r}.{nearest(name, has)}" for name in asked if name not in has]
    refuse(unknown, f"The model has the dimensions {', '.join(has)}, and not all that are asked:")
    return tuple(dict.fromkeys(asked))


def _is_system(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "system"


_READ = ("question", "images", "image")
"""Columns of a data set that are looked at."""


def _beside(columns: Mapping[str, Any], count: int) -> dict[str, Sequence[Any]]:
    """Returns the columns that are looked at.

    Raises:
        DataError: one has another length than the completions.
    """
    read = {name: columns[name] for name in _READ if columns.get(name) is not None}
    problems = [
        f"column {name} has {len(values)} values for {count} completions"
        for name, values in read.items()
        if len(values) != count
    ]
    refuse(problems, error=DataError)
    return read
