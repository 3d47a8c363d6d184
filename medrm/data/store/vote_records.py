"""The votes behind the labels of a set, one row for each, kept beside its cases."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from medrm.data.readers.vote_values import read_vote, vote_value
from medrm.data.sources import Vote
from medrm.data.store.indexed_cases import IndexedCases, read_table
from medrm.schema import Case

VOTES_FILE = "votes.arrow"

VOTES = pa.schema(
    {
        "case": pa.int32(),
        "dimension": pa.int32(),
        "annotator": pa.int32(),
        "value": pa.string(),
        "seconds": pa.float64(),
        "confidence": pa.string(),
        "reason": pa.string(),
    }
)
"""`case` is the number of the case in the index, dimension and annotator the numbers of their names
in `index.json`; `value` is written as in a votes file, a ranking in JSON."""

VotesOfCase = Mapping[str, Sequence[Vote]]
"""Dimension to votes."""


class VoteCodes:
    """Numbers the names in the votes of a set, and makes rows of its votes.

    Attributes:
        dimensions: name to number.
        annotators: name to number.
    """

    def __init__(self) -> None:
        self.dimensions: dict[str, int] = {}
        self.annotators: dict[str, int] = {}
        self._cases = 0

    def records(self, cases: Sequence[VotesOfCase]) -> pa.RecordBatch:
        """Returns the votes on the next cases as rows of `VOTES`."""
        rows: list[tuple[Any, ...]] = []
        for number, votes_of_case in enumerate(cases, start=self._cases):
            for name, votes in votes_of_case.items():
                dimension = self.dimensions.setdefault(name, len(self.dimensions))
                for vote in votes:
                    annotator = self.annotators.setdefault(vote.annotator, len(self.annotators))
                    value = vote_value(vote)
                    text = value if isinstance(value, str) else json.dumps(value)
                    confidence = _as_text(vote.confidence)
                    stated = (text, vote.seconds, confidence, vote.reason)
                    rows.append((number, dimension, annotator, *stated))
        self._cases += len(cases)
        columns = zip(*rows, strict=True) if rows else [()] * len(VOTES)
        arrays = [
            pa.array(values, arrow_type)
            for values, arrow_type in zip(columns, VOTES.types, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=VOTES)


def _as_text(confidence: str | float | None) -> str | None:
    """Returns a confidence as text; the same number is the same text (3 and 3.0)."""
    return f"{confidence:.15g}" if isinstance(confidence, int | float) else confidence


def votes_on(cases: Sequence[Case]) -> Iterator[tuple[int, VotesOfCase]]:
    """Yields the votes on each case that has some, with its index, in the order of the index.

    A few thousand votes are in memory at once. Cases that lie in no index have no votes.
    """
    if not isinstance(cases, IndexedCases):
        return
    positions = np.full(len(cases.case_index), -1)
    positions[cases.indices] = np.arange(len(cases))
    about = cases.case_index.about
    dimensions, annotators = about["voted"], about["annotators"]
    last = -1
    votes: dict[str, list[Vote]] = {}
    for batch in read_table(cases.case_index.folder / VOTES_FILE).to_batches():
        for case, dimension, annotator, text, *stated in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if case != last and votes:
                yield int(positions[last]), votes
                votes = {}
            last = case
            if positions[case] >= 0:
                value = json.loads(text) if text.startswith("[") else text
                answers = sum(map(len, value)) if isinstance(value, list) else 2
                vote = Vote(annotators[annotator], *read_vote(value, answers), *stated)
                votes.setdefault(dimensions[dimension], []).append(vote)
    if votes:
        yield int(positions[last]), votes


class VoteColumns(NamedTuple):
    """The votes on some cases, each column of shape (votes,).

    Attributes:
        table: rows of `VOTES`.
        dimensions: names by their numbers.
        annotators: names by their numbers.
    """

    table: pa.Table
    dimensions: Sequence[str]
    annotators: Sequence[str]


def vote_columns(cases: Sequence[Case]) -> VoteColumns:
    """Returns the votes on some cases; none of cases that lie in no index."""
    if not isinstance(cases, IndexedCases):
        return VoteColumns(VOTES.empty_table(), (), ())
    table = read_table(cases.case_index.folder / VOTES_FILE)
    about, chosen = cases.case_index.about, np.isin(table["case"].to_numpy(), cases.indices)
    return VoteColumns(table.filter(pa.array(chosen)), about["voted"], about["annotators"])
