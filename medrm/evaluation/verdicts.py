"""The lines of `verdicts.jsonl`: what was read from one presentation of a case on one dimension.

Everything after this file (report, comparison, page) is computed from these lines alone, so it
needs neither a model nor torch. `A` is the first answer as stored, whichever was shown first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medrm.errors import DataError
from medrm.schema import Case, Label, RankingLabel

if TYPE_CHECKING:
    from medrm.scorer.batches import Scored

Protocol = Literal["official", "robust"]
Outcome = str | int
"""`A`, `B`, `tie` or `unread`; for more than two answers the best one's index instead of A/B."""

TIE = "tie"
UNREAD = "unread"
LETTERS = ("A", "B")


@dataclass(frozen=True)
class VerdictRow:
    """One line of `verdicts.jsonl`; `scores` stands only where a case has more than two answers."""

    case_id: str
    dimension: str
    protocol: Protocol
    order: Literal["forward", "reversed"]
    outcome: Outcome
    reason: str | None
    label: Outcome | None
    label_shares: tuple[float, ...] | None
    probability_a: float | None
    score_a: float | None
    score_b: float | None
    cluster: str
    groups: Mapping[str, str]
    scores: tuple[float, ...] | None = None

    @property
    def correct(self) -> float | None:
        """1 or 0; None where the experts have no majority for one answer."""
        if self.label is None or self.label == TIE:
            return None
        return float(self.outcome == self.label)


class Reading(NamedTuple):
    """What one presentation says on one dimension."""

    outcome: Outcome
    reason: str | None = None
    probability_a: float | None = None
    scores: tuple[float, ...] | None = None


def rows_from_scored(
    scored: Iterable[Scored],
    scored_dimensions: Sequence[str],
    dimensions: Sequence[str],
    readout: str,
    protocols: Sequence[Protocol] = ("official", "robust"),
) -> list[VerdictRow]:
    """Returns the lines of `verdicts.jsonl` for what a scorer said.

    The official protocol has the stored order only and knows pairs only.

    Args:
        scored: what the scorer yielded.
        scored_dimensions: the names of the scorer's columns.
        dimensions: the benchmark's dimensions; those the scorer lacks get no line.
        readout: `reward` rewards also state a Bradley-Terry probability.
        protocols: which protocols to write.
    """
    columns = {
        name: scored_dimensions.index(name) for name in dimensions if name in scored_dimensions
    }
    rows = []
    for one in scored:
        for dimension, column in columns.items():
            reading = _read(one, column, readout)
            for protocol in protocols:
                pair = len(one.case.answers) == 2
                if protocol == "robust" or (pair and one.order == "forward"):
                    rows.append(_row(one, dimension, protocol, reading))
    return rows


def label_of(label: Label | None, answers: int) -> tuple[Outcome | None, tuple[float, ...] | None]:
    """Returns the majority label as it is written, and the vote shares behind it.

    A pair has the shares (A, tie, B). K > 2 rankings have the share of votes that put each answer
    alone on top; the label is the answer with more than half of them.
    """
    if label is None:
        return None, None
    if isinstance(label, RankingLabel):
        tops = [ranking[0] for ranking in label.rankings]
        shares = tuple(tops.count((index,)) / len(tops) for index in range(answers))
        best = [index for index, share in enumerate(shares) if share > 0.5]
        return (best[0] if best else None), shares
    choice = label.choice
    return (LETTERS[choice] if isinstance(choice, int) else choice), label.shares


def write_rows(path: Path, rows: Iterable[VerdictRow]) -> None:
    """Writes `verdicts.jsonl`, whole or not at all."""
    write_lines(path, (_record(row) for row in rows))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; the file appears only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(partial, path)


def read_rows(path: Path) -> list[VerdictRow]:
    """Returns the lines of a `verdicts.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    if not path.is_file():
        raise DataError(
            f"There are no verdicts at {path}. Give a folder that `medrm evaluate` has written."
        )
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(_parse(json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}, is not a verdict: {error}. Evaluate the model again."
                ) from error
    return rows


def _read(one: Scored, column: int, readout: str) -> Reading:
    if one.reason is not None:
        return Reading(UNREAD, one.reason)
    if one.scores is not None:
        scores = tuple(float(score) for score in one.scores[:, column])
        if not all(math.isfinite(score) for score in scores):
            raise ValueError(f"The model scored case {one.case.case_id!r} with {scores}.")
        chance = None
        if readout == "reward" and len(scores) == 2:
            chance = 1 / (1 + math.exp(min(scores[1] - scores[0], 700.0)))
        return Reading(_best(scores), None, chance, scores)
    if one.probabilities is None:
        raise ValueError(f"Case {one.case.case_id!r} has no score, no probability and no reason.")
    first, second, _ = (float(value) for value in one.probabilities[column])
    if not first + second > 0:
        return Reading(UNREAD, "no_mass")
    return Reading(_best((first, second)), None, first / (first + second))


def _best(scores: Sequence[float]) -> Outcome:
    """The answer with the highest score; equal scores at the top are a tie."""
    top = max(scores)
    best = [index for index, score in enumerate(scores) if score == top]
    if len(best) > 1:
        return TIE
    return LETTERS[best[0]] if len(scores) == 2 else best[0]


def _row(one: Scored, dimension: str, protocol: Protocol, reading: Reading) -> VerdictRow:
    case: Case = one.case
    label, shares = label_of(case.labels.get(dimension), len(case.answers))
    pair = reading.scores if reading.scores is not None and len(case.answers) == 2 else (None, None)
    return VerdictRow(
        case_id=case.case_id,
        dimension=dimension,
        protocol=protocol,
        order=one.order,
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


def _record(row: VerdictRow) -> dict[str, Any]:
    record = dict(vars(row))
    if row.scores is None:
        del record["scores"]
    return record


def _parse(record: dict[str, Any]) -> VerdictRow:
    for name in ("label_shares", "scores"):
        if record.get(name) is not None:
            record[name] = tuple(record[name])
    return VerdictRow(**record)


def by_case(rows: Iterable[VerdictRow]) -> Iterator[tuple[str, list[VerdictRow]]]:
    """Yields (case id, its rows), sorted by case id, so that row order never changes a number."""
    cases: dict[str, list[VerdictRow]] = {}
    for row in rows:
        cases.setdefault(row.case_id, []).append(row)
    for case_id in sorted(cases):
        yield case_id, cases[case_id]
