"""The data formats, the sets described in `data/`, and one call for every source of cases."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from medrm.data.described_files import open_described_files, parse_description
from medrm.data.image_references import NO_OPTIONS, ImageOptions
from medrm.data.labels import Agreement, FastVotes, LabelRules
from medrm.data.organs import read_department_map
from medrm.data.readers import benchmarks, med_rewardbench, preferences, rated_axes, votes_jsonl
from medrm.data.readers.dataset_info import DATASET_INFO
from medrm.data.readers.row_forms import ROW_FORMS
from medrm.data.row_tables import SUFFIXES, RowTable, open_table
from medrm.data.sources import (
    DESCRIPTION,
    DataFormat,
    Description,
    Excluded,
    ReadResult,
    Source,
    description_names,
    is_path,
    read_about,
)
from medrm.data.store.build_index import joint_digest, open_index, order_dimensions
from medrm.data.store.indexed_cases import IndexedCases, column, label_column
from medrm.errors import ConfigError, DataError, nearest, shortened
from medrm.files import asset, status_of
from medrm.schema import Case

logger = logging.getLogger(__name__)

FORMATS: dict[str, DataFormat] = {
    "layout": DataFormat(
        marker=f"{med_rewardbench.FOLDER}/",
        open_folder=med_rewardbench.open_layout,
        open_described=med_rewardbench.open_hub_layout,
    ),
    "votes": DataFormat(
        marker=votes_jsonl.VOTES_FILE, read_table=votes_jsonl.read_votes_by_columns
    ),
    **{name: preferences.rows_format(name) for name in ROW_FORMS},
    "phantom": DataFormat(open_described=votes_jsonl.open_phantom),
    "pairs": benchmarks.released_format(benchmarks.read_pair),
    "best_of": benchmarks.released_format(benchmarks.read_best_of),
    "criteria": benchmarks.released_format(benchmarks.read_criterion),
    "rated_axes": rated_axes.rated_axes_format(),
}
"""Name to data format. The first one that recognises a folder or file reads it; a file that none
recognises is read as votes, whose reader says what is missing. A format from outside the package
is added by putting an entry into this dict."""


def read_description(path: Path) -> Description:
    """Returns what a `dataset.yaml` says; see `parse_description`."""
    return parse_description(path, FORMATS)


def named_description(name: str) -> Description:
    """Returns the description of a name in `data/`, parsed once while its file stays as it is."""
    path = asset(f"data/{name}/{DESCRIPTION}")
    return _parsed_description(path, *status_of(path))


@lru_cache(maxsize=256)
def _parsed_description(path: Path, *_status: int) -> Description:
    return read_description(path)


def descriptions() -> list[Description]:
    """Returns all descriptions in `data/`, by name."""
    return [named_description(name) for name in description_names()]


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CaseSet:
    """All cases of one source, and what is known of them.

    `digest` is the SHA-256 over ids, questions, answers, labels and image digests, whatever the
    order. `excluded` are rows set aside by the reader, `fast_votes` votes that are dropped for the
    time that they took. `dimensions` are those that some label mentions. `agreement` is empty where
    no case has two annotators. `ceiling` (the reachable accuracy by dimension) and `synthetic` come
    from `dataset.json` beside the data. `hub_id` is the data set of the hub that was read; None:
    another source. `mixed` are the sets of a mixture. `converted` says of medical images how they
    became pictures (`medical.converted_set`); empty: there are none.
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
    hub_id: str | None = None
    fast_votes: FastVotes = field(default_factory=FastVotes)
    mixed: tuple[MixedSet, ...] = ()
    converted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_conversion(self) -> str | None:
        """By which medical images became pictures; None: it has none."""
        return self.converted.get("conversion")


@dataclass(frozen=True)
class MixedSet:
    """One set of a mixture, and what became of its cases.

    Attributes:
        name: in the mixture.
        case_set: the set itself.
        share: of the mixture that it is to have; None: all of its cases count.
        repeated: cases that a set named earlier has as well.
        capped: cases left out by the caps on prompts and images.
        drawn: cases in the mixture.
    """

    name: str
    case_set: CaseSet
    share: float | None
    repeated: int
    capped: int
    drawn: int


def read_cases(path: str | Path, image_conversion: str | None = None) -> list[Case]:
    """Returns the cases of any accepted input; see `read_set`.

    >>> import json, tempfile
    >>> row = {"case_id": "17", "images": [], "question": "Fracture?", "answers": ["No.", "Yes."]}
    >>> path = Path(tempfile.mkdtemp()) / "votes.jsonl"
    >>> _ = path.write_text(json.dumps(row | {"annotator": "dr-1", "votes": {"accuracy": "B"}}))
    >>> (case,) = read_cases(path)
    >>> case.answers, case.labels["accuracy"].choice
    (('No.', 'Yes.'), 1)

    Args:
        path: a file or folder, a name in `data/`, or the id of a hub data set.
        image_conversion: as in `read_set`.

    Raises:
        DataError: all problems of a file together, with line numbers and case ids.
    """
    return list(read_set(str(path), image_conversion=image_conversion).cases)


def read_set(
    source: str,
    rules: LabelRules | None = None,
    department_map: Path | None = None,
    described: str | None = None,
    image_root: Path | None = None,
    image_conversion: str | None = None,
) -> CaseSet:
    """Returns the cases of one source.

    Args:
        source: a file (votes or preference rows), a folder (released layout, or votes.jsonl), a
            name in `data/`, or the id of a hub data set.
        rules: how votes become labels.
        department_map: YAML or JSON file of organ to department, for cases that state none.
        described: a name in `data/` whose files, as they were released, `source` may hold.
        image_root: a folder in which images are looked for first, and into which absolute paths
            and links may lead.
        image_conversion: by which DICOM and NIfTI images become pictures
            (`medical.conversions.parse_conversion`); None: as `dataset.json` or `dataset.yaml` of
            the set says.

    Raises:
        DataError: all problems of a file together, with line numbers and case ids.
        ConfigError: a source, rule, map, folder or conversion that is not accepted.
    """
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"image_root {str(image_root)!r} is no folder; give that of the images.")
    departments = read_department_map(department_map) if department_map else {}
    options = ImageOptions(image_root).or_as(image_conversion)
    user_files = _user_files(described, Path(source), options) if described else None
    opening = partial(_open, source, options)
    name, opened = (described, user_files) if described and user_files else opening()
    # A set may be read by the columns of any description.
    key = [name, opened.revision, user_files is not None, list(map(asdict, descriptions()))]
    key += [str(image_root.absolute())] if image_root is not None else []
    conversion = options.or_as(opened.about.get("image_conversion")).conversion
    key += [str(conversion)] if conversion is not None else []
    index = open_index(source, opened.files, key, opened.read, rules or LabelRules(), departments)
    about = index.about
    fast_votes = FastVotes(**about["fast_votes"])
    if rules is not None and fast_votes.by_annotator:
        logger.warning("%s: %s", source, fast_votes.said(rules.min_seconds))
    return CaseSet(
        name,
        opened.revision,
        about["digest"],
        IndexedCases(index),
        tuple(Excluded(*row) for row in about["excluded"]),
        order_dimensions(about["dimensions"]),
        {name: Agreement(*values) for name, values in about["agreement"].items()},
        opened.about.get("ceiling", {}),
        opened.about.get("synthetic", False),
        opened.hub_id,
        fast_votes,
        converted=about["converted"],
    )


def read_drafts(
    source: str, image_root: Path | None = None, image_conversion: str | None = None
) -> tuple[str, Source]:
    """Returns the name of a source and what reads its cases with their votes, as often as asked.

    Args:
        source: as `read_set` takes it.
        image_root: likewise.
        image_conversion: likewise.

    Raises:
        DataError: there is no such source.
    """
    return _open(source, ImageOptions(image_root).or_as(image_conversion))


def _user_files(described: str, path: Path, image_options: ImageOptions) -> Source | None:
    """Returns the released files of a set in `data/` at the user's path, if they are there.

    Raises:
        DataError: a folder that holds no set at all.
    """
    description = named_description(described)
    open_files = FORMATS[description.form].open_files
    if open_files is None:
        return None
    opened = open_files(description, path, image_options)
    is_set = any(form.marks(path) for form in FORMATS.values()) or (path / DESCRIPTION).is_file()
    if opened is None and path.is_dir() and not is_set:
        raise DataError(
            f"{path} holds no {', '.join(description.files)} (data/{described}/README.md), and "
            f"neither {_markers()}. Give the folder that holds one of them."
        )
    return opened


def holds_described(described: str, path: str | Path) -> bool:
    """Returns whether a user's path holds files in the form of a set in `data/`."""
    description = named_description(described)
    data_format = FORMATS[description.form]
    if data_format.open_files is not None:
        return data_format.open_files(description, Path(path), NO_OPTIONS) is not None
    return data_format.marks(Path(path))


def _open(source: str, image_options: ImageOptions) -> tuple[str, Source]:
    """Returns the name of a set and what it is read from."""
    path, is_there = Path(source), is_path(source)
    if is_there and path.is_dir():
        return _open_folder(path, image_options)
    if is_there and path.is_file():
        return path.stem, _open_file(path, image_options)
    names = description_names()
    if source in names and not is_there:
        return _open_described(named_description(source), image_options)
    if _HUB_ID.fullmatch(source) and not source.lower().endswith(SUFFIXES):
        matching = (described for described in descriptions() if described.source == source)
        unnamed = Description(source, "preferences", source)
        return _open_described(next(matching, unnamed), image_options)
    home = " A home folder is written out, without '~'." if source.startswith("~") else ""
    raise DataError(
        f"{shortened(source)!r} is no file, no folder and no name in data/ ({', '.join(names)})."
        f"{nearest(source, names)}{home} Give one of these or a hub id such as organisation/name."
    )


def _open_described(description: Description, image_options: ImageOptions) -> tuple[str, Source]:
    open_described = FORMATS[description.form].open_described
    assert open_described is not None  # `read_description` accepts no other form
    if image_options.conversion is not None:
        description = replace(description, image_conversion=str(image_options.conversion))
    return description.name, open_described(description)


def _open_folder(folder: Path, image_options: ImageOptions) -> tuple[str, Source]:
    name = folder.resolve().name
    marking = next((form for form in FORMATS.values() if form.marks(folder)), None)
    if marking is not None and marking.open_folder is not None:
        return name, marking.open_folder(folder, image_options)
    if (folder / DESCRIPTION).is_file():
        description = read_description(folder / DESCRIPTION)
        if description.is_local:
            beside = (description, folder, image_options, FORMATS, _read_by_columns)
            return description.name, open_described_files(*beside)
        return _open_described(description, image_options)
    if marking is not None:
        return name, _open_file(folder / str(marking.marker), image_options)
    if any(data_format.marker == f"{name}/" for data_format in FORMATS.values()):
        raise DataError(
            f"{folder} is the inside of a released benchmark. Give the folder above it."
        )
    raise DataError(
        f"{folder} holds neither {_markers()}. Give such a folder, or name the file "
        f"({', '.join(SUFFIXES)}) itself."
    )


def _markers() -> str:
    return " nor ".join(form.marker for form in FORMATS.values() if form.marker)


def _open_file(path: Path, image_options: ImageOptions) -> Source:
    beside = path.parent / DATASET_INFO
    files = [path, *([beside] if beside.is_file() else [])]
    about = read_about(path.parent)
    read = partial(_read_file, path, image_options.or_as(about.get("image_conversion")))
    return Source(files, read, about=about)


def _read_file(path: Path, image_options: ImageOptions) -> ReadResult:
    """Reads a file by the first format that its columns are of, else as votes."""
    table = open_table(path)
    table.image_options = image_options
    return _read_by_columns(table, path)


def _read_by_columns(table: RowTable, path: Path) -> ReadResult:
    described = descriptions()
    for data_format in FORMATS.values():
        if data_format.read_table is not None:
            result = data_format.read_table(table, path, described)
            if result is not None:
                return result
    return votes_jsonl.read_votes(table, path)


def dimensions_of(cases: Sequence[Case]) -> tuple[str, ...]:
    """Returns the dimensions that some label mentions, the benchmark's six first in their order."""
    if not isinstance(cases, IndexedCases):
        return order_dimensions({dimension for case in cases for dimension in case.labels})
    names = cases.case_index.about["dimensions"]
    return order_dimensions([n for n in names if (label_column(cases, n)["votes"] > 0).any()])


def digest_of(cases: Sequence[Case]) -> str:
    """Returns the SHA-256 over what the cases say, whatever their order."""
    return joint_digest(column(cases, "digest"))
