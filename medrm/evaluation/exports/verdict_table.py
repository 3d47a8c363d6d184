"""verdicts.parquet: all verdicts of a run in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from medrm.schema import Expected, Verdict

_WORDS, _NUMBER, _NUMBERS = pa.string(), pa.float64(), pa.list_(pa.float64())

_COLUMNS: tuple[tuple[str, pa.DataType, Callable[[Verdict], Any]], ...] = (
    ("case_id", _WORDS, lambda row: _valid(row.case_id)),
    ("dimension", _WORDS, lambda row: row.dimension),
    ("protocol", _WORDS, lambda row: row.protocol),
    ("order", _WORDS, lambda row: row.order),
    ("outcome", _WORDS, lambda row: _answer(row.outcome)),
    ("reason", _WORDS, lambda row: _valid(row.reason)),
    ("label", _WORDS, lambda row: _answer(row.label)),
    ("label_shares", _NUMBERS, lambda row: row.label_shares),
    ("correct", _NUMBER, lambda row: row.correct),
    ("probability_a", _NUMBER, lambda row: row.probability_a),
    ("score_a", _NUMBER, lambda row: row.score_a),
    ("score_b", _NUMBER, lambda row: row.score_b),
    ("scores", _NUMBERS, lambda row: row.scores),
    ("cluster", _WORDS, lambda row: _valid(row.cluster)),
)


def write_verdicts(path: Path, sides: Mapping[str, Sequence[Verdict]]) -> None:
    """Writes one row for each verdict.

    `side` says of which evaluation; each group has a column `group_<name>`. Outcomes and labels are
    text, in JSON where a label names several answers.

    Args:
        path: to write.
        sides: such as before and after, to their verdicts.
    """
    rows = [row for chosen in sides.values() for row in chosen]
    columns = {
        "side": pa.array([side for side, chosen in sides.items() for _ in chosen], pa.string())
    }
    for name, kind, value in _COLUMNS:
        columns[name] = pa.array([value(row) for row in rows], kind)
    for group in sorted({group for row in rows for group in row.groups}):
        column = pa.array([_valid(row.groups.get(group)) for row in rows], pa.string())
        columns[f"group_{_valid(group)}"] = column
    parquet.write_table(pa.table(columns), path)


def _answer(named: Expected | None) -> str | None:
    """An outcome or a label as text."""
    return named if named is None or isinstance(named, str) else json.dumps(named)


def _valid(text: str | None) -> str | None:
    """Text as UTF-8 can hold it: half a surrogate pair becomes a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")
