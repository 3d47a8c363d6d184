"""Whether a model that is evaluated was trained on images of the benchmark, and how that is told.

Every evaluation says it in `report.json`: `leak_check` is `passed`, `not_possible` or
`not_applicable`; a model that has seen an image is refused. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medrm.data.images import ImageFacts
from medrm.data.store.indexed_cases import distinct_images
from medrm.errors import DataError, refuse
from medrm.evaluation.benchmark import Benchmark
from medrm.models.training_images import KnownImages, digests_of


@dataclass(frozen=True)
class LeakCheck:
    """What became of the leak check of one evaluation.

    Attributes:
        outcome: `not_applicable` of a model that medrm has not trained.
        benchmark_images: distinct images that were compared.
        training_images: with how many.
        reason: why it was not possible, or is not applicable.
    """

    outcome: Literal["passed", "not_possible", "not_applicable"]
    benchmark_images: int = 0
    training_images: int = 0
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """What a reader is told."""
        return leak_line(leak_measures(asdict(self)))


NOT_RECORDED = "not_recorded"

UNTRAINED = LeakCheck("not_applicable", reason="medrm has not trained the model")

CHOSEN_BY = LeakCheck("not_applicable", reason="the training chose its checkpoint by these cases")


def check_images(
    known: KnownImages, benchmark: Benchmark, facts: Mapping[str, ImageFacts]
) -> LeakCheck:
    """Compares the images of a benchmark with those that a model was trained on.

    Args:
        known: of the model.
        benchmark: what it is measured on.
        facts: of the benchmark's images.

    Raises:
        DataError: it was trained on some; names the cases.
    """
    if known.digests is None:
        return LeakCheck("not_possible", reason=known.gap)
    digests = digests_of(fact.pixel_digest for fact in map(facts.__getitem__, _images(benchmark)))
    seen = set(digests[np.isin(digests, known.digests)].tolist())
    shared = [
        f"case {case.case_id}: image {image.name}"
        for case in benchmark.cases
        if seen
        for image in case.images
        if image.digest and not seen.isdisjoint(_digest(facts[image.digest]))
    ]
    title = (
        f"The model was trained on images of benchmark {benchmark.name!r}; a score on it would say "
        "nothing. Evaluate on cases it has not seen:"
    )
    refuse(shared, title, DataError)
    counts = (len(digests), len(known.digests))
    gap = known.gap if len(digests) else "the benchmark has no image to compare"
    return LeakCheck("passed" if gap is None else "not_possible", *counts, gap)


def _digest(fact: ImageFacts) -> list[bytes]:
    """Returns an image's digest as it stands among others: without zeros at its end."""
    digests: list[bytes] = digests_of([fact.pixel_digest]).tolist()
    return digests


def _images(benchmark: Benchmark) -> list[str]:
    """Returns the digests of a benchmark's images as they are stored, each once."""
    digests, _ = distinct_images(benchmark.cases)
    return [digest.decode() for digest in digests.tolist()]


def pooled(checks: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Returns the check of folds together: the worst of theirs, and all images that were compared.

    `training_images` are those of the fold that has most.
    """
    made = [check for check in checks if check is not None]
    if not made or len(made) < len(checks):
        return None
    worst = next((check for check in made if check["outcome"] != "passed"), made[0])
    numbers = {
        "benchmark_images": sum(check["benchmark_images"] for check in made),
        "training_images": max(check["training_images"] for check in made),
    }
    return {**worst, **numbers}


def leak_measures(check: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what `report.json` says of a check; None: earlier versions recorded none."""
    details = dict(check or {"outcome": NOT_RECORDED})
    return {"leak_check": details.pop("outcome"), "leak_check_details": details or None}


def leak_line(report: Mapping[str, Any]) -> str:
    """Returns what a reader is told of the leak check; earlier versions recorded none."""
    outcome, details = report.get("leak_check", NOT_RECORDED), report.get("leak_check_details")
    if details is None:
        said = "this evaluation does not say whether training images were looked for"
    elif outcome == "passed":
        said = (
            f"none of the {details['benchmark_images']:,} distinct images of the benchmark is "
            f"among the {details['training_images']:,} that the model was trained on"
        )
    elif outcome == "not_possible":
        said = f"whether it was trained on images of the benchmark is unknown: {details['reason']}"
    else:
        said = details["reason"]
    return f"leak_check: {outcome} ({said})."
