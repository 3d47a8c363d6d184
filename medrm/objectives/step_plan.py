"""Which cases form which optimiser step, micro-batch and process; without torch.

Why an optimiser step is exactly `global_batch_cases` cases, whatever the devices and micro-batches:
the step comes first, and is cut up only afterwards.

1. Draw. Seed and epoch alone shuffle the N cases. With the effective batch size
   G = `global_batch_cases`, step s is cases [s G, (s + 1) G) of that order; the last step of an
   epoch may be smaller. Neither the number of processes P nor any limit of a micro-batch matters.
2. Cut. The G cases are cut into at most R x P micro-batches. R, the rounds, is how many of them
   each process runs in every step: the gradient accumulation, which Trainer wants constant, and so
   the most that any step needs.
3. Fill. Where a step has fewer micro-batches than R x P, the rest run one case with scale 0: every
   process takes part in every round, and the filler adds nothing.
4. Scale. Every real case carries scale = 1 / (label weight of its whole step). The step's loss

       sum over labels of weight x loss / sum over labels of weight

   is then a plain sum over cases, which any cut leaves alone but for floating-point order.

For G = 3, P = 2 and one case at once, R = 2, and the last micro-batch is filled:

    epoch order    [ 7  2  9 | 4  3  1 | ...        steps of G cases, here of falling length
    round 0         process 0: [7]   process 1: [2]
    round 1         process 0: [9]   process 1: [9, scale 0]
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[int] | Sequence[float] | NDArray[Any]
"""One for each case."""


class Draw(NamedTuple):
    """One case of a micro-batch; `scale` is 1 / its whole step's label weight, 0 for a filler."""

    case: int
    scale: float


@dataclass(frozen=True)
class TokenBudget:
    """Most tokens of a micro-batch.

    Attributes:
        tokens: as many as are computed at once.
        rows: of each case, every one as long as the micro-batch's longest, padding included; None:
            a micro-batch is packed and holds its cases' tokens alone.
        epochs: that will run; `StepPlan.rounds` is the most that any of their steps needs.
    """

    tokens: int
    rows: Numbers | None
    epochs: int = 1


@dataclass(frozen=True)
class StepPlan:
    """Deals the cases of an epoch to processes.

    Attributes:
        lengths: tokens of each case's longest row; with a packed budget, of the whole case.
        weights: summed label weight of each case, positive.
        image_counts: images of each case. Cases of different counts never share a micro-batch, nor
            does a round (the micro-batches that all processes run at once) mix them: with and
            without images, different modules run, and processes that wait for each other's
            parameters would deadlock.
        global_batch_cases: cases of one optimiser step.
        micro_batch_cases: most cases of one micro-batch.
        processes: how many processes train.
        seed: of the order.
        budget: None: the number of cases alone limits a micro-batch.
    """

    lengths: Numbers
    weights: Numbers
    image_counts: Numbers
    global_batch_cases: int
    micro_batch_cases: int
    processes: int
    seed: int
    budget: TokenBudget | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of one epoch."""
        return math.ceil(len(self.lengths) / self.global_batch_cases)

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest case by itself, which every budget must hold."""
        rows = None if self.budget is None else self.budget.rows
        return int(np.max(np.multiply(self.lengths, 1 if rows is None else rows)))

    @cached_property
    def rounds(self) -> int:
        """Micro-batches of each process in every step, the gradient accumulation."""
        if self.budget is None:
            # However a step's cases fall on image counts, each count wastes less than one round.
            largest_step = min(self.global_batch_cases, len(self.lengths))
            cases_at_once = self.micro_batch_cases * self.processes
            return math.ceil(largest_step / cases_at_once) + len(np.unique(self.image_counts)) - 1
        return max(
            sum(self._fewest_rounds(self._by_image_count(cases)).values())
            for epoch in range(self.budget.epochs)
            for cases in self._steps(epoch)
        )

    def step_cases(self, epoch: int) -> list[list[int]]:
        """Returns the cases of each optimiser step of an epoch (counted from 0)."""
        return list(self._steps(epoch))

    def _steps(self, epoch: int) -> Iterator[list[int]]:
        order = array("q", range(len(self.lengths)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), self.global_batch_cases):
            yield order[start : start + self.global_batch_cases].tolist()

    def micro_batches(self, epoch: int, process: int) -> Iterator[list[Draw]]:
        """Yields what one process runs in an epoch: `steps` x `rounds` micro-batches in order.

        A step is dealt when it is due: the first one does not wait for an epoch of plans.
        """
        for dealt in self.deals(epoch):
            yield from dealt[process :: self.processes]

    def deals(self, epoch: int) -> Iterator[list[list[Draw]]]:
        """Yields the micro-batches of all processes in each step of an epoch, round by round."""
        for cases in self._steps(epoch):
            yield self._deal(cases)

    def _deal(self, cases: Sequence[int]) -> list[list[Draw]]:
        """Returns a step's `rounds` x `processes` micro-batches, round by round."""
        scale = 1 / math.fsum(self.weights[case] for case in cases)
        groups = self._by_image_count(cases)
        rounds = self._fewest_rounds(groups)
        # Rounds that this step does not need go to the group with the most cases a round.
        for _ in range(self.rounds - sum(rounds.values())):
            fullest = max(rounds, key=lambda count: len(groups[count]) / rounds[count])
            rounds[fullest] += 1
        dealt = []
        for image_count, round_count in rounds.items():
            group, slots = groups[image_count], round_count * self.processes
            micro_batches = self._cut(group, slots)
            dealt += [[Draw(case, scale) for case in batch] for batch in micro_batches]
            # The shortest case fills an empty slot, at the least cost.
            dealt += [[Draw(group[-1], 0.0)] for _ in range(slots - len(micro_batches))]
        return dealt

    def _by_image_count(self, cases: Sequence[int]) -> dict[int, list[int]]:
        """Returns a step's cases by their number of images, the longest first: less padding."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for case in sorted(cases, key=lambda case: (-self.lengths[case], case)):
            groups[int(self.image_counts[case])].append(case)
        return dict(sorted(groups.items()))

    def _fewest_rounds(self, groups: dict[int, list[int]]) -> dict[int, int]:
        """Returns by number of images in how few rounds the limits let a step's cases run."""
        if self.budget is None:
            batches = {n: math.ceil(len(g) / self.micro_batch_cases) for n, g in groups.items()}
        else:
            limit = self.budget.tokens
            batches = {n: len(self._fill(g, self.budget, limit)) for n, g in groups.items()}
        return {n: math.ceil(count / self.processes) for n, count in batches.items()}

    def _cut(self, cases: Sequence[int], slots: int) -> list[Sequence[int]]:
        """Cuts cases of falling length into at most `slots` micro-batches of like cost.

        Without a budget a micro-batch costs its cases. With one it costs its tokens: the limit is
        the lowest that so many micro-batches can keep, and spare slots split the costliest ones.
        """
        if self.budget is None:
            bounds = [len(cases) * slot // slots for slot in range(slots + 1)]
            return [cases[low:high] for low, high in itertools.pairwise(bounds) if low < high]
        budget = self.budget
        limit = bisect.bisect_left(
            range(budget.tokens), True, key=lambda n: len(self._fill(cases, budget, n)) <= slots
        )
        batches = self._fill(cases, budget, limit)
        while len(batches) < min(slots, len(cases)):
            costliest = max(
                (index for index, batch in enumerate(batches) if len(batch) > 1),
                key=lambda index: self._tokens(batches[index], budget),
            )
            batch, half = batches[costliest], len(batches[costliest]) // 2
            batches[costliest : costliest + 1] = batch[:half], batch[half:]
        return batches

    def _tokens(self, cases: Sequence[int], budget: TokenBudget) -> int:
        """Returns what a micro-batch of cases of falling length computes."""
        if budget.rows is None:
            return int(sum(self.lengths[case] for case in cases))
        return int(self.lengths[cases[0]] * sum(budget.rows[case] for case in cases))

    def _fill(self, cases: Sequence[int], budget: TokenBudget, limit: int) -> list[Sequence[int]]:
        """Returns the fewest micro-batches of cases of falling length, each filled up in turn.

        Args:
            cases: at least one.
            budget: says what is counted.
            limit: most tokens of one micro-batch; a case that alone has more is one by itself.
        """
        starts: list[int] = []
        size: Any = 0
        length: Any = 0
        for index, case in enumerate(cases):
            # A micro-batch computes length x size tokens: rows padded to its first case's length,
            # or packed tokens, each of length 1.
            case_size = self.lengths[case] if budget.rows is None else budget.rows[case]
            full = length * (size + case_size) > limit
            if not starts or full or index - starts[-1] == self.micro_batch_cases:
                starts.append(index)
                size, length = 0, 1 if budget.rows is None else self.lengths[case]
            size += case_size
        return [cases[low:high] for low, high in itertools.pairwise([*starts, len(cases)])]
