"""The data sets named in `data/`: what each `dataset.yaml` says, and how the set is had."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from medrm.assets import asset, cache_dir
from medrm.data.readers.med_rewardbench import FOLDER
from medrm.data.readers.preferences import PreferenceColumns
from medrm.data.row_tables import RowTable, dataset_table
from medrm.data.store.cache import appear
from medrm.errors import ConfigError, first_line, nearest, report

DESCRIPTION = "dataset.yaml"
FORMS = ("layout", "preferences", "phantom")
RELEASED = ("pairs", "best_of", "criteria")
"""Forms of benchmarks whose tables are read as their authors released them."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Description:
    """One `data/<name>/dataset.yaml`.

    `form` is how the source is laid out; `source` its hub id, none where the user brings the files
    or the set is drawn; `revision` the branch, tag or commit that is loaded; `split` the split that
    is read; `files` the patterns of the files of a released benchmark, its tables and images;
    `columns` the columns of its rows or of preference rows by what they hold, groups included;
    `subsets` name to a pattern in `category/id/path`; `dimension` what the preference is about;
    `cases` and `seed` belong to the phantom set.
    """

    name: str
    form: Literal["layout", "preferences", "phantom", "pairs", "best_of", "criteria"]
    source: str | None = None
    revision: str = "main"
    split: str = "train"
    dimension: str = "overall"
    columns: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    subsets: Mapping[str, str] = field(default_factory=dict)
    cases: int = 0
    seed: int = 0

    @property
    def preference_columns(self) -> PreferenceColumns:
        """The column map, what is no column of a preference being a group."""
        known = {item.name for item in dataclasses.fields(PreferenceColumns)} - {
            "groups",
            "dimension",
        }
        columns = {key: column for key, column in self.columns.items() if key in known}
        groups = {key: column for key, column in self.columns.items() if key not in known}
        return PreferenceColumns(**columns, dimension=self.dimension, groups=groups)


def description_names() -> list[str]:
    """Returns the names in `data/`."""
    return sorted(path.parent.name for path in asset("data").glob(f"*/{DESCRIPTION}"))


def read_description(path: Path) -> Description:
    """Returns what a `dataset.yaml` says.

    Raises:
        ConfigError: every unknown key and wrong value, in one message.
    """
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys; it describes a data set by `key: value` lines.")
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "form": str,
        "source": (str, type(None)),
        "revision": str,
        "split": str,
        "dimension": str,
        "columns": dict,
        "files": list,
        "subsets": dict,
        "cases": int,
        "seed": int,
    }
    problems = [
        f"unknown key {key!r}.{nearest(str(key), kinds)}" for key in content if key not in kinds
    ]
    problems += [f"key {key!r} is missing" for key in ("name", "form") if key not in content]
    problems += [
        f"{key} is {value!r}, which is no {kinds[key]}"
        for key, value in content.items()
        if key in kinds and not isinstance(value, kinds[key])
    ]
    columns = content.get("columns", {})
    if isinstance(columns, dict) and not all(isinstance(name, str) for name in columns.values()):
        problems.append("columns maps what a column holds to the column's name")
    if not problems and content["form"] not in (forms := (*FORMS, *RELEASED)):
        problems.append(f"form is {content['form']!r}; accepted: {', '.join(forms)}")
    if problems:
        raise ConfigError(report(f"{path} has {len(problems)} problems.", problems))
    return Description(**content)


def descriptions() -> list[Description]:
    """Returns all descriptions in `data/`, by name."""
    return [read_description(asset(f"data/{name}/{DESCRIPTION}")) for name in description_names()]


def descriptions_digest() -> str:
    """Returns a digest of all descriptions, by whose columns a set may be read."""
    digest = hashlib.sha256()
    for path in sorted(asset("data").glob(f"*/{DESCRIPTION}")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_hub_id(source: str) -> bool:
    """Tells whether a source that is no path reads like `organisation/name`."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(
        (".jsonl", ".json", ".parquet")
    )


def phantom_folder(cases: int, seed: int) -> Path:
    """Returns the folder of a phantom set, drawn once and kept in the cache.

    Raises:
        ConfigError: the cache cannot be written.
    """
    from medrm.data.phantom.layouts import VERSION, write_phantom

    folder = cache_dir() / "phantom" / f"version{VERSION}-seed{seed}-cases{cases}"
    if not folder.is_dir():
        appear(folder, lambda draft: write_phantom(draft, cases=cases, seed=seed))
    return folder


def hub_layout(source: str, revision: str) -> Path:
    """Returns the local copy of a hub data set in the released layout; its folder name is the
    commit.

    Raises:
        ConfigError: not found, no access, or no network.
    """
    folder = hub_files(source, revision, [f"{FOLDER}/**"])
    if not (folder / FOLDER).is_dir():
        raise ConfigError(
            f"The hub data set {source!r} (revision {revision}) holds no {FOLDER}/; accepted is "
            f"the "
            "released layout. Name another revision, or bring the files."
        )
    return folder


def hub_files(source: str, revision: str, patterns: Sequence[str]) -> Path:
    """Returns the local copy of some files of a hub data set; its folder name is the commit.

    Raises:
        ConfigError: not found, no access, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                source, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _not_had(source, revision, error) from error


def hub_table(source: str, revision: str, split: str) -> tuple[RowTable, str]:
    """Returns the rows of one split of a hub data set, and the commit they come from.

    Raises:
        ConfigError: not found, no access, no such split, or no network.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(source, revision=revision, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise _not_had(source, revision, error) from error
    commits = [re.search(r"@([0-9a-f]{40})/", url) for url in data.info.download_checksums or {}]
    commit = next((match[1] for match in commits if match), revision)
    nowhere = cache_dir() / "no-files"  # its images are stored in the rows
    return dataset_table(data, source, nowhere, nowhere), commit


def _not_had(source: str, revision: str, error: Exception) -> ConfigError:
    reason = first_line(error).rstrip(".")
    return ConfigError(
        f"The hub data set {source!r} (revision {revision}) cannot be had: {reason}. Accepted are "
        f"a local "
        f"file or folder, a name in data/ ({', '.join(description_names())}), or a hub id that "
        f"can be "
        "reached. Check the id, the network (HF_HUB_OFFLINE) and the access (HF_TOKEN)."
    )
