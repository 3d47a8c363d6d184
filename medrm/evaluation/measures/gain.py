"""A difference in accuracy split into judging better and answering more often; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from medrm.evaluation.records.verdicts import verdicts_by_case
from medrm.schema import UNREAD, Verdict


class Answered(NamedTuple):
    """The share of presentations that were read, and the accuracy on those."""

    coverage: float
    accuracy: float | None


def split_gain(
    before: Iterable[Verdict], after: Iterable[Verdict], cases: Collection[str]
) -> dict[str, float]:
    """Returns `judgement` and `format`, which sum to the difference in accuracy exactly.

    With coverage c and accuracy a on what was read, accuracy = c a, and
    c1 a1 - c0 a0 = (c0 + c1)/2 (a1 - a0) + (a0 + a1)/2 (c1 - c0). Where one side has read nothing
    there is no judgement to compare, and all of the difference is format.

    Args:
        before: rows of one dimension.
        after: rows of the same dimension.
        cases: that count; at least one, all with a majority label.
    """
    first, second = answered(before, cases), answered(after, cases)
    a0 = second.accuracy if first.accuracy is None else first.accuracy
    a1 = first.accuracy if second.accuracy is None else second.accuracy
    if a0 is None or a1 is None:
        return {"judgement": 0.0, "format": 0.0}
    return {
        "judgement": (first.coverage + second.coverage) / 2 * (a1 - a0),
        "format": (a0 + a1) / 2 * (second.coverage - first.coverage),
    }


def answered(rows: Iterable[Verdict], cases: Collection[str]) -> Answered:
    """Returns what was read of some cases; each counts with the mean over its presentations."""
    read = correct = 0.0
    for case_id, presentations in verdicts_by_case(rows):
        if case_id in cases:
            read_rows = [row for row in presentations if row.outcome != UNREAD]
            read += len(read_rows) / len(presentations)
            correct += sum(row.correct or 0.0 for row in read_rows) / len(presentations)
    return Answered(read / len(cases), correct / read if read else None)


def gains(
    before: Mapping[str, Sequence[Verdict]],
    after: Mapping[str, Sequence[Verdict]],
    cases: Mapping[str, Collection[str]],
) -> dict[str, dict[str, float]]:
    """Returns `split_gain` of every dimension.

    Args:
        before: rows of one evaluation under one protocol, by dimension.
        after: of the other.
        cases: dimension to the labelled cases that both have judged.
    """
    return {
        name: split_gain(before[name], after[name], chosen)
        for name, chosen in cases.items()
        if chosen
    }
