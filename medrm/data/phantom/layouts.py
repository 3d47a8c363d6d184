"""Phantom cases -> files, in the votes form and in the released benchmark layout."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medrm.data.phantom.draws import (
    PhantomCase,
    Votes,
    ceiling,
    draw_case,
    draw_picture,
    majority,
    owner,
)
from medrm.data.phantom.pictures import ANATOMIES
from medrm.errors import ConfigError

VERSION = "2"
"""Raised whenever the same seed would give other cases."""


def write_phantom(output: Path, cases: int, seed: int) -> dict[str, float]:
    """Writes `cases` phantom cases in both layouts; the same seed gives the same bytes.

    Returns:
        The ceiling: dimension -> accuracy that a model which knows the truth reaches.

    Raises:
        ConfigError: a negative seed, or a folder that holds something.
    """
    if seed < 0:
        raise ConfigError(f"The phantom seed is {seed}; give 0 or more.")
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{str(output)!r} is not empty, and two sets in one folder would mix. Give a new one."
        )
    for folder in ("images", "pair_gt_all/parquet"):
        (output / folder).mkdir(parents=True)
    rows_of_organ: dict[str, list[dict[str, object]]] = defaultdict(list)
    labels_of_organ: dict[str, list[dict[str, object]]] = defaultdict(list)
    truths: list[Votes] = []
    majorities: list[Votes] = []
    with (output / "votes.jsonl").open("w", encoding="utf-8", newline="\n") as votes:
        for index in range(cases):
            if owner(index) == index:
                readings, picture = draw_picture(seed, index)
                path = output / "images" / f"{_name(seed, index)}.png"
                # Noise hardly compresses; level 6 is 4 x slower.
                Image.fromarray(picture.pixels).save(path, compress_level=1)
            case = draw_case(seed, index, readings)
            votes.writelines(_vote_lines(seed, index, case))
            truths.append(case.truth)
            majorities.append(majority(case.votes))
            organ = case.readings.true.organ
            rows_of_organ[organ].append(_row(seed, index, case, path.read_bytes()))
            labels_of_organ[organ].append(
                {"question_id": _name(seed, index), "human_answer": majorities[-1]}
            )
    for organ, rows in rows_of_organ.items():
        _write_organ(output / "pair_gt_all", organ, rows, labels_of_organ[organ])
    reachable = ceiling(truths, majorities)
    about = {
        "name": "phantom",
        "version": VERSION,
        "seed": seed,
        "cases": cases,
        "synthetic": True,
        "ceiling": reachable,
    }
    (output / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return reachable


def _name(seed: int, index: int) -> str:
    return f"phantom-{seed}-{index:06d}"


def _vote_lines(seed: int, index: int, case: PhantomCase) -> Iterable[str]:
    facts = case.readings.true
    for annotator, votes in case.votes.items():
        line = {
            "case_id": _name(seed, index),
            "image": f"images/{_name(seed, case.owner)}.png",
            "question": case.question,
            "answer_a": case.answers[0],
            "answer_b": case.answers[1],
            "annotator": annotator,
            "votes": votes,
            "organ": facts.organ,
            "department": ANATOMIES[facts.organ].department,
            "modality": facts.modality,
            "source": "phantom",
            "patient": _name(seed, case.owner),
        }
        yield json.dumps(line) + "\n"


def _row(seed: int, index: int, case: PhantomCase, image: bytes) -> dict[str, object]:
    image_id = f"{_name(seed, case.owner)}.png"
    facts = case.readings.true
    return {
        "image": {"bytes": image, "path": image_id},
        "question_id": _name(seed, index),
        "question": case.question,
        "answer1_text": case.answers[0],
        "answer2_text": case.answers[1],
        "dataset": "phantom",
        "modality_type": facts.organ,  # as released; the scorer sorts the rows by it
        "question_type": case.question_type,
        "image_id": image_id,
        "body_part": facts.organ,
        "modality": facts.modality,
    }


def _write_organ(
    root: Path, organ: str, rows: list[dict[str, object]], labels: list[dict[str, object]]
) -> None:
    """Writes inputs and labels of one organ in the released layout."""
    table = pa.Table.from_pylist(rows)
    # What `datasets` reads to decode the column `image`.
    features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
    features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, root / "parquet" / f"{organ}.parquet", compression="none")
    lines = "".join(json.dumps(label) + "\n" for label in labels)
    (root / f"{organ}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
