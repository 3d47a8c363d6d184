"""How a set's readers voted: time, confidence, reasons, and how often no answer is acceptable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medrm.data.pseudonyms import shown_reader
from medrm.data.store.indexed_cases import to_numpy
from medrm.data.store.vote_records import vote_columns
from medrm.schema import Case

FAST_SECONDS = 10.0
"""Votes that took less are fast; Real-POCQi (arXiv 2606.28960) drops them."""

MOST_FAST = 0.1
MOST_READERS = 100
_MOST_WORDS = 5
_LEAST_VOTES = 30
"""Of a reader whose share of fast votes is a finding."""

_COUNTED = ("strongly_a", "A", "slightly_a", "tie", "slightly_b", "B", "strongly_b", "neither")


def vote_measures(cases: Sequence[Case]) -> dict[str, Any]:
    """Returns how votes were cast, on each dimension (`dimensions`) and by each reader (`readers`).

    Args:
        cases: of an index; of others nothing is known.
    """
    table, dimensions, annotators = vote_columns(cases)
    by_dimension, by_reader = to_numpy(table["dimension"]), to_numpy(table["annotator"])
    votes = np.bincount(by_reader, minlength=len(annotators))
    frequent = [n for n in np.argsort(-votes, kind="stable").tolist() if votes[n]][:MOST_READERS]
    order = np.argsort(by_reader, kind="stable")
    ends = np.cumsum(votes)
    return {
        "dimensions": {
            name: _measures(table.filter(pa.array(by_dimension == number)))
            for number, name in enumerate(dimensions)
        },
        "readers": {
            shown_reader(annotators[n]): _measures(
                table.take(pa.array(order[ends[n] - votes[n] : ends[n]]))
            )
            for n in frequent
        },
        "all_readers": int((votes > 0).sum()),
    }


def _measures(table: pa.Table) -> dict[str, Any]:
    """Returns what some votes have in common; times in seconds, None where none is stated."""
    counts = {
        count["values"]: count["counts"] for count in pc.value_counts(table["value"]).to_pylist()
    }
    seconds = to_numpy(table["seconds"].drop_null())
    confidences = pc.value_counts(table["confidence"].drop_null()).to_pylist()
    confidences.sort(key=lambda count: (-count["counts"], count["values"]))
    return {
        "votes": table.num_rows,
        "values": {value: counts[value] for value in _COUNTED if value in counts},
        "neither": counts.get("neither", 0) / max(table.num_rows, 1),
        "timed": len(seconds),
        "seconds": np.quantile(seconds, [0.25, 0.5, 0.75]).tolist() if len(seconds) else None,
        "fast": float((seconds < FAST_SECONDS).mean()) if len(seconds) else None,
        "confidence": {count["values"]: count["counts"] for count in confidences[:_MOST_WORDS]},
        "confident": sum(count["counts"] for count in confidences),
        "reasons": table.num_rows - table["reason"].null_count,
    }


def fast_findings(measures: dict[str, Any]) -> list[str]:
    """Returns a sentence for each reader of whose timed votes too many are fast."""
    return [
        f"{name!r}: {of['fast']:.0%} of {of['timed']} votes took less than {FAST_SECONDS:g} s"
        for name, of in measures["readers"].items()
        if of["timed"] >= _LEAST_VOTES and of["fast"] > MOST_FAST
    ]
