"""Med-RewardBench as released, `pair_gt_all/`: labels and inputs joined by question id."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from medrm.data.image_references import ImageOptions
from medrm.data.organs import ORGANS, canonical_organ
from medrm.data.readers.vote_values import CHOICE_OF
from medrm.data.readers.votes_jsonl import VOTES_FILE, dimension_problem
from medrm.data.row_tables import (
    Row,
    RowTable,
    missing_columns,
    open_table,
    parquet_table,
    row_images,
)
from medrm.data.sources import (
    CaseDraft,
    Description,
    ReadResult,
    Source,
    Vote,
    hub_files,
    read_about,
    size_problem,
)
from medrm.errors import ConfigError, DataError, raise_problems, shortened
from medrm.files import fits
from medrm.schema import ImageRef

logger = logging.getLogger(__name__)

FOLDER = "pair_gt_all"
_LABELS = ("question_id", "human_answer")
_TEXTS = ("question", "answer1_text", "answer2_text")
_INPUTS = ("question_id", "image", *_TEXTS)
_GROUPS = {"dataset": "source", "question_type": "question_type", "body_part": "body_part"}


def open_layout(folder: Path, image_options: ImageOptions) -> Source:
    """Returns the set in a folder that holds `pair_gt_all/`, which counts before its votes.

    Args:
        folder: of the set.
        image_options: what the user says of images.
    """
    about = read_about(folder)
    # Phantom cases are written both ways, and say the same.
    if (folder / VOTES_FILE).is_file() and not about.get("synthetic"):
        logger.warning(
            "%s is not read: the folder is the released layout, %s/, which counts before it. "
            "For the votes name the file itself.",
            folder / VOTES_FILE, FOLDER,
        )  # fmt: skip
    asked = image_options.or_as(about.get("image_conversion"))
    return _source(folder, folder, "local", about, asked)


def open_hub_layout(description: Description) -> Source:
    """Returns the set of a hub repository in the released layout."""
    folder = hub_layout(description)
    # A snapshot's files are links into the folder of the repository.
    source = _source(
        folder, folder.parent.parent, folder.name, read_about(folder), description.image_options
    )
    return replace(source, hub_id=description.hub_id)


def hub_layout(description: Description) -> Path:
    """Returns the local copy of a hub data set in the released layout; its folder name is the
    commit.

    Raises:
        DataError: the set has no hub id.
        ConfigError: not found, no access, no network, or another layout.
    """
    folder = hub_files(description, [f"{FOLDER}/**"])
    if not (folder / FOLDER).is_dir():
        raise ConfigError(
            f"The hub data set {description.source!r} (revision {description.revision}) holds no "
            f"{FOLDER}/; accepted is the released layout. Name another revision, or bring the "
            "files."
        )
    return folder


def _source(
    root: Path,
    boundary: Path,
    revision: str,
    about: Mapping[str, Any],
    image_options: ImageOptions,
) -> Source:
    folder = root / FOLDER
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("parquet/*.parquet")])
    drafts = partial(_drafts, folder, boundary, image_options)
    return Source(files, lambda: ReadResult(drafts()), revision, about)


def _drafts(folder: Path, boundary: Path, image_options: ImageOptions) -> Iterator[CaseDraft]:
    """Yields the cases of a folder `pair_gt_all`, organ by organ, in the order of the inputs.

    `boundary` is the folder that no link may leave, but into the folder of `image_options`.

    Raises:
        DataError: missing files, columns, partners, duplicate ids and wrong labels, all in one
            message.
    """
    problems: list[str] = []
    organ_of: dict[str, str] = {}
    labels = {path.stem for path in folder.glob("*.jsonl")}
    inputs = {path.stem for path in (folder / "parquet").glob("*.parquet")}
    for organ in sorted(labels - inputs):
        problems.append(f"{organ}.jsonl has no parquet/{organ}.parquet beside it")
    for organ in sorted(inputs - labels):
        problems.append(f"parquet/{organ}.parquet has no {organ}.jsonl beside it")
    for organ in sorted(labels & inputs):
        answers = _read_labels(open_table(folder / f"{organ}.jsonl"), problems)
        table = parquet_table(folder / "parquet" / f"{organ}.parquet", boundary)
        table.image_options = image_options
        for draft in _join(table, organ, answers, problems):
            first_organ = organ_of.setdefault(draft.case_id, organ)
            if first_organ != organ:
                problems.append(
                    f"question_id {draft.case_id!r} occurs in {first_organ} and in {organ}"
                )
            yield draft
    if not labels | inputs:
        problems.append("it holds no <organ>.jsonl and no parquet/<organ>.parquet")
    raise_problems(DataError, folder, problems)


def _identified_rows(
    table: RowTable, problems: list[str], required: Sequence[str] = ()
) -> Iterator[tuple[str, str, int, Row]]:
    """Yields location, question id and index of each row that has the required columns, and the
    row; an id that is no id, or not unique, is a problem.
    """
    seen: set[str] = set()
    for index, (location, row) in enumerate(table.rows):
        where = f"{table.name} {location}"
        if missing := missing_columns(row, required):
            problems += [f"{where}: {problem}" for problem in missing]
            continue
        value, case_id = row["question_id"], str(row["question_id"])
        if not fits(value, str | int) or value == "":
            shown = shortened(repr(value))
            problems.append(f"{where}: question_id is {shown}; give text or a whole number")
        if too_long := size_problem(case_id, ()):
            problems.append(f"{where}: {too_long}")
            continue
        if case_id in seen:
            problems.append(f"{where}: question_id {case_id!r} occurs twice")
        seen.add(case_id)
        yield where, case_id, index, row
    problems += [f"{table.name} {problem}" for problem in table.problems]


def _read_labels(table: RowTable, problems: list[str]) -> dict[str, dict[str, list[Vote]]]:
    """Returns the votes by question id; the released label counts as one vote of one expert."""
    labels: dict[str, dict[str, list[Vote]]] = {}
    for where, case_id, _, row in _identified_rows(table, problems, _LABELS):
        if not isinstance(row["human_answer"], dict):
            problems.append(f"{where}: human_answer is no object")
            continue
        if too_many := size_problem(case_id, row["human_answer"]):
            problems.append(f"{where}: {too_many}")
            continue
        labels[case_id] = {}
        for dimension, value in row["human_answer"].items():
            problem = dimension_problem(dimension)
            if problem is None and value not in ("A", "B", "tie"):
                problem = (
                    f"{dimension!r} is {shortened(repr(value))}; accepted are 'A', 'B' or 'tie'"
                )
            if problem is None:
                labels[case_id][dimension] = [Vote("released", CHOICE_OF[value])]
            else:
                problems.append(f"{where} ({case_id!r}): {problem}")
    return labels


def _join(
    table: RowTable, organ: str, labels: dict[str, dict[str, list[Vote]]], problems: list[str]
) -> Iterator[CaseDraft]:
    if missing := missing_columns(table.columns, _INPUTS):
        problems += [f"{table.name}: {problem}" for problem in missing]
        return
    case_ids: set[str] = set()
    for where, case_id, index, row in _identified_rows(table, problems):
        case_ids.add(case_id)
        question, *answers = texts = [row[column] for column in _TEXTS]
        try:
            if not fits(texts, list[str]):
                raise DataError("question and both answers must be text")
            images = row_images(table, index, row, "image")
        except DataError as error:
            problems.append(f"{where} ({case_id!r}): {error}")
            continue
        yield CaseDraft(
            case_id,
            images or (ImageRef(where, "", bytes, "no image is stored"),),
            question,
            tuple(answers),
            labels.get(case_id, {}),
            groups=_groups(row, organ),
        )
    for case_id in sorted(labels.keys() - case_ids):
        problems.append(f"{organ}.jsonl: question_id {case_id!r} has no row in {table.name}")
    for case_id in sorted(case_ids - labels.keys()):
        problems.append(f"{table.name}: question_id {case_id!r} has no label in {organ}.jsonl")


def _groups(row: Row, organ: str) -> dict[str, str]:
    """Returns the groups of a row.

    `modality_type` of the released files repeats the organ; a column `modality` says what it is.
    """
    groups = {"organ": canonical_organ(organ)}
    modality = row.get("modality") or row.get("modality_type")
    if modality and canonical_organ(str(modality)) not in (*ORGANS, groups["organ"]):
        groups["modality"] = str(modality)
    for column, group in _GROUPS.items():
        if row.get(column) not in (None, ""):
            groups[group] = str(row[column])
    return groups
