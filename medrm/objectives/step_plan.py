"""Which cases form which optimiser step, micro-batch and process; without torch.

An optimiser step is exactly `global_batch_cases` cases (the last of an epoch may be smaller), drawn
from the data, the seed and the epoch alone. Only then is it cut into micro-batches and dealt, so no
number depends on the processes or on accumulation beyond floating-point order.
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
class Budget:
    """Most tokens of a micro-batch.

    Attributes:
        tokens: as many as are computed at once.
        rows: of each case, every one as long as the micro-batch's longest, padding included; None:
            a micro-batch is packed and holds its cases' tokens alone.
        epochs: that will run; `Plan.rounds` is the most that any of their steps needs.
    """

    tokens: int
    rows: Numbers | None
    epochs: int = 1


@dataclass(frozen=True)
class Plan:
    """Deals the cases of an epoch to processes.

    Attributes:
        lengths: tokens of each case's longest row; with a packed budget, of the whole case.
        weights: summed label weight of each case, positive.
        kinds: cases of different kinds never share a micro-batch, nor does a round (the
            micro-batches that all processes run at once) mix them: with and without images,
            different modules run, and processes that wait for each other's parameters would wait
            for ever.
        global_batch_cases: cases of one optimiser step.
        micro_batch_cases: most cases of one micro-batch.
        processes: how many processes train.
        seed: of the order.
        budget: None: the number of cases alone limits a micro-batch.
    """

    lengths: Numbers
    weights: Numbers
    kinds: Numbers
    global_batch_cases: int
    micro_batch_cases: int
    processes: int
    seed: int
    budget: Budget | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of one epoch."""
        return math.ceil(len(self.lengths) / self.global_batch_cases)

    @cached_property
    def rounds(self) -> int:
        """Micro-batches of each process in every step, the gradient accumulation."""
        if self.budget is not None:
            return max(self._most_rounds(self.budget, epoch) for epoch in range(self.budget.epochs))
        largest = min(self.global_batch_cases, len(self.lengths))
        at_once = self.micro_batch_cases * self.processes
        return math.ceil(largest / at_once) + len(np.unique(self.kinds)) - 1

    def step_cases(self, epoch: int) -> list[list[int]]:
        """Returns the cases of each optimiser step of an epoch (counted from 0)."""
        return list(self._steps(epoch))

    def _steps(self, epoch: int) -> Iterator[list[int]]:
        order = self._order(epoch)
        for start in range(0, len(order), self.global_batch_cases):
            yield order[start : start + self.global_batch_cases].tolist()

    def _order(self, epoch: int) -> array[int]:
        order = array("q", range(len(self.lengths)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order

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
        members: defaultdict[int, list[int]] = defaultdict(list)
        for case in sorted(cases, key=lambda case: (-self.lengths[case], case)):
            members[int(self.kinds[case])].append(case)
        dealt = []
        for kind, rounds in self._rounds_of_kinds(members).items():
            parts = self._parts(members[kind], rounds * self.processes)
            dealt += [[Draw(case, scale) for case in part] for part in parts]
            fillers = rounds * self.processes - len(parts)
            dealt += [[Draw(members[kind][-1], 0.0)] for _ in range(fillers)]
        return dealt

    def _rounds_of_kinds(self, members: dict[int, list[int]]) -> dict[int, int]:
        """Returns the rounds that each kind takes; they sum to `rounds` in every step."""
        fewest = {kind: self._fewest_parts(cases) for kind, cases in sorted(members.items())}
        rounds = {kind: math.ceil(parts / self.processes) for kind, parts in fewest.items()}
        for _ in range(self.rounds - sum(rounds.values())):
            fullest = max(rounds, key=lambda kind: len(members[kind]) / rounds[kind])
            rounds[fullest] += 1
        return rounds

    def _fewest_parts(self, cases: Sequence[int]) -> int:
        """Returns the fewest micro-batches that hold cases in the order given."""
        if self.budget is None:
            return math.ceil(len(cases) / self.micro_batch_cases)
        return len(self._cuts(cases, self.budget, self.budget.tokens)) - 1

    def _parts(self, cases: Sequence[int], most: int) -> list[Sequence[int]]:
        """Cuts cases of falling length into at most so many parts, even in what they cost.

        Without a budget a part costs its cases. With one it costs its tokens: the limit is the
        lowest that so many parts can keep, and parts left over halve the dearest ones.
        """
        if self.budget is None:
            bounds = [len(cases) * part // most for part in range(most + 1)]
            return [cases[low:high] for low, high in itertools.pairwise(bounds) if low < high]
        budget = self.budget
        limit = bisect.bisect_left(
            range(budget.tokens),
            True,
            key=lambda tokens: len(self._cuts(cases, budget, tokens)) - 1 <= most,
        )
        parts = [
            cases[low:high] for low, high in itertools.pairwise(self._cuts(cases, budget, limit))
        ]
        while len(parts) < min(most, len(cases)):
            place = max(
                (place for place, part in enumerate(parts) if len(part) > 1),
                key=lambda place: self._tokens(parts[place], budget),
            )
            part = parts[place]
            parts[place : place + 1] = part[: len(part) // 2], part[len(part) // 2 :]
        return parts

    def _tokens(self, cases: Sequence[int], budget: Budget) -> int:
        """Returns what a micro-batch of cases of falling length computes."""
        if budget.rows is None:
            return int(sum(self.lengths[case] for case in cases))
        return int(self.lengths[cases[0]] * sum(budget.rows[case] for case in cases))

    def _cuts(self, cases: Sequence[int], budget: Budget, tokens: int) -> list[int]:
        """Returns the bounds of the fewest parts of at most so many tokens, from 0 on."""
        chosen = np.asarray(cases)
        ends = self._ends(chosen, np.full(len(chosen), len(chosen)), budget, tokens).tolist()
        cuts = [0]
        while cuts[-1] < len(ends):
            cuts.append(ends[cuts[-1]])
        return cuts

    def _ends(
        self, cases: NDArray[np.int64], stops: NDArray[np.int64], budget: Budget, tokens: int
    ) -> NDArray[np.int64]:
        """Returns where a micro-batch that starts at each place ends at the latest.

        Args:
            cases: of falling length up to each stop.
            stops: of each place, behind which other cases follow.
            budget: says what is counted.
            tokens: most of one micro-batch; a case that alone has more is one by itself.
        """
        lengths = np.asarray(self.lengths)[cases]
        each = lengths if budget.rows is None else np.asarray(budget.rows)[cases]
        counted = np.concatenate([[0], np.cumsum(each, dtype=np.int64)])
        room = tokens if budget.rows is None else tokens // np.maximum(lengths, 1)
        ends = np.searchsorted(counted, counted[:-1] + room, side="right") - 1
        places = np.arange(len(cases))
        ends = np.minimum(np.minimum(ends, places + self.micro_batch_cases), stops)
        later: NDArray[np.int64] = np.maximum(ends, places + 1)
        return later

    def _most_rounds(self, budget: Budget, epoch: int) -> int:
        """Returns the most rounds that a step of an epoch needs, over all its steps at once."""
        order = np.frombuffer(self._order(epoch), dtype=np.int64)
        step = np.arange(len(order)) // self.global_batch_cases
        kinds, lengths = np.asarray(self.kinds)[order], np.asarray(self.lengths)[order]
        sorting = np.lexsort((order, -lengths, kinds, step))
        cases, kinds = order[sorting], kinds[sorting]
        first = np.append(True, (np.diff(step) != 0) | (np.diff(kinds) != 0))
        group = np.cumsum(first) - 1
        starts = np.flatnonzero(first)
        stops = np.append(starts[1:], len(cases))[group]
        ends = self._ends(cases, stops, budget, budget.tokens).tolist()
        begins, place = [], 0
        while place < len(ends):
            begins.append(place)
            place = ends[place]
        parts = np.bincount(group[begins], minlength=len(starts))
        rounds = -(-parts // self.processes)
        return int(np.bincount(step[starts], weights=rounds).max())
