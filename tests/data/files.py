"""Small data files in each accepted form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A smooth picture with a little noise, so that it survives compression."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], images: str | None = None) -> Path:
    """Writes rows; with `images` the column is marked as `datasets` marks it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if images is not None:
        features = {images: {"_type": "Image"}} | {
            name: {"dtype": "string", "_type": "Value"} for name in rows[0] if name != images
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)
    return path


def vote(case_id: str = "c1", annotator: str = "a1", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case_id": case_id,
        "image": "images/1.png",
        "question": "What is seen?",
        "answer_a": "A mass.",
        "answer_b": "Nothing.",
        "annotator": annotator,
        "votes": {"accuracy": "A"},
    }
    row.update(changes)
    return {key: value for key, value in row.items() if value is not ...}


def three(*choices: str) -> list[dict[str, Any]]:
    """A vote of each annotator on one case."""
    return [vote("c1", f"a{i}", votes={"overall": choice}) for i, choice in enumerate(choices)]


def label(question_id: str | int, **answers: str) -> dict[str, Any]:
    return {"question_id": question_id, "human_answer": answers}


def row(question_id: str, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": png(picture(seed)), "path": f"{seed}.png"},
        "question_id": question_id,
        "question": "What is seen?",
        "answer1_text": "A mass.",
        "answer2_text": "Nothing.",
        "dataset": "made up",
        "modality_type": "brain",
        "question_type": "open",
        "image_id": f"{seed}.png",
        "body_part": "head",
    } | changes
