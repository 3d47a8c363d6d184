"""The data formats, `FORMATS`, and the data sets that are described in `data/`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from medrm.assets import asset
from medrm.data.readers import benchmarks, med_rewardbench, phantom_set, preferences, votes_jsonl
from medrm.data.sources import DESCRIPTION, DataFormat, Description, description_names
from medrm.errors import ConfigError, nearest, report

FORMATS: dict[str, DataFormat] = {
    "layout": DataFormat(
        marker=f"{med_rewardbench.FOLDER}/",
        open_folder=med_rewardbench.open_layout,
        open_described=med_rewardbench.open_hub_layout,
    ),
    "votes": DataFormat(
        marker=votes_jsonl.VOTES_FILE, read_table=votes_jsonl.read_votes_by_columns
    ),
    "preferences": DataFormat(
        read_table=preferences.read_preferences_by_columns,
        open_described=preferences.open_hub_preferences,
    ),
    "phantom": DataFormat(open_described=phantom_set.open_phantom),
    "pairs": benchmarks.released_format(benchmarks.read_pair),
    "best_of": benchmarks.released_format(benchmarks.read_best_of),
    "criteria": benchmarks.released_format(benchmarks.read_criterion),
}
"""Name to data format. The first one that recognises a folder or file reads it; a file that none
recognises is read as votes, whose reader says what is missing. A format from outside the package
is added by putting an entry into this dict."""

_KEY_TYPES: dict[str, type | tuple[type, ...]] = {
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


def read_description(path: Path) -> Description:
    """Returns what a `dataset.yaml` says.

    Raises:
        ConfigError: every unknown key and wrong value, in one message.
    """
    described: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict):
        raise ConfigError(f"{path} holds no keys; it describes a data set by `key: value` lines.")
    problems = [
        f"unknown key {key!r}.{nearest(str(key), _KEY_TYPES)}"
        for key in described
        if key not in _KEY_TYPES
    ]
    problems += [f"key {key!r} is missing" for key in ("name", "form") if key not in described]
    problems += [
        f"{key} is {value!r}, which is no {_KEY_TYPES[key]}"
        for key, value in described.items()
        if key in _KEY_TYPES and not isinstance(value, _KEY_TYPES[key])
    ]
    columns = described.get("columns", {})
    if isinstance(columns, dict) and not all(isinstance(name, str) for name in columns.values()):
        problems.append("columns maps what a column holds to the column's name")
    forms = [name for name, data_format in FORMATS.items() if data_format.open_described]
    if not problems and described["form"] not in forms:
        problems.append(f"form is {described['form']!r}; accepted: {', '.join(forms)}")
    if problems:
        raise ConfigError(report(f"{path} has {len(problems)} problems.", problems))
    return Description(**described)


def named_description(name: str) -> Description:
    """Returns the description of a name in `data/`."""
    return read_description(asset(f"data/{name}/{DESCRIPTION}"))


def descriptions() -> list[Description]:
    """Returns all descriptions in `data/`, by name."""
    return [named_description(name) for name in description_names()]


def descriptions_digest() -> str:
    """Returns a digest of all descriptions, by whose columns a set may be read."""
    digest = hashlib.sha256()
    for path in sorted(asset("data").glob(f"*/{DESCRIPTION}")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
