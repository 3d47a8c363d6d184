"""The lines of `verdicts.jsonl`: what was read from one presentation of a case on one dimension.

Everything after this file (report, comparison, page) is computed from these lines alone, so it
needs neither a model nor torch. `A` is the first answer as stored, whichever was shown first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from medrm.evaluation.records.jsonl import read_lines, write_lines
from medrm.schema import (
    LETTERS,
    TIE,
    Case,
    Expected,
    Label,
    Order,
    Outcome,
    Protocol,
    RankingLabel,
    Verdict,
)


class Reading(NamedTuple):
    """What one presentation says on one dimension."""

    outcome: Outcome
    reason: str | None = None
    probability_a: float | None = None
    scores: tuple[float, ...] | None = None


def label_of(label: Label | None, answers: int) -> tuple[Expected | None, tuple[float, ...] | None]:
    """Returns the majority label as it is written, and the vote shares behind it.

    A pair has the shares (A, tie, B). K > 2 rankings have the share of the votes for each answer, a
    tie on top being split evenly. Their label is what more than half of the votes put on top: an
    answer, several of them, or a tie where that is all.
    """
    if label is None:
        return None, None
    if isinstance(label, RankingLabel):
        tops = [ranking[0] for ranking in label.rankings]
        shares = tuple(
            sum(1 / len(top) for top in tops if index in top) / len(tops)
            for index in range(answers)
        )
        best = next((top for top in tops if tops.count(top) > len(tops) / 2), None)
        if best is None:
            return None, shares
        return (best[0] if len(best) == 1 else TIE if len(best) == answers else best), shares
    choice = label.choice
    return (LETTERS[choice] if isinstance(choice, int) else choice), label.shares


def write_rows(path: Path, rows: Iterable[Verdict]) -> None:
    """Writes `verdicts.jsonl`, whole or not at all."""
    write_lines(path, (_record(row) for row in rows))


def read_rows(path: Path) -> list[Verdict]:
    """Returns the lines of a `verdicts.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return list(read_lines(path, row_from, "verdict"))


def row_of(
    case: Case, dimension: str, protocol: Protocol, order: Order, reading: Reading
) -> Verdict:
    """Returns the line for what was read from one presentation of a case."""
    label, shares = label_of(case.labels.get(dimension), len(case.answers))
    pair = reading.scores if reading.scores is not None and len(case.answers) == 2 else (None, None)
    return Verdict(
        case_id=case.case_id,
        dimension=dimension,
        protocol=protocol,
        order=order,
        outcome=reading.outcome,
        reason=reading.reason,
        label=label,
        label_shares=shares,
        probability_a=reading.probability_a,
        score_a=pair[0],
        score_b=pair[1],
        cluster=case.cluster or case.case_id,
        groups=dict(case.groups),
        scores=reading.scores if len(case.answers) > 2 else None,
    )


def _record(row: Verdict) -> dict[str, Any]:
    record = dict(vars(row))
    if row.scores is None:
        del record["scores"]
    return record


def row_from(record: dict[str, Any]) -> Verdict:
    """Returns what a line of `verdicts.jsonl` says.

    Raises:
        TypeError: it is not one of ours.
    """
    for name in ("label", "label_shares", "scores"):
        if isinstance(record.get(name), list):
            record[name] = tuple(record[name])
    row = Verdict(**record)
    numbers = (row.score_a, row.score_b, row.probability_a, *(row.scores or ()))
    if not all(isinstance(number, int | float | None) for number in numbers):
        raise TypeError(f"scores {numbers!r}")
    if row.protocol not in get_args(Protocol) or row.order not in get_args(Order):
        raise TypeError(f"protocol {row.protocol!r}, order {row.order!r}")
    texts = (row.case_id, row.dimension, row.cluster, *row.groups.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"id, dimension, cluster and groups are {texts!r}")
    return row


def by_case(rows: Iterable[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    """Yields (case id, its rows), sorted by case id, so that row order never changes a number."""
    cases: dict[str, list[Verdict]] = {}
    for row in rows:
        cases.setdefault(row.case_id, []).append(row)
    for case_id in sorted(cases):
        yield case_id, cases[case_id]
