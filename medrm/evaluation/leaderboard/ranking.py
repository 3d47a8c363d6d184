"""Which models of a leaderboard can be told apart: rank ranges and the distance to the best one.

Models are compared case by case, so only those that judged the same cases are; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medrm.evaluation.measures.accuracy import case_scores
from medrm.evaluation.records.verdicts import read_verdicts
from medrm.schema import Verdict
from medrm.statistics.intervals import Floats, mean_interval
from medrm.statistics.significance import rank_ranges, sign_flip_test


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model got right, from its evaluation folder under the robust protocol.

    Attributes:
        scores: dimension to case to mean score over the presented orders, labelled cases only.
        clusters: case to cluster.
    """

    scores: Mapping[str, Mapping[str, float]]
    clusters: Mapping[str, str]


def read_judged(folder: Path) -> Judged:
    """Returns the scores of an evaluation folder.

    Raises:
        DataError: its verdicts are missing or unreadable.
    """
    of_dimension: dict[str, list[Verdict]] = {}
    clusters = {}
    for row in read_verdicts(folder / "verdicts.jsonl"):
        if row.protocol == "robust":
            of_dimension.setdefault(row.dimension, []).append(row)
            clusters[row.case_id] = row.cluster
    return Judged({name: case_scores(rows) for name, rows in of_dimension.items()}, clusters)


def rankings(models: Mapping[str, Judged], dimension: str) -> dict[str, dict[str, Any]]:
    """Returns, for each model that judged all labelled cases, where it stands on a dimension.

    Args:
        models: name to what it judged.
        dimension: on which they are ranked.

    Returns:
        Name to `rank_range` [best, worst] (see `statistics.rank_ranges`) and `to_best`: `delta`
        (this accuracy less that of the best model), `ci95` of it (None below two clusters) and `p`
        of the sign-flip test, adjusted by max-T for all models that are compared with the best one;
        None for the best model itself.
    """
    judged = {name: model.scores.get(dimension, {}) for name, model in models.items()}
    cases = sorted({case for scores in judged.values() for case in scores})
    names = sorted(name for name, scores in judged.items() if scores and len(scores) == len(cases))
    if not names:
        return {}
    clusters = [models[names[0]].clusters[case] for case in cases]
    scores = np.array([[judged[name][case] for case in cases] for name in names])  # (models, n)
    best = int(scores.mean(axis=1).argmax())
    distances = _distances(scores, best, clusters)
    return {
        name: {
            "rank_range": list(bounds),
            "to_best": None if number == best else distances[number],
        }
        for number, (name, bounds) in enumerate(
            zip(names, rank_ranges(scores, clusters), strict=True)
        )
    }


def _distances(scores: Floats, best: int, clusters: list[str]) -> list[dict[str, Any]]:
    """Returns how far each model lies from the best one."""
    differences = (scores - scores[best]).T  # (n, models)
    p = sign_flip_test(differences, clusters).adjusted
    rows = []
    for column, adjusted in zip(differences.T, p, strict=True):
        interval = mean_interval(column.tolist(), clusters, span=(-1.0, 1.0))
        rows.append({"delta": interval.mean, "ci95": interval.bounds, "p": adjusted})
    return rows
