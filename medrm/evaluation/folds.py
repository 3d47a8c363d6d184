"""Pools the evaluations of a cross-fitted run: each case judged once, by the model of its fold.

Verdicts and probabilities of k models are pooled, their scores never: each model has a scale of its
own. Imports no torch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from medrm.data.case_set import digest_of
from medrm.errors import DataError, refuse
from medrm.evaluation.benchmark import Benchmark, Setup
from medrm.evaluation.comparison.sentences import conditional_on
from medrm.evaluation.folder import conclude, read_setup, write_setup
from medrm.evaluation.leak_check import pooled
from medrm.evaluation.measures.accuracy import temperature_of
from medrm.evaluation.measures.rounding import largest_noise
from medrm.evaluation.records import jsonl
from medrm.evaluation.records.jsonl import RESPONSES_FILE, VERDICTS_FILE
from medrm.evaluation.records.stored_cases import CASES_FILE, IMAGES_FOLDER, read_stored_cases
from medrm.evaluation.report import Report
from medrm.schema import Response, Verdict

ALIKE = ("readout", "dimensions", "settings", "protocol")
"""What must be the same in all folds."""


@dataclass(frozen=True)
class Fold:
    """The evaluation of one fold's cases.

    `development` is the folder in which the fold's model judged the development cases of its own
    training; where there is none, its probabilities, if any, are not calibrated.
    """

    folder: Path
    development: Path | None = None

    @cached_property
    def setup(self) -> Setup:
        """What was asked of which model."""
        return read_setup(self.folder)[0]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Its verdicts."""
        return jsonl.read_verdicts(self.folder / VERDICTS_FILE)

    def temperature(self, primary: str) -> float | None:
        """The temperature of its model's probabilities."""
        if self.development is None or not self.development.is_dir():
            return None
        return temperature_of(jsonl.read_verdicts(self.development / VERDICTS_FILE), primary)


def notes_of_folds(folds: int, seed: int) -> list[str]:
    """Returns what a reader of a cross-fitted run's headline must know."""
    return [
        conditional_on(folds),
        f"One seed ({seed}). Before a claim about the recipe, run it with three seeds.",
    ]


def pool(folds: Sequence[Fold], benchmark: Benchmark, primary: str, output_dir: Path) -> Report:
    """Writes the evaluation folder of all folds together and returns its report.

    Args:
        folds: in their order.
        benchmark: all cases; each lies in one fold.
        primary: the dimension on which folds are shown apart.
        output_dir: the folder to write.

    Raises:
        DataError: a fold is incomplete, the folds were not read alike, or a case was judged more
            than once or never.
    """
    _check(folds, benchmark)
    crossfit = {
        "primary": primary,
        "assignment": {
            verdict.case_id: number
            for number, fold in enumerate(folds, start=1)
            for verdict in fold.verdicts
        },
        "temperatures": [fold.temperature(primary) for fold in folds],
    }
    noises = [fold.setup.noise for fold in folds]
    measured = [noise for noise in noises if noise is not None]
    noise = largest_noise(measured) if len(measured) == len(noises) else None
    shared: dict[str, Any] = {"weights": _weights(folds), "crossfit": crossfit, "noise": noise}
    checks = pooled([fold.setup.leak_check for fold in folds])
    setup = replace(folds[0].setup, **shared, leak_check=checks)
    output_dir.mkdir(parents=True, exist_ok=True)
    benchmark = _pool_cases(folds, benchmark, output_dir)
    write_setup(output_dir, setup, benchmark)
    responses: dict[str, list[Response]] = {case.case_id: [] for case in benchmark.cases}
    for fold in folds:
        for response in jsonl.read_responses(fold.folder / RESPONSES_FILE):
            responses[response.case_id].append(response)
    jsonl.write_rows(output_dir / RESPONSES_FILE, chain.from_iterable(responses.values()))
    verdicts = [verdict for fold in folds for verdict in fold.verdicts]
    return conclude(setup, benchmark, responses, verdicts, output_dir)


def _weights(folds: Sequence[Fold]) -> str | None:
    """The identity of the folds' weights: their common one, or the digest of all."""
    identities = [fold.setup.weights for fold in folds]
    named = [weights for weights in identities if weights is not None]
    if len(named) < len(identities):
        return None
    if len(set(named)) == 1:
        return named[0]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def _pool_cases(folds: Sequence[Fold], benchmark: Benchmark, output_dir: Path) -> Benchmark:
    """Writes the folds' cases and small images together, and returns them as a benchmark.

    They are the benchmark's own but for a control that changes their images.
    """
    records = {
        record["case_id"]: record
        for fold in folds
        for record in jsonl.read_lines(fold.folder / CASES_FILE, dict, "case")
    }
    jsonl.write_lines(output_dir / CASES_FILE, (records[case.case_id] for case in benchmark.cases))
    for fold in folds:
        if (fold.folder / IMAGES_FOLDER).is_dir():
            images = output_dir / IMAGES_FOLDER
            shutil.copytree(fold.folder / IMAGES_FOLDER, images, dirs_exist_ok=True)
    cases = tuple(read_stored_cases(output_dir))
    return replace(
        benchmark, source=replace(benchmark.source, cases=cases, digest=digest_of(cases))
    )


def _check(folds: Sequence[Fold], benchmark: Benchmark) -> None:
    """Refuses folds that were not read alike, or that do not judge every case once."""
    first, *later_folds = ({name: vars(fold.setup)[name] for name in ALIKE} for fold in folds)
    unlike = [
        f"{name}: {first[name]} in fold 1, {other[name]} in fold {number}"
        for number, other in enumerate(later_folds, start=2)
        for name in ALIKE
        if other[name] != first[name]
    ]
    judged = Counter(case_id for fold in folds for case_id in {v.case_id for v in fold.verdicts})
    wanted = {case.case_id for case in benchmark.cases}
    not_once = [f"{name}: judged in {count} folds" for name, count in judged.items() if count > 1]
    not_once += [f"{name}: judged in no fold" for name in sorted(wanted - judged.keys())]
    not_once += [f"{name}: no case of the benchmark" for name in sorted(judged.keys() - wanted)]
    for title, problems in (
        ("The folds were not read alike, so their verdicts cannot be pooled.", unlike),
        ("The folds do not judge every case of the benchmark once.", not_once),
    ):
        refuse(problems, f"{title} Run again with --overwrite_output_dir true.", DataError)
