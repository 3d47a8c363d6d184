"""What the files of a set hold that other readers trip over, before ids and labels are read.

The released scorer of Med-RewardBench compares labels and ids as they are written: a label that is
not A or B is never matched, an id that is a number on one side and text on the other never found, a
repeated id silently replaces the earlier one, and the rows are sorted by `modality_type`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medrm.data.readers.med_rewardbench import FOLDER, hub_layout
from medrm.data.readers.phantom_set import phantom_folder
from medrm.data.readers.votes_jsonl import VOTES_FILE, read_vote
from medrm.data.registry import named_description
from medrm.data.row_tables import Row, open_table
from medrm.data.sources import description_names
from medrm.errors import DataError

Found = dict[str, list[str]]
"""Kind of finding to its sentences."""

KINDS = {
    "labels": "labels that are not A or B in a released layout, or no vote in votes",
    "id_types": "ids that are numbers in one place and text in another",
    "duplicate_ids": "an id that occurs twice, or an annotator who votes twice",
    "modality_type": "a modality_type column that is missing or not the name of its file",
}
"""What `stored_findings` looks for."""


def stored_findings(source: str) -> Found:
    """Returns what is found in the files of a released layout or of votes; of others nothing.

    Args:
        source: as `load.read_set` takes it.

    Raises:
        DataError: a file cannot be read at all.
        ConfigError: a hub data set cannot be had.
    """
    path = _files(source)
    if (path / FOLDER).is_dir():
        return _layout(path / FOLDER)
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        return _votes(path)
    return {kind: [] for kind in KINDS}


def _files(source: str) -> Path:
    """Returns the folder of a released layout, else the file of votes, else what was given."""
    path = Path(source)
    if source in description_names() and not path.exists():
        description = named_description(source)
        if description.form == "phantom":
            path = phantom_folder(description.cases, description.seed) / VOTES_FILE
        elif description.form == "layout" and description.source:
            path = hub_layout(description)
    votes = path / VOTES_FILE
    return votes if votes.is_file() and not (path / FOLDER).is_dir() else path


def _layout(folder: Path) -> Found:
    found: Found = {kind: [] for kind in KINDS}
    ids: dict[str, list[str]] = defaultdict(list)
    for labels in sorted(folder.glob("*.jsonl")):
        rows = [row for _, row in open_table(labels).rows]
        inputs = folder / "parquet" / f"{labels.stem}.parquet"
        stored, modalities = _columns(inputs)
        found["labels"] += _label_values(labels.name, rows)
        sides = {labels.name: [row.get("question_id") for row in rows], inputs.name: stored}
        found["id_types"] += _id_types(sides)
        for name, values in sides.items():
            found["duplicate_ids"] += _twice(name, values)
        given = (value for values in sides.values() for value in values if value is not None)
        for case_id in dict.fromkeys(map(str, given)):
            ids[case_id].append(labels.stem)
        found["modality_type"] += _modality_types(inputs, modalities)
    found["duplicate_ids"] += [
        f"question_id {case_id!r} occurs in {' and in '.join(organs)}"
        for case_id, organs in ids.items()
        if len(organs) > 1
    ]
    return found


def _columns(path: Path) -> tuple[list[Any], list[Any] | None]:
    """Returns the ids and the modality types of a parquet file, None where there is no column.

    Raises:
        DataError: it is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return [], None
    wanted = ("question_id", "modality_type")
    try:
        names = [name for name in wanted if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=names).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}.") from error
    return table.get("question_id", []), table.get("modality_type")


def _label_values(name: str, rows: Iterable[Row]) -> list[str]:
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        answer = row.get("human_answer")
        for dimension, value in answer.items() if isinstance(answer, dict) else ():
            if value not in ("A", "B"):
                wrong[dimension, repr(value)].append(str(row.get("question_id")))
    return [
        f"{name}: {dimension} is {value} in {_cases(ids)}"
        for (dimension, value), ids in wrong.items()
    ]


def _id_types(sides: Mapping[str, Iterable[Any]]) -> list[str]:
    types = {name: sorted({type(v).__name__ for v in values}) for name, values in sides.items()}
    if len({kind for kinds in types.values() for kind in kinds}) < 2:
        return []
    return [
        "; ".join(f"{name}: ids of type {', '.join(kinds)}" for name, kinds in types.items())
        + " (the released scorer matches none of different types)"
    ]


def _twice(name: str, values: Iterable[Any]) -> list[str]:
    places: dict[str, int] = defaultdict(int)
    for value in values:
        places[str(value)] += 1
    return [
        f"{name}: question_id {value!r} occurs {count} times"
        for value, count in places.items()
        if count > 1
    ]


def _modality_types(path: Path, values: list[Any] | None) -> list[str]:
    if values is None:
        return [f"{path.name}: no column modality_type"] if path.is_file() else []
    other = [str(value) for value in values if value != path.stem]
    if not other:
        return []
    named = ", ".join(map(repr, sorted(set(other))[:3]))
    return [f"{path.name}: modality_type is {named} in {len(other)} of {len(values)} rows"]


def _votes(path: Path) -> Found:
    found: Found = {kind: [] for kind in KINDS}
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    cast: dict[tuple[str, str, str], int] = defaultdict(int)
    rows = [row for _, row in open_table(path).rows if isinstance(row.get("votes"), dict)]
    for row in rows:
        answers = row.get("answers")
        count = len(answers) if isinstance(answers, list) else 2
        for dimension, value in row["votes"].items():
            cast[str(row.get("case_id")), str(row.get("annotator")), dimension] += 1
            if not _is_vote(value, count):
                wrong[dimension, repr(value)].append(str(row.get("case_id")))
    found["labels"] = [
        f"{dimension} is {value} in {_cases(ids)}" for (dimension, value), ids in wrong.items()
    ]
    found["id_types"] = _id_types({path.name: [row.get("case_id") for row in rows]})
    found["duplicate_ids"] = [
        f"annotator {annotator!r} votes {count} times on {dimension} of case {case_id!r}"
        for (case_id, annotator, dimension), count in cast.items()
        if count > 1
    ]
    return found


def _is_vote(value: Any, answers: int) -> bool:
    if value is None:
        return True
    try:
        read_vote(value, answers)
    except DataError:
        return False
    return True


def _cases(ids: list[str]) -> str:
    return f"{len(ids)} case{'s' if len(ids) > 1 else ''}, such as {ids[0]!r}"
