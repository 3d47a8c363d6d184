"""Runs the variants of one task in turns, and turns their times into rows of the report."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from medrm.models.deduplicate_images import stock_tower
from medrm.objectives.targets import Targets
from medrm.schema import Case, Label, PairLabel, RankingLabel
from medrm.throughput.batches import Batches
from medrm.throughput.flops import count_flops, synchronise
from medrm.throughput.memory import peak_bytes, tensor_bytes
from medrm.throughput.subject import DIMENSION, Subject

SEPARATE, SHARED = "separate", "shared_prefix"

_MOST_EPS = {torch.float32: 1000, torch.bfloat16: 16}
"""By how many roundings a reward may differ between variants, relative to the largest (or 1)."""

Row = dict[str, Any]
Inputs = dict[str, Any]


class VariantsDifferError(RuntimeError):
    """The variants give different rewards, so that their times mean nothing."""


@dataclass
class Variant:
    """One way to compute the same rewards.

    Attributes:
        name: as reported.
        step: runs once on a batch where the model is, and returns the rewards.
        batch: what it reads.
        rewards: of the first step.
        flops: of a step.
        tower_flops: those of them in the vision tower.
        peak: most bytes of tensors.
        seconds: of each round.
    """

    name: str
    step: Callable[[Inputs], Tensor]
    batch: BatchFeature
    rewards: Tensor | None = None
    flops: int = 0
    tower_flops: int = 0
    peak: int = 0
    seconds: list[float] = field(default_factory=list)


class Measurement:
    """One task at one number of answers.

    Args:
        subject: what runs.
        task: "train" or "score".
        cases: B.
        answers: K.
    """

    def __init__(self, subject: Subject, task: str, cases: int, answers: int) -> None:
        self.subject, self.task, self.cases, self.answers = subject, task, cases, answers
        self.batches: Batches = subject.batches(cases, answers)
        # The learning rate of 0 keeps the weights, so that every step computes the same.
        self._optimizer = torch.optim.AdamW(
            [p for p in subject.model.parameters() if p.requires_grad], lr=0.0
        )
        labelled = [_case(str(place), answers) for place in range(cases)]
        self._targets = Targets((DIMENSION,), (1.0,), "none", (False,))
        self._groups = [
            group.to(subject.device)
            for group in self._targets.groups(labelled, [1 / cases] * cases)
        ]
        self._make_optimizer_state()
        self.variants = self._variants()

    def _make_optimizer_state(self) -> None:
        """Lets the optimiser make its moments, so that all variants find them."""
        if self.task == "train":
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _variants(self) -> list[Variant]:
        batches = {SEPARATE: self.batches.separate, SHARED: self.batches.shared}
        variants = [Variant(name, self._step, batch) for name, batch in batches.items()]
        tower = self.subject.tower
        tower.__class__ = stock_tower(tower)  # separate rows have images of their own
        return variants

    def _autocast(self) -> torch.autocast:
        """Returns the precision in which recipes compute: that of the weights."""
        low = self.subject.dtype == torch.bfloat16
        return torch.autocast(self.subject.device.type, torch.bfloat16, enabled=low)

    def _step(self, inputs: Inputs) -> Tensor:
        """Runs one step and returns the rewards, [cases x answers, 1]."""
        subject = self.subject
        train = self.task == "train"
        subject.model.train(train)
        with contextlib.ExitStack() as contexts:
            contexts.enter_context(self._autocast())
            if not train:
                contexts.enter_context(torch.no_grad())
            output = subject.model(**inputs)
        rewards: Tensor = output.rewards
        if train:
            losses = [
                (group.weights * self._targets.losses(group, rewards, None)).sum()
                for group in self._groups
            ]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return rewards.detach()

    def prepare(self) -> Iterator[str]:
        """Warms up, compares the rewards, counts operations and memory; yields what it does next.

        Raises:
            VariantsDifferError: a variant's rewards are others than those of separate rows.
        """
        for variant in self.variants:
            yield variant.name
            self._prepare(variant)

    def _prepare(self, variant: Variant) -> None:
        device = self.subject.device
        before = self._resting_bytes() + tensor_bytes(dict(variant.batch))
        inputs = _moved(variant.batch, device)
        first = functools.partial(self._first, variant, inputs)
        variant.peak = peak_bytes(first, before, device)
        self._compare(variant)
        # In a step of its own: counting holds tensors that checkpointing would have freed.
        step = functools.partial(variant.step, inputs)
        variant.flops, variant.tower_flops = count_flops(step, self.subject.tower)

    def _first(self, variant: Variant, inputs: Inputs) -> None:
        variant.rewards = variant.step(inputs)

    def _resting_bytes(self) -> int:
        model = self.subject.model
        state = [list(own.values()) for own in self._optimizer.state.values()]
        return tensor_bytes([*model.parameters(), *model.buffers(), state])

    def _compare(self, variant: Variant) -> None:
        expected, found = self.variants[0].rewards, variant.rewards
        assert expected is not None
        assert found is not None
        worst = float((expected - found).abs().max())
        largest = max(1.0, float(expected.abs().max()))
        most = _MOST_EPS[self.subject.dtype] * torch.finfo(self.subject.dtype).eps * largest
        if not worst <= most:
            raise VariantsDifferError(
                f"{self.task} with {self.answers} answers: the rewards of {variant.name} differ "
                f"from those of separate rows by {worst:.2g}, where rounding explains {most:.2g}. "
                "Its times are not reported. Measure another model; the rows of this one cannot "
                "share their prefix."
            )

    def round(self) -> Iterator[str]:
        """Runs each variant once, one behind the other; yields its name before it does.

        Batches are moved to the device before the clock runs.
        """
        for variant in self.variants:
            yield variant.name
            inputs = _moved(variant.batch, self.subject.device)
            synchronise(self.subject.device)
            start = time.perf_counter()
            variant.step(inputs)
            synchronise(self.subject.device)
            variant.seconds.append(time.perf_counter() - start)

    def rows(self, rate: float) -> list[Row]:
        """Returns the report's rows.

        Args:
            rate: operations per second of the device.
        """
        return [self._row(variant, rate) for variant in self.variants]

    def _row(self, variant: Variant, rate: float) -> Row:
        separate = self.variants[0]
        seconds = statistics.median(variant.seconds)
        ratios = [own / other for own, other in zip(separate.seconds, variant.seconds, strict=True)]
        unique, shared = self.batches.unique_tokens, variant.name != SEPARATE
        return {
            "task": self.task,
            "variant": variant.name,
            "answers": self.answers,
            "cases": self.cases,
            "cases_per_s": self.cases / seconds,
            "unique_tokens_per_s": unique / seconds,
            "padded_share": self.batches.padded_share(shared),
            "peak_memory_bytes": variant.peak,
            "ratio_to_separate": {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            },
            "ideal_ratio": self._ideal(variant),
            "flops": variant.flops,
            "share_of_bound": variant.flops / rate / seconds,
        }

    def _ideal(self, variant: Variant) -> float:
        """Returns the ratio if a token cost the same wherever it stands, and the tower as counted.

        A token costs what it costs in separate rows.
        """
        separate = self.variants[0]
        decoder = separate.flops - separate.tower_flops
        share = 1.0
        if variant is not separate:
            share = self.batches.unique_tokens / self.batches.row_tokens
        return separate.flops / (decoder * share + variant.tower_flops)


def _moved(batch: BatchFeature, device: torch.device) -> Inputs:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _case(name: str, answers: int) -> Case:
    """Returns a case with a label to learn from."""
    label: Label = PairLabel((1.0, 0.0, 0.0))
    if answers > 2:
        label = RankingLabel((tuple((answer,) for answer in range(answers)),))
    return Case(name, (), "", ("",) * answers, {DIMENSION: label})
