"""A benchmark by its name, whose data are checked against what stands of it, or a set of one's own.

To add one: write `evaluation/benchmarks/NAME.yaml`; `source` names its data in `data/`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medrm.data.case_set import CaseSet, holds_described, read_set
from medrm.data.labels import LabelRules
from medrm.data.mixture import check_is_one_set
from medrm.data.readers.votes_jsonl import phantom_folder
from medrm.data.sources import description_names, is_path
from medrm.errors import (
    ConfigError,
    alike_together,
    applying,
    nearest,
    raise_problems,
    report,
    shortened,
    unknown_keys,
)
from medrm.evaluation.benchmark import GROUPS, Benchmark, Published
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.files import asset, asset_names, file_digest, fits

logger = logging.getLogger(__name__)

FOLDER = "evaluation/benchmarks"

_SHOWN = ("groups", "metrics", "published")

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

_Read = Callable[..., CaseSet]
"""`read_set` with all that does not depend on the source."""


def benchmark_names() -> list[str]:
    """Returns the names that `load_benchmark` knows."""
    return asset_names(FOLDER, "*.yaml")


@dataclass(frozen=True)
class BenchmarkRequest:
    """Which benchmark is asked for.

    Attributes:
        name: in `evaluation/benchmarks/`; or a set of the user's own, as `case_set.read_set` takes
            it: a path, a name in `data/`, the id of a hub data set.
        data_root: a local folder or file that holds the cases of a name; None: its source.
        reported: the name under which a set of the user's own is reported; None: that of its file
            or folder.
        image_root: a folder of images, absolute paths and links into which are followed.
        department_map: YAML or JSON file of organ to department.
        image_conversion: by which medical images become pictures; None: as the set says.
    """

    name: str
    data_root: str | None = None
    reported: str | None = None
    image_root: Path | None = None
    department_map: Path | None = None
    image_conversion: str | None = None


def load_benchmark(
    name: str | BenchmarkRequest, data_root: str | None = None, rules: LabelRules | None = None
) -> Benchmark:
    """Returns a benchmark by its name in `evaluation/benchmarks/`, or a set of the user's own.

    A name stands for its data: what lies at `data_root` has the layout, the dimensions, the number
    of cases and the digests that the YAML file states, or it is reported under its own name, with
    the name of the layout and without the numbers that others published.

    Args:
        name: of the YAML file, or all that is asked.
        data_root: a local folder or file that holds its cases; None: its source.
        rules: how votes become labels.

    Raises:
        ConfigError: the name is unknown, or its source cannot be had.
        DataError: the cases are not as they should be.
    """
    asked = name if isinstance(name, BenchmarkRequest) else BenchmarkRequest(name, data_root)
    read = partial(
        read_set,
        rules=rules,
        department_map=asked.department_map,
        image_root=asked.image_root,
        image_conversion=asked.image_conversion,
    )
    if asked.name not in benchmark_names():
        return _own_benchmark(asked, read)
    settings = read_settings(asked.name)
    if asked.reported is not None:
        raise ConfigError(
            f"the name {asked.reported!r} is for a set of your own; benchmark {asked.name!r} has "
            "its name. Leave it out, or give --benchmark PATH."
        )
    published = tuple(Published(**number) for number in settings.get("published", ()))
    groups, metrics = settings.get("groups", GROUPS), settings.get("metrics", ())
    benchmark = partial(Benchmark, groups=tuple(groups), metrics=tuple(metrics))
    if asked.data_root is None:
        source = _drawn(settings, read) or read(settings["source"])
        return benchmark(asked.name, source, published=published)
    if not is_path(asked.data_root):
        raise ConfigError(
            f"data_root {shortened(asked.data_root)!r} does not exist; give the folder or file "
            "that holds the benchmark's cases"
        )
    source = read(asked.data_root, described=settings["source"])
    differences = _differences(settings, asked.data_root, source, read)
    if not differences:
        return benchmark(asked.name, source, published=published)
    root = Path(asked.data_root).resolve()
    own_name = _own_name(root.name if root.is_dir() else root.stem, source)
    logger.warning(
        "data_root holds not %s: %s. It is reported as %s, without the numbers that others "
        "published of %s.", asked.name, "; ".join(differences), own_name, asked.name,
    )  # fmt: skip
    return benchmark(own_name, source, layout=asked.name)


def _drawn(settings: Mapping[str, Any], read: _Read) -> CaseSet | None:
    """Returns the cases of a benchmark that is drawn; None of another."""
    if "seed" not in settings:
        return None
    folder = phantom_folder(settings["cases"], settings["seed"])
    return replace(read(str(folder)), revision=folder.name)


def _differences(
    settings: Mapping[str, Any], data_root: str, source: CaseSet, read: _Read
) -> list[str]:
    """Returns in what a set is not the benchmark that its YAML file describes."""
    if "seed" in settings:
        drawn = _drawn(settings, read) if len(source.cases) == settings["cases"] else None
        is_drawn = drawn is not None and source.digest == drawn.digest
        return [] if is_drawn else ["its cases are not those that are drawn"]
    cases, dimensions = settings.get("cases"), settings.get("dimensions", ())
    digest = settings.get("digest")
    found = ", ".join(source.dimensions)
    differences = {
        "it is not in the released layout": not holds_described(settings["source"], data_root),
        f"it has {len(source.cases)} cases, not {cases}": cases not in (None, len(source.cases)),
        f"its labels are for {found}, not for {', '.join(dimensions)}": (
            set(source.dimensions) != set(dimensions or source.dimensions)
        ),
        f"its digest is {source.digest[:12]}, not {str(digest)[:12]}": (
            digest not in (None, source.digest)
        ),
    }
    return applying(differences | _other_files(Path(data_root), settings.get("sha256", {})))


def _other_files(data_root: Path, pinned: Mapping[str, str]) -> dict[str, bool]:
    """Returns what is said of files that are not those of which the SHA-256 is stated, and whether.

    Args:
        data_root: the folder that they lie in, or the file itself.
        pinned: the path in the folder to the SHA-256.
    """
    said: dict[str, bool] = {}
    for name, digest in pinned.items():
        path = (data_root if data_root.is_dir() else data_root.parent) / name
        found = file_digest(path) if path.is_file() else None
        said[f"it has no file {name}"] = found is None
        other = f"the SHA-256 of {name} is {str(found)[:12]}, not {digest[:12]}"
        said[other] = found is not None and found != digest.lower()
    return said


def _own_name(name: str, source: CaseSet) -> str:
    """Returns the name under which a user's set is reported: never one of another benchmark."""
    name = name or "root"
    return f"{name}-{source.digest[:8]}" if name in benchmark_names() else name


def _own_benchmark(asked: BenchmarkRequest, read: _Read) -> Benchmark:
    """Returns a set of the user's own as a benchmark."""
    names = benchmark_names()
    if asked.reported in names:
        raise ConfigError(
            f"the name {asked.reported!r} is that of a benchmark, which stands for its own data; "
            "give a set of your own another."
        )
    check_is_one_set(asked.name)
    is_known = is_path(asked.name) or asked.name in description_names() or "/" in asked.name
    if not is_known:
        raise ConfigError(
            f"benchmark {shortened(asked.name)!r} is unknown; known: {', '.join(names)}."
            f"{nearest(asked.name, names)} Or give the path of a set of your own, a name in data/ "
            "or the id of a hub data set."
        )
    if asked.data_root is not None:
        raise ConfigError(
            f"data_root is where the files of a benchmark lie, but {asked.name!r} is none of "
            f"{', '.join(names)}. Leave it out: --benchmark PATH is read from that path."
        )
    source = read(asked.name)
    if source.excluded:
        lines = alike_together([f"{row.case_id!r}: {row.reason}" for row in source.excluded])
        title = f"{len(source.excluded)} rows of {source.name!r} are no cases, and are not judged:"
        logger.warning("%s", report(title, lines, limit=5))
    name = asked.reported or _own_name(source.name, source)
    return Benchmark(name, source)


def read_settings(name: str) -> dict[str, Any]:
    """Returns the content of a benchmark's YAML file.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    path = asset(f"{FOLDER}/{name}.yaml")
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    accepted = ("source", "cases", "seed", "dimensions", "digest", "sha256", *_SHOWN)
    problems = unknown_keys(settings, accepted)
    problems += [
        f"metric {name!r} is unknown; known: {', '.join(METRICS)}.{nearest(name, METRICS)}"
        for name in settings.get("metrics", [])
        if name not in METRICS
    ]
    pinned = settings.get("sha256", {})
    if not fits(pinned, dict[str, str]):
        problems.append("sha256 is no list of paths in the data, each with its SHA-256")
    else:
        problems += [
            f"sha256 of {shortened(name)!r}: give a path inside the data and 64 hexadecimal digits"
            for name, digest in pinned.items()
            if not _SHA256.fullmatch(digest)
            or PurePosixPath(name).is_absolute()
            or ".." in PurePosixPath(name).parts
        ]
    if "source" not in settings:
        problems.append("key 'source' is missing: a name in data/")
    if "seed" in settings and "cases" not in settings:
        problems.append("seed draws a phantom set of so many cases; give cases too")
    raise_problems(ConfigError, path, problems)
    return settings
