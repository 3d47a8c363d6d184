"""How right a reader is by the label of the other readers, and a model by the same labels.

A model is judged by the majority of all readers. A reader's own vote is in that majority, so a
reader is judged by the majority of the others, leaving out one after another, and beside every
reader the model is judged by the same label of the same case. Both means are over the same pairs
of a case and a reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import sub
from statistics import fmean
from typing import Any, NamedTuple

from medrm.evaluation.records.jsonl import verdicts_by_case
from medrm.schema import LETTERS, Case, Label, Outcome, Ranking, RankingLabel, Verdict
from medrm.statistics.intervals import mean_interval

SPAN = (0.0, 1.0)
"""Of shares; where all clusters have the same, the interval is as wide as `mean_interval` says."""


class Held(NamedTuple):
    """Readers of a case who are held against the same label of the others.

    Attributes:
        right: the answers that it says are the best.
        readers: how many they are.
        agreeing: how many of them say so too.
    """

    right: tuple[int, ...]
    readers: int
    agreeing: int


def held_against_others(label: Label | None, answers: int) -> list[Held]:
    """Returns the readers behind a label; those whose fellows have no majority are left out.

    A reader who sees a tie, or accepts neither answer, is wrong where the others prefer one, as a
    model is. A case of which most accept neither answer counts for no model, and for no reader.

    Args:
        label: of a case.
        answers: how many it has.
    """
    if isinstance(label, RankingLabel):
        ranked = against_others(label.rankings)
        return [Held(right, 1, int(agrees)) for right, agrees in ranked if right]
    if label is not None and label.unacceptable:
        return []
    first, first_agreeing, second, second_agreeing = (label and label.readers) or (0, 0, 0, 0)
    held = [Held((0,), first, first_agreeing), Held((1,), second, second_agreeing)]
    return [entry for entry in held if entry.readers]


def against_others(rankings: Sequence[Ranking]) -> list[tuple[tuple[int, ...], bool]]:
    """Returns, for each ranking, what most others put on top, and whether it puts one of it there.

    There is nothing on top where the others have no majority, or tie all answers.
    """
    tops = [ranking[0] for ranking in rankings]
    answers = sum(map(len, rankings[0]))
    frequent = Counter(tops).most_common(2)  # without one vote no other can have a majority
    best_of = {
        top: next((best for best, n in frequent if n - (best == top) > (len(tops) - 1) / 2), ())
        for top in {*tops}
    }
    right_of = {top: best if len(best) < answers else () for top, best in best_of.items()}
    return [(right_of[top], len(top) == 1 and top[0] in right_of[top]) for top in tops]


def human_ceiling(
    cases: Sequence[Case], rows: Mapping[str, Iterable[Verdict]], dimensions: Iterable[str]
) -> dict[str, dict[str, Any] | None]:
    """Returns `human_ceiling` of `report.json`: dimension to measures, None without two readers.

    Args:
        cases: all that were judged.
        rows: dimension to its verdicts, under one protocol.
        dimensions: all of the benchmark.
    """
    measures: dict[str, dict[str, Any] | None] = {}
    for name in dimensions:
        judged = verdicts_by_case(rows.get(name, ()))
        readers: list[float] = []
        model: list[float] = []
        clusters: list[str] = []
        for case in cases:
            for held in held_against_others(case.labels.get(name), len(case.answers)):
                readers += [1.0] * held.agreeing + [0.0] * (held.readers - held.agreeing)
                clusters += [case.cluster or case.case_id] * held.readers
                if judged:
                    named = [_INDEX.get(row.outcome, row.outcome) for row in judged[case.case_id]]
                    model += [fmean(answer in held.right for answer in named)] * held.readers
        measures[name] = _measures(readers, model, clusters) if readers else None
    return measures


_INDEX: Mapping[Outcome, int] = {letter: index for index, letter in enumerate(LETTERS)}


def _measures(
    readers: Sequence[float], model: Sequence[float], clusters: Sequence[str]
) -> dict[str, Any]:
    """Returns the mean of the readers, that of the model, and the difference, with intervals."""
    accuracy = mean_interval(readers, clusters, SPAN)
    measures: dict[str, Any] = {
        **{"accuracy": accuracy.mean, "ci95": accuracy.bounds},
        **{"n": accuracy.n, "clusters": accuracy.clusters, "model": None, "difference": None},
    }
    if model:
        judged = mean_interval(model, clusters, SPAN)
        delta = mean_interval(list(map(sub, model, readers)), clusters, (-1.0, 1.0))
        measures["model"] = {"accuracy": judged.mean, "ci95": judged.bounds}
        measures["difference"] = {"delta": delta.mean, "ci95": delta.bounds}
    return measures
