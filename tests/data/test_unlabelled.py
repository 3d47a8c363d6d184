"""Rows without labels, as `medrm score` reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medrm.data.readers.unlabelled import input_files, read_rows


def test_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    columns = {"question": ["Is it?"] * 5000, "answers": [["a"] * 8] * 5000}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet", row_group_size=100)
    (tmp_path / "a.json").write_text(json.dumps([{"question": "?", "answers": ["a"]}]))
    (tmp_path / "notes.txt").write_text("no data")
    files = input_files(str(tmp_path))
    assert [path.name for path in files] == ["a.json", "b.parquet"]
    rows = read_rows(files)
    before = pa.total_allocated_bytes()
    assert next(rows).number == 1
    assert next(rows).number == 2
    assert pa.total_allocated_bytes() - before < 2**20
    assert [row.number for row in rows][-1] == 5001
