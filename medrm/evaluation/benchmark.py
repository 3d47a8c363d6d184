"""A benchmark: labelled cases with a name, published numbers; what a model is asked on it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from medrm.data.case_set import CaseSet, digest_of, dimensions_of
from medrm.data.medical.converted_set import conversion_setting
from medrm.data.store.indexed_cases import cluster_column
from medrm.evaluation.measures.accuracy import right_answers
from medrm.schema import Case
from medrm.scorer.verdict_rules import label_of
from medrm.statistics.intervals import mean

RULES = {
    "always_a": "always the first answer",
    "always_b": "always the second answer",
    "majority": "the more frequent label",
    "longer": "the longer answer",
    "first_slot": "whichever is shown first",
    "random": "a coin",
}
"""What can be right without a model, in words."""

GROUPS = ("organ", "department", "modality")

_SCHEMA = 1
"""Counted up when the meaning of a kept line changes."""


@dataclass(frozen=True, slots=True)
class Published:
    """A number somebody else reported on the benchmark, with its source."""

    model: str
    accuracy: str
    source: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Labelled cases to be judged; none of them ever leaves the denominator.

    `source` holds the cases, their digest, and the reachable accuracy by dimension where that is
    known. `groups` names the properties of a case by which results are broken down. `metrics` are
    those of its authors, by their names in `measures.benchmark_metrics.METRICS`. `layout` is the
    benchmark whose form it has where it is not that benchmark.
    """

    name: str
    source: CaseSet
    groups: tuple[str, ...] = GROUPS
    published: tuple[Published, ...] = ()
    metrics: tuple[str, ...] = ()
    layout: str | None = None

    @property
    def cases(self) -> Sequence[Case]:
        """What is judged."""
        return self.source.cases

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that some label mentions."""
        return self.source.dimensions

    @property
    def clusters(self) -> int:
        """How many independent groups of cases there are."""
        return len(np.unique(cluster_column(self.cases)))

    def asked_with(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns settings of an evaluation, and how medical images became pictures."""
        return {**(settings or {}), **conversion_setting(self.source.converted)}

    def identity(self) -> dict[str, Any]:
        """Returns what reports say of the benchmark: its name, its data, how many cases it has."""
        return {
            "name": self.name,
            "revision": self.source.revision,
            "digest": self.source.digest,
            "cases": len(self.cases),
            "clusters": self.clusters,
            "synthetic": self.source.synthetic,
            **({"layout": self.layout} if self.layout else {}),
        }


@dataclass(frozen=True)
class Setup:
    """One evaluation before its result.

    Attributes:
        model: the name under which it is reported.
        weights: which weights they are; None: nothing says so.
        readout: how a verdict is read from it.
        dimensions: what it scores or is asked about.
        settings: what besides the weights could change a number.
        protocol: one of `PROTOCOLS`.
        window: how many cases are computed together; None: each by itself. Files of version 0.1
            have the scorer's lookahead by this name.
        processes: among which the cases are dealt; they change no response.
        crossfit: of a cross-fitted run, what `fold_measures` is to know; None: of one model.
        noise: dimension to how far a margin moves by rounding (`measures.rounding`); None: not
            measured.
        leak_check: what became of it (`leak_check.LeakCheck`); None: not recorded.
    """

    model: str
    weights: str | None
    readout: str
    dimensions: tuple[str, ...]
    settings: Mapping[str, Any]
    protocol: str
    window: int | None = None
    processes: int = 1
    crossfit: Mapping[str, Any] | None = None
    noise: Mapping[str, float] | None = None
    leak_check: Mapping[str, Any] | None = None

    def address(self, cases: Sequence[Case]) -> str | None:
        """Returns the SHA-256 of all that decides what the model says; None for unknown weights.

        Protocol and parser do not: what was said is read again.
        """
        if self.weights is None:
            return None
        decisive = {
            **{name: value for name, value in asdict(self).items() if name not in _FREE},
            "settings": {k: value for k, value in self.settings.items() if k != "parser"},
            "schema": _SCHEMA,
            "processes": 1,  # of which files of earlier versions have the number
            "cases": [digest_of([case]) for case in cases],
        }
        canonical = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


_FREE = ("model", "protocol", "noise", "processes", "leak_check")
"""What may change between two starts of one evaluation, or is known at its end."""


def baselines(
    cases: Sequence[Case], dimensions: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns the accuracies that need no model: rule -> dimension -> accuracy.

    `always_a`, `always_b`: a stored answer; `majority`: the label that is the more frequent one on
    the dimension; `longer`: the answer with most characters, the first one of equals;
    `first_slot`: whichever is shown first, over both orders of pairs (None where a case has more
    than two answers); `random`: what a coin expects, 1/K with K answers of which one is right.
    """
    scores = {name: rule_scores(cases, name) for name in dimensions}
    return {
        rule: {name: mean(scores[name].get(rule, {}).values()) for name in dimensions}
        for rule in RULES
    }


def rule_scores(cases: Sequence[Case], dimension: str) -> dict[str, dict[str, float]]:
    """Returns how right each rule of `baselines` is on each case, by its id.

    Only cases with a label for an answer are in it; a rule that does not apply is left out.
    """
    labelled = {
        case.case_id: ([len(answer) for answer in case.answers], best)
        for case in cases
        if (best := right_answers(label_of(case.labels.get(dimension), len(case.answers))[0]))
    }
    counts = Counter(chain.from_iterable(best for _, best in labelled.values()))
    frequent = max(counts, key=counts.__getitem__, default=0)
    rules: dict[str, Callable[[list[int], tuple[int, ...]], float]] = {
        "always_a": lambda _, best: 0 in best,
        "always_b": lambda _, best: 1 in best,
        "majority": lambda _, best: frequent in best,
        "longer": lambda lengths, best: lengths.index(max(lengths)) in best,
        "first_slot": lambda *_: 0.5,
        "random": lambda lengths, best: len(best) / len(lengths),
    }
    if any(len(lengths) != 2 for lengths, _ in labelled.values()):
        del rules["first_slot"]
    return {
        rule: {case_id: float(right(*case)) for case_id, case in labelled.items()}
        for rule, right in rules.items()
    }


def best_rule(
    table: Mapping[str, Mapping[str, float | None]], dimension: str
) -> tuple[str, float] | None:
    """Returns the rule of `baselines` that is right most often, with its accuracy.

    Of equal ones it is the one that `RULES` names first; None where no case is labelled.
    """
    reached = [(name, rate) for name in RULES if (rate := table[name][dimension]) is not None]
    return max(reached, key=itemgetter(1), default=None)


def benchmark_from_cases(name: str, source: CaseSet, cases: Sequence[Case]) -> Benchmark:
    """Returns some cases of a set as a benchmark, such as the test part of the training data.

    The ceiling stays that of the whole set: what the same experts leave within reach.
    """
    digest, dimensions = digest_of(cases), dimensions_of(cases)
    chosen = replace(source, cases=cases, digest=digest, dimensions=dimensions, excluded=())
    return Benchmark(name, chosen)
