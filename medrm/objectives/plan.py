"""Which cases form which optimiser step, micro-batch and process; without torch.

An optimiser step is exactly `global_batch_cases` cases (the last of an epoch may be smaller), drawn
from the data, the seed and the epoch alone. Only then is it cut into micro-batches and dealt, so no
number depends on the processes or on accumulation beyond floating-point order.
"""

from __future__ import annotations

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
class Plan:
    """Deals the cases of an epoch to processes.

    Attributes:
        lengths: tokens of each case's longest row.
        weights: summed label weight of each case, positive.
        kinds: cases of different kinds never share a micro-batch, nor does a round (the
            micro-batches that all processes run at once) mix them: with and without images,
            different modules run, and processes that wait for each other's parameters would wait
            for ever.
        global_batch_cases: cases of one optimiser step.
        micro_batch_cases: most cases of one micro-batch.
        processes: how many processes train.
        seed: of the order.
    """

    lengths: Numbers
    weights: Numbers
    kinds: Numbers
    global_batch_cases: int
    micro_batch_cases: int
    processes: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimiser steps of one epoch."""
        return math.ceil(len(self.lengths) / self.global_batch_cases)

    @cached_property
    def rounds(self) -> int:
        """Micro-batches of each process in every step, the gradient accumulation."""
        largest = min(self.global_batch_cases, len(self.lengths))
        at_once = self.micro_batch_cases * self.processes
        return math.ceil(largest / at_once) + len(np.unique(self.kinds)) - 1

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
        for cases in self._steps(epoch):
            yield from self._dealt(cases)[process :: self.processes]

    def _dealt(self, cases: Sequence[int]) -> list[list[Draw]]:
        """Returns a step's `rounds` x `processes` micro-batches, round by round.

        Cases of like length go together, the longest first. An empty place runs the shortest case
        of the step's kind with weight 0, so that every process takes part in every round.
        """
        scale = 1 / math.fsum(self.weights[case] for case in cases)
        members: dict[int, list[int]] = defaultdict(list)
        for case in sorted(cases, key=lambda case: (-self.lengths[case], case)):
            members[int(self.kinds[case])].append(case)
        dealt = []
        for kind, rounds in self._rounds_of_kinds(members).items():
            for part in _even_parts(members[kind], rounds * self.processes):
                filler = [Draw(members[kind][-1], 0.0)]
                dealt.append([Draw(case, scale) for case in part] or filler)
        return dealt

    def _rounds_of_kinds(self, members: dict[int, list[int]]) -> dict[int, int]:
        """Returns the rounds that each kind takes; they sum to `rounds` in every step."""
        at_once = self.micro_batch_cases * self.processes
        rounds = {kind: math.ceil(len(cases) / at_once) for kind, cases in sorted(members.items())}
        for _ in range(self.rounds - sum(rounds.values())):
            fullest = max(rounds, key=lambda kind: len(members[kind]) / rounds[kind])
            rounds[fullest] += 1
        return rounds


def _even_parts(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Cuts items into consecutive parts whose sizes differ by at most one."""
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [items[low:high] for low, high in itertools.pairwise(bounds)]
