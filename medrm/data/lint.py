"""What the files of a set hold that other readers trip over, before ids and labels are read.

The released scorer of Med-RewardBench compares labels and ids as they are written: a label that is
not A or B is never matched, an id that is a number on one side and text on the other never found, a
repeated id silently replaces the earlier one, and the rows are sorted by `modality_type`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medrm.data.case_set import named_description
from medrm.data.parquet_files import plain_batches, readable_parquet
from medrm.data.pseudonyms import shown_reader
from medrm.data.readers.med_rewardbench import FOLDER, hub_layout
from medrm.data.readers.vote_values import read_vote
from medrm.data.readers.votes_jsonl import VOTES_FILE, phantom_folder
from medrm.data.row_tables import Row, open_table
from medrm.data.sources import description_names, is_path
from medrm.errors import DataError

Findings = dict[str, list[str]]
"""Kind of finding to its sentences."""

KINDS = {
    "labels": "labels that are not A or B in a released layout, or no vote in votes",
    "id_types": "ids that are numbers in one place and text in another",
    "duplicate_ids": "an id that occurs twice, or an annotator who votes twice",
    "modality_type": "a modality_type column that is missing or not the name of its file",
}
"""What `stored_findings` looks for."""


def stored_findings(source: str) -> Findings:
    """Returns what is found in the files of a released layout or of votes; of others nothing.

    Args:
        source: as `case_set.read_set` takes it.

    Raises:
        DataError: a file cannot be read at all.
        ConfigError: a hub data set cannot be had.
    """
    findings: Findings = {name: [] for name in KINDS}
    if not is_path(source) and source not in description_names():
        return findings
    path = _files(source)
    if (path / FOLDER).is_dir():
        _check_layout(path / FOLDER, findings)
    elif path.is_file() and path.suffix.lower() in (".jsonl", ".json"):
        _check_votes(path, findings)
    return findings


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


def _check_layout(folder: Path, findings: Findings) -> None:
    organs_of: dict[str, list[str]] = defaultdict(list)
    for labels in sorted(folder.glob("*.jsonl")):
        rows = [row for _, row in open_table(labels).rows]
        inputs = folder / "parquet" / f"{labels.stem}.parquet"
        stored_ids, modalities = _columns(inputs)
        ids = {labels.name: [row.get("question_id") for row in rows], inputs.name: stored_ids}
        wrong_labels = _wrong_values(rows, "question_id", "human_answer", _is_label)
        findings["labels"] += [f"{labels.name}: {text}" for text in wrong_labels]
        findings["id_types"] += _id_types(ids)
        findings["duplicate_ids"] += [
            f"{name}: question_id {value!r} occurs {count} times"
            for name, values in ids.items()
            for value, count in Counter(map(str, values)).items()
            if count > 1
        ]
        stated = (value for values in ids.values() for value in values if value is not None)
        for case_id in dict.fromkeys(map(str, stated)):
            organs_of[case_id].append(labels.stem)
        findings["modality_type"] += _modality_types(inputs, modalities)
    findings["duplicate_ids"] += [
        f"question_id {case_id!r} occurs in {' and in '.join(organs)}"
        for case_id, organs in organs_of.items()
        if len(organs) > 1
    ]


def _check_votes(path: Path, findings: Findings) -> None:
    rows = [row for _, row in open_table(path).rows if isinstance(row.get("votes"), dict)]
    cast = Counter(
        (str(row.get("case_id")), str(row.get("annotator")), dimension)
        for row in rows
        for dimension in row["votes"]
    )
    findings["labels"] = _wrong_values(rows, "case_id", "votes", _is_vote)
    findings["id_types"] = _id_types({path.name: [row.get("case_id") for row in rows]})
    findings["duplicate_ids"] = [
        f"annotator {shown_reader(annotator)!r} votes {count} times on {dimension} of case "
        f"{case_id!r}"
        for (case_id, annotator, dimension), count in cast.items()
        if count > 1
    ]


def _columns(path: Path) -> tuple[list[Any], list[Any] | None]:
    """Returns the ids and the modality types of a parquet file, None where there is no column.

    Raises:
        DataError: it is no parquet file.
    """
    if not path.is_file():
        return [], None
    wanted = ("question_id", "modality_type")
    with readable_parquet(path) as parquet:
        names = [name for name in wanted if name in parquet.schema_arrow.names]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for table in plain_batches(path, names):
        for name, values in table.to_pydict().items():
            columns[name] += values
    return columns.get("question_id", []), columns.get("modality_type")


def _is_label(value: Any, _: Row) -> bool:
    return value in ("A", "B")


def _is_vote(value: Any, row: Row) -> bool:
    answers = row.get("answers")
    try:
        if value is not None:
            read_vote(value, len(answers) if isinstance(answers, list) else 2)
    except DataError:
        return False
    return True


def _wrong_values(
    rows: Iterable[Row], id_column: str, column: str, accepts: Callable[[Any, Row], bool]
) -> list[str]:
    """Returns a sentence for each value in a column, dimension to value, that is not accepted."""
    ids_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        values = row.get(column)
        for dimension, value in values.items() if isinstance(values, dict) else ():
            if not accepts(value, row):
                ids_of[dimension, repr(value)].append(str(row.get(id_column)))
    return [
        f"{dimension} is {value} in {len(ids)} case{'s' if len(ids) > 1 else ''}, such as "
        f"{ids[0]!r}"
        for (dimension, value), ids in ids_of.items()
    ]


def _id_types(ids: Mapping[str, Iterable[Any]]) -> list[str]:
    """Returns a sentence where the ids of the named files are of several types."""
    types = {name: sorted({type(v).__name__ for v in values}) for name, values in ids.items()}
    if len({name for names in types.values() for name in names}) < 2:
        return []
    return [
        "; ".join(f"{name}: ids of type {', '.join(names)}" for name, names in types.items())
        + " (the released scorer matches none of different types)"
    ]


def _modality_types(path: Path, values: list[Any] | None) -> list[str]:
    if values is None:
        return [f"{path.name}: no column modality_type"] if path.is_file() else []
    other = [str(value) for value in values if value != path.stem]
    if not other:
        return []
    named = ", ".join(map(repr, sorted(set(other))[:3]))
    return [f"{path.name}: modality_type is {named} in {len(other)} of {len(values)} rows"]
