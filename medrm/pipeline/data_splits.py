"""Checked cases of one run, and what the terminal and `run.json` say of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from medrm.data.case_set import CaseSet
from medrm.data.contamination import LeakReport
from medrm.data.images import ImageFacts
from medrm.data.medical.converted_set import conversion_lines, conversion_setting
from medrm.data.mixture import set_counts
from medrm.data.sources import Excluded
from medrm.data.store.indexed_cases import column
from medrm.evaluation.benchmark import Benchmark
from medrm.schema import Case


@dataclass(frozen=True)
class DataSplits:
    """Checked cases of one run. `facts` holds what decoding each distinct image showed."""

    train: Sequence[Case]
    development: Sequence[Case]
    benchmark: Benchmark
    dimensions: tuple[str, ...]
    primary: str
    excluded: tuple[Excluded, ...]
    facts: Mapping[str, ImageFacts]
    leaks: LeakReport
    source: CaseSet

    def describe(self) -> str:
        """Returns what the terminal says of the data."""
        benchmark = self.benchmark
        lines = [
            f"{self.source.name}: {len(self.train)} training and {len(self.development)} "
            f"development cases; benchmark {benchmark.name}: {len(benchmark.cases)} cases in "
            f"{benchmark.clusters} clusters; {len(self.excluded)} training cases set aside"
        ]
        lines += mixture_lines(self.source, self.parts)
        sets = {self.source.digest: self.source, benchmark.source.digest: benchmark.source}
        lines += dict.fromkeys(line for source in sets.values() for line in agreement_lines(source))
        converted = (conversion_lines(source.converted) for source in sets.values())
        lines += dict.fromkeys(chain.from_iterable(converted))
        lines += ceiling_lines(benchmark)
        if self.leaks.repeated_questions or self.leaks.repeated_answers:
            lines.append(
                f"benchmark cases whose question / an answer also stands in the training data: "
                f"{self.leaks.repeated_questions} / {self.leaks.repeated_answers}"
            )
        return "\n".join(lines)

    @property
    def parts(self) -> dict[str, Sequence[Case]]:
        """The parts into which a mixture is split; the benchmark only where it is one."""
        parts = {"training": self.train, "development": self.development}
        if self.benchmark.source.mixed:
            parts["benchmark"] = self.benchmark.cases
        return parts

    def summary(self) -> dict[str, Any]:
        """Returns the data section of run.json."""
        return {
            **mixture_record(self.source, self.parts),
            "train": {
                "name": self.source.name,
                **({"hub_id": self.source.hub_id} if self.source.hub_id else {}),
                "revision": self.source.revision,
                "digest": self.source.digest,
                **conversion_setting(self.source.converted),
                "cases": len(self.train),
                "fast_votes": sum(self.source.fast_votes.by_annotator.values()),
                "sequence": _sequence(self.train),
                "agreement": {
                    name: dataclasses.asdict(agreement)
                    for name, agreement in self.source.agreement.items()
                },
            },
            "development": {
                "cases": len(self.development),
                "sequence": _sequence(self.development),
            },
            "benchmark": {
                "name": self.benchmark.name,
                "revision": self.benchmark.source.revision,
                "digest": self.benchmark.source.digest,
                **conversion_setting(self.benchmark.source.converted),
                "cases": len(self.benchmark.cases),
                "ceiling": dict(self.benchmark.source.ceiling),
            },
            "dimensions": list(self.dimensions),
            "primary_dimension": self.primary,
            "leaks": dataclasses.asdict(self.leaks),
            "excluded": list(map(dataclasses.asdict, self.excluded)),
        }


def _sequence(cases: Sequence[Case]) -> str:
    """Returns the SHA-256 over the digests of cases in their order, which decides every step."""
    return hashlib.sha256(column(cases, "digest").tobytes()).hexdigest()


def mixture_rows(
    source: CaseSet, parts: Mapping[str, Sequence[Case]]
) -> list[dict[str, str | int]]:
    """Returns what became of the cases of each set of a mixture; nothing of a single set.

    Args:
        source: the mixture.
        parts: name to the cases of a part of it.
    """
    counts = {
        name: set_counts(cases, source.mixed) for name, cases in parts.items() if source.mixed
    }
    return [
        {
            "set": part.name,
            "share": "all" if part.share is None else f"{part.share:g}",
            "cases": len(part.case_set.cases),
            "repeated": part.repeated,
            "above a cap": part.capped,
            "drawn": part.drawn,
            **{name: of_sets[number] for name, of_sets in counts.items()},
        }
        for number, part in enumerate(source.mixed)
    ]


def mixture_record(source: CaseSet, parts: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """Returns what run.json says of a mixture's sets; see `mixture_rows`."""
    rows = mixture_rows(source, parts)
    record = {
        part.name: {
            **({"hub_id": part.case_set.hub_id} if part.case_set.hub_id else {}),
            "revision": part.case_set.revision,
            "digest": part.case_set.digest,
            "dimensions": list(part.case_set.dimensions),
            **{key: value for key, value in row.items() if key != "set"},
        }
        for part, row in zip(source.mixed, rows, strict=True)
    }
    return {"mixture": record} if record else {}


def mixture_lines(source: CaseSet, parts: Mapping[str, Sequence[Case]]) -> Iterator[str]:
    """Yields what the terminal says of a mixture's sets; see `mixture_rows`."""
    for row in mixture_rows(source, parts):
        said = ", ".join(f"{name} {value}" for name, value in row.items() if name != "set")
        yield f"of {row['set']}: {said}"


def agreement_lines(source: CaseSet) -> list[str]:
    """Returns how far the annotators of a set agree, a line for each dimension."""
    if source.mixed:
        return [line for part in source.mixed for line in agreement_lines(part.case_set)]
    lines = []
    for name, agreement in source.agreement.items():
        alpha = "none (all votes alike)" if agreement.alpha is None else f"{agreement.alpha:.3f}"
        lines.append(
            f"{source.name}, agreement on {name}: Krippendorff's alpha {alpha}, raw "
            f"{agreement.raw:.3f} ({agreement.annotators} annotators)"
        )
    return lines


def ceiling_lines(benchmark: Benchmark) -> list[str]:
    """Returns the accuracy within reach, where that is known, as one line."""
    ceiling = benchmark.source.ceiling
    if not ceiling:
        return []
    reachable = ", ".join(f"{name} {value:.3f}" for name, value in ceiling.items())
    return [f"ceiling (reachable accuracy): {reachable}"]
