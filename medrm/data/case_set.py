"""One call for every source: the cases of a file, a folder, a name in `data/` or a hub id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from medrm.assets import asset
from medrm.data.drafts import Excluded, ReadResult
from medrm.data.labels import Agreement, LabelRules
from medrm.data.organs import read_department_map
from medrm.data.readers.benchmarks import read_released, released_files
from medrm.data.readers.med_rewardbench import FOLDER, read_layout
from medrm.data.readers.preferences import PreferenceColumns, read_preferences
from medrm.data.readers.votes_jsonl import read_votes
from medrm.data.registry import (
    DESCRIPTION,
    RELEASED,
    Description,
    description_names,
    descriptions,
    descriptions_digest,
    hub_files,
    hub_layout,
    hub_table,
    is_hub_id,
    phantom_folder,
    read_description,
)
from medrm.data.row_tables import SUFFIXES, open_table
from medrm.data.store.build import joint_digest, open_index, ordered
from medrm.data.store.columns import column
from medrm.data.store.index import StoredCases
from medrm.errors import DataError, nearest
from medrm.schema import Case

logger = logging.getLogger(__name__)

VOTES_FILE = "votes.jsonl"
ABOUT_FILE = "dataset.json"
_IN_FOLDERS = (FOLDER, VOTES_FILE, DESCRIPTION)
"""What makes a folder a set, whichever benchmark was asked for."""


@dataclass(frozen=True)
class CaseSet:
    """All cases of one source, and what is known of them.

    `digest` is the SHA-256 over ids, questions, answers, labels and image digests, whatever the
    order. `excluded` are rows set aside by the reader. `dimensions` are those that some label
    mentions. `agreement` is empty where no case has two annotators. `ceiling` (the reachable
    accuracy by dimension) and `synthetic` come from `dataset.json` beside the data.
    """

    name: str
    revision: str
    digest: str
    cases: Sequence[Case]
    excluded: tuple[Excluded, ...] = ()
    dimensions: tuple[str, ...] = ()
    agreement: Mapping[str, Agreement] = field(default_factory=dict)
    ceiling: Mapping[str, float] = field(default_factory=dict)
    synthetic: bool = False


@dataclass(frozen=True)
class _Source:
    """What a set is read from, and how."""

    name: str
    revision: str
    files: Sequence[Path]
    read: Callable[[], ReadResult]
    about: Mapping[str, Any] = field(default_factory=dict)


def read_cases(path: str | Path) -> list[Case]:
    """Returns the cases of any accepted input; see `read_set`."""
    return list(read_set(str(path)).cases)


def read_set(
    source: str,
    rules: LabelRules | None = None,
    department_map: Path | None = None,
    described: str | None = None,
) -> CaseSet:
    """Returns the cases of one source.

    Args:
        source: a file (votes or preference rows), a folder (released layout, or votes.jsonl), a
            name in `data/`, or the id of a hub data set.
        rules: how votes become labels.
        department_map: YAML or JSON file of organ to department, for cases that state none.
        described: a name in `data/` whose files, as they were released, `source` may hold.

    Raises:
        DataError: all problems of a file together, with line numbers and case ids.
        ConfigError: a source, rule or map that is not accepted.
    """
    departments = read_department_map(department_map) if department_map else {}
    brought = _brought(described, Path(source)) if described else None
    found = brought or _find(source)
    parts = [found.name, found.revision, brought is not None, descriptions_digest()]
    store = open_index(source, found.files, parts, found.read, rules or LabelRules(), departments)
    about = store.about
    return CaseSet(
        found.name,
        found.revision,
        about["digest"],
        StoredCases(store),
        tuple(Excluded(*entry) for entry in about["excluded"]),
        ordered(about["dimensions"]),
        {name: Agreement(*values) for name, values in about["agreement"].items()},
        found.about.get("ceiling", {}),
        found.about.get("synthetic", False),
    )


def _brought(described: str, path: Path) -> _Source | None:
    """Reads the released files of a set in `data/` from where the user put them, if they are there.

    Raises:
        DataError: a folder that holds no set at all.
    """
    description = read_description(asset(f"data/{described}/{DESCRIPTION}"))
    if description.form not in RELEASED:
        return None
    files = released_files(description, path)
    if files:
        return _Source(described, "local", files, partial(read_released, description, files))
    if path.is_dir() and not any((path / name).exists() for name in _IN_FOLDERS):
        raise DataError(
            f"{path} holds no {', '.join(description.files)} (data/{described}/README.md), and "
            f"neither {FOLDER}/ nor {VOTES_FILE}. Give the folder that holds one of them."
        )
    return None


def _find(source: str) -> _Source:
    path = Path(source)
    if source in description_names() and not path.exists():
        return _described(read_description(asset(f"data/{source}/{DESCRIPTION}")))
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _table(path.stem, "local", path)
    if is_hub_id(source):
        for description in descriptions():
            if description.source == source:
                return _described(description)
        return _hub(source, Description(source, "preferences", source))
    names = description_names()
    raise DataError(
        f"{source!r} is no file, no folder and no name in data/ ({', '.join(names)})."
        f"{nearest(source, names)} Give one of these or a hub id such as organisation/name."
    )


def _folder(path: Path) -> _Source:
    name = path.resolve().name
    if (path / FOLDER).is_dir():
        # Phantom cases are written both ways, and say the same.
        if (path / VOTES_FILE).is_file() and not _about(path).get("synthetic"):
            logger.warning(
                "%s is not read: the folder is the released layout, %s/, which counts before it. "
                "For the votes name the file itself.",
                path / VOTES_FILE, FOLDER,
            )  # fmt: skip
        return _layout(name, "local", path, path)
    if (path / VOTES_FILE).is_file():
        return _table(name, "local", path / VOTES_FILE)
    if (path / DESCRIPTION).is_file():
        return _described(read_description(path / DESCRIPTION))
    if name == FOLDER:
        raise DataError(f"{path} is the inside of a released benchmark. Give the folder above it.")
    raise DataError(
        f"{path} holds neither {FOLDER}/ nor {VOTES_FILE}. Give such a folder, or name the file "
        f"({', '.join(SUFFIXES)}) itself."
    )


def _described(description: Description) -> _Source:
    if description.form == "phantom":
        folder = phantom_folder(description.cases, description.seed)
        return _table(description.name, folder.name, folder / VOTES_FILE)
    if description.source is None:
        raise DataError(
            f"The files of {description.name!r} must be brought: "
            f"data/{description.name}/README.md says "
            "from where. Give the path of the file, with the images below its folder."
        )
    if description.form == "layout":
        folder = hub_layout(description.source, description.revision)
        # A snapshot's files are links into the folder of the repository.
        return _layout(description.name, folder.name, folder, folder.parent.parent)
    if description.form in RELEASED:
        folder = hub_files(description.source, description.revision, description.files)
        files = released_files(description, folder)
        read = partial(read_released, description, files, boundary=folder.parent.parent)
        return _Source(description.name, folder.name, files, read)
    return _hub(description.source, description)


def _hub(source: str, description: Description) -> _Source:
    table, commit = hub_table(source, description.revision, description.split)
    read = partial(read_preferences, table, Path(source), description.preference_columns)
    return _Source(description.name, commit, list(map(Path, table.files)), read)


def _layout(name: str, revision: str, folder: Path, boundary: Path) -> _Source:
    files = [*(folder / FOLDER).glob("*.jsonl"), *(folder / FOLDER).glob("parquet/*.parquet")]
    read = partial(read_layout, folder, boundary)
    return _Source(name, revision, sorted(files), read, _about(folder))


def _table(name: str, revision: str, path: Path) -> _Source:
    return _Source(name, revision, [path], partial(_file, path), _about(path.parent))


def _file(path: Path) -> ReadResult:
    """Reads votes or preference rows, told apart by their columns."""
    table = open_table(path)
    columns = _preference_columns(table.columns)
    if columns is not None:
        return read_preferences(table, path, columns)
    return read_votes(table, path)


def _preference_columns(given: tuple[str, ...]) -> PreferenceColumns | None:
    """Returns TRL's columns, or those of a set in `data/` all of whose columns are there."""
    trl = PreferenceColumns()
    if "votes" in given:
        return None
    if trl.prompt in given and (trl.chosen in given or trl.rejected in given):
        return trl
    for description in descriptions():
        columns = description.columns
        if description.form == "preferences" and set(columns.values()) <= set(given):
            return description.preference_columns
    return trl if trl.chosen in given or trl.rejected in given else None


def _about(folder: Path) -> dict[str, Any]:
    """Returns what `dataset.json` beside the data says of it.

    Raises:
        DataError: it is there, but no JSON object.
    """
    path = folder / ABOUT_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object.")
    return content


def dimensions_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """Returns the dimensions that some label mentions, the benchmark's six first in their order."""
    if isinstance(cases, StoredCases):
        return ordered(cases.mentioned())
    return ordered({dimension for case in cases for dimension in case.labels})


def digest_of(cases: Sequence[Case]) -> str:
    """Returns the SHA-256 over what the cases say, whatever their order."""
    return joint_digest(column(cases, "digest"))
