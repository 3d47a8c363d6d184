"""Where cases come from: formats, descriptions, files of the hub, and what a reader returns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medrm.data.image_references import ImageOptions
from medrm.data.row_tables import RowTable, dataset_table, read_json_file
from medrm.errors import ConfigError, DataError, first_line, raise_problems, shortened
from medrm.files import asset, cache_dir, fits
from medrm.schema import Choice, ImageRef, Ranking, Turn

Strength = Literal["slightly", "strongly"]
"""How far an answer is better, where the vote says more than which one."""

VoteValue = Choice | Ranking | Literal["neither"]
"""What a vote says."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One annotator's vote on one dimension.

    Attributes:
        annotator: who votes.
        value: a choice for a pair, or "neither" where no answer is acceptable; of more answers a
            ranking.
        strength: of a vote for an answer; None: it states none.
        seconds: that the decision took.
        confidence: as the annotator stated it.
        reason: that the annotator gave.
    """

    annotator: str
    value: VoteValue
    strength: Strength | None = None
    seconds: float | None = None
    confidence: str | float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """What an annotator said of a case besides votes, and further columns of that line."""

    annotator: str
    comment: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class CaseDraft:
    """A case as its source states it: votes, not yet labels; cluster keys, not yet a cluster.

    `votes` maps each dimension to its votes. `independent` holds keys such as `patient:17`: cases
    that share one belong to one cluster. `remarks` are kept and never interpreted.
    """

    case_id: str
    images: tuple[ImageRef, ...]
    question: str
    answers: tuple[str, ...]
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    independent: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    context: tuple[Turn, ...] = ()
    remarks: list[Remark] = field(default_factory=list)


LONGEST_NAME = 512
"""Characters of a case's id or of a dimension's name."""

MOST_DIMENSIONS = 256
"""Of one case, and of one set."""


def size_problem(case_id: object, dimensions: Collection[str]) -> str | None:
    """Returns what is too long or too much to be meant, before any work is done for it.

    Args:
        case_id: of a case, or what stands in its place.
        dimensions: of its labels.
    """
    if isinstance(case_id, str) and len(case_id) > LONGEST_NAME:
        return f"the id has {len(case_id):,} characters; give at most {LONGEST_NAME}"
    if len(dimensions) > MOST_DIMENSIONS:
        return f"there are {len(dimensions):,} dimensions; give at most {MOST_DIMENSIONS}"
    longest = max(map(len, dimensions), default=0)
    if longest > LONGEST_NAME:
        return f"a dimension's name has {longest:,} characters; give at most {LONGEST_NAME}"
    return None


@dataclass(frozen=True)
class Excluded:
    """A case or row that was set aside, and why."""

    case_id: str
    reason: str


@dataclass
class ReadResult:
    """What a reader returns: drafts of cases, read as they are asked for, and rows set aside.

    Problems are raised when all drafts were asked for; only then is `excluded` complete.
    """

    drafts: Iterable[CaseDraft]
    excluded: list[Excluded] = field(default_factory=list)


DESCRIPTION = "dataset.yaml"
ABOUT_FILE = "dataset.json"


@dataclass(frozen=True)
class Description:
    """One `data/<name>/dataset.yaml`.

    `form` is the data format, a name of `medrm.data.case_set.FORMATS`; `source` its hub id, none
    where the user brings the files or the set is drawn; `revision` the branch, tag or commit that
    is loaded; `split` the split that is read; `files` the files, or patterns of them, of a released
    benchmark (tables and images) or of a set that lies beside the description; `images` a folder
    beside it in which images are looked for first; `columns` the columns of rows by what they hold,
    groups included; `subsets` name to a pattern in `category/id/path`; `dimension` what the
    preference is about; `cases` and `seed` belong to the phantom set. The form of files beside the
    description may be left out, and is then known by their columns.
    """

    name: str
    form: str = ""
    source: str | None = None
    revision: str = "main"
    split: str = "train"
    dimension: str = "overall"
    columns: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    images: str | None = None
    subsets: dict[str, str] = field(default_factory=dict)
    cases: int = 0
    seed: int = 0
    image_conversion: str | None = None

    @property
    def image_options(self) -> ImageOptions:
        """What it says of images."""
        return ImageOptions().or_as(self.image_conversion)

    @property
    def is_local(self) -> bool:
        """Whether it is of files that lie beside it."""
        return bool(self.files) and self.source is None

    @property
    def hub_id(self) -> str:
        """The hub data set.

        Raises:
            DataError: there is none, for the user must bring the files.
        """
        if self.source is None:
            raise DataError(
                f"The files of {self.name!r} must be brought: data/{self.name}/README.md says from "
                "where. Give the path of the file, with the images below its folder."
            )
        return self.source


@dataclass(frozen=True)
class Source:
    """What a set is read from: its files, the function that reads them, and what is known of it.

    `revision` is a commit of the hub, or `local`. `about` is the content of `dataset.json` beside
    the data. `hub_id` is the data set of the hub that it comes from; None: files of the user, or
    drawn. Nothing is read before `read` is called, for the cache may hold the set's index.
    """

    files: Sequence[Path]
    read: Callable[[], ReadResult]
    revision: str = "local"
    about: Mapping[str, Any] = field(default_factory=dict)
    hub_id: str | None = None


@dataclass(frozen=True)
class DataFormat:
    """A form of annotation: how a source of that form is recognised, and who reads it.

    A format is one file in `medrm/data/readers/` and one entry in `medrm.data.case_set.FORMATS`.
    Each attribute is one way in which users bring data; None where the format does not come so.
    Rows of a file need `read_table` alone:

        def read_toy(table, path, descriptions):
            if "toy_id" not in table.columns:
                return None  # another format's
            drafts = (
                CaseDraft(
                    row["toy_id"], (), row["question"], (row["first"], row["second"]),
                    votes={"overall": [Vote("reader-1", 0)]},  # 0: the first answer; or 1, "tie"
                )
                for _, row in table.rows
            )
            return ReadResult(drafts)

        FORMATS["toy"] = DataFormat(read_table=read_toy)

    The index in the cache does not know a reader's code: clear the cache when the reader changes.

    Attributes:
        marker: the file, or with a slash at the end the folder, that makes a folder a set of this
            format.
        open_folder: returns the source in such a folder, given what the user says of images; None:
            the marker is a file, which is read as any other.
        read_table: reads the rows of a file at a path; returns None where they are of another
            format, as their columns show. The descriptions are those of `data/`.
        open_described: returns the source that a `dataset.yaml` with this format as its `form`
            describes, from the hub or drawn.
        open_files: returns the source that such a `dataset.yaml` describes in a folder or file of
            the user's; None where it is not there. The last argument is as in `open_folder`.
        read_described: reads rows by the columns and the dimension of one description.
    """

    marker: str | None = None
    open_folder: Callable[[Path, ImageOptions], Source] | None = None
    read_table: Callable[[RowTable, Path, Sequence[Description]], ReadResult | None] | None = None
    open_described: Callable[[Description], Source] | None = None
    open_files: Callable[[Description, Path, ImageOptions], Source | None] | None = None
    read_described: Callable[[RowTable, Path, Description], ReadResult] | None = None

    def marks(self, folder: Path) -> bool:
        """Tells whether a folder is a set of this format."""
        if self.marker is None:
            return False
        path = folder / self.marker
        return path.is_dir() if self.marker.endswith("/") else path.is_file()


def is_path(source: str) -> bool:
    """Returns whether there is a file or folder of that name, which any text may be."""
    with suppress(UnicodeEncodeError):
        longest = max(len(os.fsencode(name)) for name in source.split("/"))
        # No file system knows longer ones, as lists of sources may be.
        return bool(source) and longest < 256 and len(source) < 4096 and Path(source).exists()
    return False


def description_names() -> list[str]:
    """Returns the names in `data/`."""
    return sorted(path.parent.name for path in asset("data").glob(f"*/{DESCRIPTION}"))


def read_about(folder: Path) -> dict[str, Any]:
    """Returns what `dataset.json` beside the data says of it.

    Raises:
        DataError: it is there, but no JSON object, or says something else than it may.
    """
    path = folder / ABOUT_FILE
    about: dict[str, Any] = read_json_file(path) if path.is_file() else {}
    if not isinstance(about, dict):
        raise DataError(f"{path} must hold a JSON object.")
    expected = {
        "ceiling": (dict[str, float], "dimension to a number"),
        "synthetic": (bool, "true"),
        "image_conversion": (str, "the name of a conversion"),
    }
    problems = [
        f"{key} is {shortened(repr(about[key]))}; give {words}, or leave it out"
        for key, (kind, words) in expected.items()
        if not fits(about.get(key, kind()), kind)
    ]
    raise_problems(DataError, path, problems)
    return about


def hub_files(description: Description, patterns: Sequence[str]) -> Path:
    """Returns the local copy of some files of a hub data set; its folder name is the commit.

    Its files are links into the folder of the repository, two levels above.

    Raises:
        DataError: the set has no hub id.
        ConfigError: not found, no access, or no network.
    """
    from huggingface_hub import snapshot_download

    hub_id, revision = description.hub_id, description.revision
    with _available(hub_id, revision, OSError):
        folder = snapshot_download(
            hub_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
        )
    return Path(folder)


def hub_table(description: Description) -> tuple[RowTable, str]:
    """Returns the rows of one split of a hub data set, and the commit they come from.

    Raises:
        DataError: the set has no hub id.
        ConfigError: not found, no access, no such split, or no network.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    hub_id, revision = description.hub_id, description.revision
    with _available(hub_id, revision, DatasetsError, OSError, ValueError, RuntimeError):
        named = {"data_files": description.files} if description.files else {}
        data = load_dataset(hub_id, revision=revision, split=description.split, **named)
    commits = [re.search(r"@([0-9a-f]{40})/", url) for url in data.info.download_checksums or {}]
    commit = next((match[1] for match in commits if match), revision)
    nowhere = cache_dir() / "no-files"  # its images are stored in the rows
    table = dataset_table(data, hub_id, nowhere, nowhere)
    table.image_options = description.image_options
    return table, commit


@contextmanager
def _available(hub_id: str, revision: str, *errors: type[Exception]) -> Iterator[None]:
    """Names the data set and what to do where one of the errors ends a download."""
    try:
        yield
    except errors as error:
        reason, names = first_line(error).rstrip("."), ", ".join(description_names())
        raise ConfigError(
            f"The hub data set {hub_id!r} (revision {revision}) cannot be had: {reason}. Accepted "
            f"are a local file or folder, a name in data/ ({names}), or a hub id that can be "
            "reached. Check the id, the network (HF_HUB_OFFLINE) and the access (HF_TOKEN)."
        ) from error
