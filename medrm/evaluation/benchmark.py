"""A benchmark: labelled cases with a name and published numbers; and what a model is asked on it.

To add one: write `evaluation/benchmarks/NAME.yaml`; `source` names its data in `data/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medrm.data.case_set import CaseSet, digest_of, dimensions_of, holds_described, read_set
from medrm.data.labels import LabelRules
from medrm.data.readers.votes_jsonl import phantom_folder
from medrm.data.sources import description_names
from medrm.data.store.indexed_cases import cluster_column
from medrm.errors import ConfigError, applying, nearest, raise_problems, report, unknown_keys
from medrm.evaluation.measures.accuracy import right_answers
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.files import asset, asset_names
from medrm.schema import Case
from medrm.scorer.verdict_rules import label_of
from medrm.statistics.intervals import mean

logger = logging.getLogger(__name__)

FOLDER = "evaluation/benchmarks"
RULES = {
    "always_a": "always the first answer",
    "always_b": "always the second answer",
    "majority": "the more frequent label",
    "longer": "the longer answer",
    "first_slot": "whichever is shown first",
    "random": "a coin",
}
"""What can be right without a model, in words."""

GROUPS = ("organ", "department", "modality")

_SHOWN = ("groups", "metrics", "published")

_Read = Callable[..., CaseSet]
"""`read_set` with all that does not depend on the source."""

_SCHEMA = 1
"""Counted up when the meaning of a kept line changes."""


@dataclass(frozen=True, slots=True)
class Published:
    """A number somebody else reported on the benchmark, with its source."""

    model: str
    accuracy: str
    source: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Labelled cases to be judged; none of them ever leaves the denominator.

    `source` holds the cases, their digest, and the reachable accuracy by dimension where that is
    known. `groups` names the properties of a case by which results are broken down. `metrics` are
    those of its authors, by their names in `measures.benchmark_metrics.METRICS`. `layout` is the
    benchmark whose form it has where it is not that benchmark.
    """

    name: str
    source: CaseSet
    groups: tuple[str, ...] = GROUPS
    published: tuple[Published, ...] = ()
    metrics: tuple[str, ...] = ()
    layout: str | None = None

    @property
    def cases(self) -> Sequence[Case]:
        """What is judged."""
        return self.source.cases

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that some label mentions."""
        return self.source.dimensions

    @property
    def clusters(self) -> int:
        """How many independent groups of cases there are."""
        return len(np.unique(cluster_column(self.cases)))

    def identity(self) -> dict[str, Any]:
        """Returns what reports say of the benchmark: its name, its data, how many cases it has."""
        return {
            "name": self.name,
            "revision": self.source.revision,
            "digest": self.source.digest,
            "cases": len(self.cases),
            "clusters": self.clusters,
            "synthetic": self.source.synthetic,
            **({"layout": self.layout} if self.layout else {}),
        }


@dataclass(frozen=True)
class Setup:
    """One evaluation before its result.

    Attributes:
        model: the name under which it is reported.
        weights: which weights they are; None: nothing says so.
        readout: how a verdict is read from it.
        dimensions: what it scores or is asked about.
        settings: what besides the weights could change a number.
        protocol: one of `PROTOCOLS`.
        window: how many cases are computed together; None: each by itself. Files of version 0.1
            have the scorer's lookahead by this name.
        processes: among which the cases are dealt; they change no response.
        crossfit: of a cross-fitted run, what `fold_measures` is to know; None: of one model.
        noise: dimension to how far a margin moves by rounding (`measures.rounding`); None: not
            measured.
        leak_check: what became of it (`leak_check.LeakCheck`); None: not recorded.
    """

    model: str
    weights: str | None
    readout: str
    dimensions: tuple[str, ...]
    settings: Mapping[str, Any]
    protocol: str
    window: int | None = None
    processes: int = 1
    crossfit: Mapping[str, Any] | None = None
    noise: Mapping[str, float] | None = None
    leak_check: Mapping[str, Any] | None = None

    def address(self, cases: Sequence[Case]) -> str | None:
        """Returns the SHA-256 of all that decides what the model says; None for unknown weights.

        Protocol and parser do not: what was said is read again.
        """
        if self.weights is None:
            return None
        decisive = {
            **{name: value for name, value in asdict(self).items() if name not in _FREE},
            "settings": {k: value for k, value in self.settings.items() if k != "parser"},
            "schema": _SCHEMA,
            "processes": 1,  # of which files of earlier versions have the number
            "cases": [digest_of([case]) for case in cases],
        }
        canonical = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


_FREE = ("model", "protocol", "noise", "processes", "leak_check")
"""What may change between two starts of one evaluation, or is known at its end."""


def baselines(
    cases: Sequence[Case], dimensions: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns the accuracies that need no model: rule -> dimension -> accuracy.

    `always_a`, `always_b`: a stored answer; `majority`: the label that is the more frequent one on
    the dimension; `longer`: the answer with most characters, the first one of equals;
    `first_slot`: whichever is shown first, over both orders of pairs (None where a case has more
    than two answers); `random`: what a coin expects, 1/K with K answers of which one is right.
    """
    scores = {name: rule_scores(cases, name) for name in dimensions}
    return {
        rule: {name: mean(scores[name].get(rule, {}).values()) for name in dimensions}
        for rule in RULES
    }


def rule_scores(cases: Sequence[Case], dimension: str) -> dict[str, dict[str, float]]:
    """Returns how right each rule of `baselines` is on each case, by its id.

    Only cases with a label for an answer are in it; a rule that does not apply is left out.
    """
    labelled = {
        case.case_id: ([len(answer) for answer in case.answers], best)
        for case in cases
        if (best := right_answers(label_of(case.labels.get(dimension), len(case.answers))[0]))
    }
    counts = Counter(chain.from_iterable(best for _, best in labelled.values()))
    frequent = max(counts, key=counts.__getitem__, default=0)
    rules: dict[str, Callable[[list[int], tuple[int, ...]], float]] = {
        "always_a": lambda _, best: 0 in best,
        "always_b": lambda _, best: 1 in best,
        "majority": lambda _, best: frequent in best,
        "longer": lambda lengths, best: lengths.index(max(lengths)) in best,
        "first_slot": lambda *_: 0.5,
        "random": lambda lengths, best: len(best) / len(lengths),
    }
    if any(len(lengths) != 2 for lengths, _ in labelled.values()):
        del rules["first_slot"]
    return {
        rule: {case_id: float(right(*case)) for case_id, case in labelled.items()}
        for rule, right in rules.items()
    }


def best_rule(
    table: Mapping[str, Mapping[str, float | None]], dimension: str
) -> tuple[str, float] | None:
    """Returns the rule of `baselines` that is right most often, with its accuracy.

    Of equal ones it is the one that `RULES` names first; None where no case is labelled.
    """
    reached = [(name, rate) for name in RULES if (rate := table[name][dimension]) is not None]
    return max(reached, key=itemgetter(1), default=None)


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
    """

    name: str
    data_root: str | None = None
    reported: str | None = None
    image_root: Path | None = None
    department_map: Path | None = None


def load_benchmark(
    name: str | BenchmarkRequest, data_root: str | None = None, rules: LabelRules | None = None
) -> Benchmark:
    """Returns a benchmark by its name in `evaluation/benchmarks/`, or a set of the user's own.

    A name stands for its data: what lies at `data_root` has the layout, the dimensions and the
    number of cases that the YAML file states, or it is reported under its own name, with the name
    of the layout and without the numbers that others published.

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
        read_set, rules=rules, department_map=asked.department_map, image_root=asked.image_root
    )
    if asked.name not in benchmark_names():
        return _own_benchmark(asked, read)
    settings = read_settings(asked.name)
    if asked.reported is not None:
        raise ConfigError(
            f"benchmark_name {asked.reported!r} names a set of your own; {asked.name!r} has its "
            "name. Leave it out, or give --benchmark PATH."
        )
    published = tuple(Published(**number) for number in settings.get("published", ()))
    groups, metrics = settings.get("groups", GROUPS), settings.get("metrics", ())
    benchmark = partial(Benchmark, groups=tuple(groups), metrics=tuple(metrics))
    if asked.data_root is None:
        source = _drawn(settings, read) or read(settings["source"])
        return benchmark(asked.name, source, published=published)
    if not Path(asked.data_root).exists():
        raise ConfigError(
            f"data_root {asked.data_root!r} does not exist; give the folder or file that holds the "
            "benchmark's cases"
        )
    source = read(asked.data_root, described=settings["source"])
    differences = _differences(settings, asked.data_root, source, read)
    if not differences:
        return benchmark(asked.name, source, published=published)
    own_name = _own_name(asked.data_root, source)
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
    drawn = _drawn(settings, read)
    if drawn is not None:
        return [] if source.digest == drawn.digest else ["its cases are not those that are drawn"]
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
    return applying(differences)


def _own_name(path: str, source: CaseSet) -> str:
    """Returns the name under which a user's set is reported: never one of another benchmark."""
    name = source.name if not Path(path).is_dir() else Path(path).resolve().name
    name = name or "root"
    return f"{name}-{source.digest[:8]}" if name in benchmark_names() else name


def _own_benchmark(asked: BenchmarkRequest, read: _Read) -> Benchmark:
    """Returns a set of the user's own as a benchmark."""
    names = benchmark_names()
    if asked.reported in names:
        raise ConfigError(
            f"benchmark_name {asked.reported!r} is that of a benchmark, which stands for its own "
            "data; give another."
        )
    is_known = Path(asked.name).exists() or asked.name in description_names() or "/" in asked.name
    if not is_known:
        raise ConfigError(
            f"benchmark {asked.name!r} is unknown; known: {', '.join(names)}."
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
        lines = [f"{row.case_id}: {row.reason}" for row in source.excluded]
        title = f"{len(lines)} rows of benchmark {source.name!r} are no cases, and are not judged:"
        logger.warning("%s", report(title, lines, limit=5))
    name = asked.reported or _own_name(asked.name, source)
    return Benchmark(name, source)


def read_settings(name: str) -> dict[str, Any]:
    """Returns the content of a benchmark's YAML file.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    path = asset(f"{FOLDER}/{name}.yaml")
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    accepted = ("source", "cases", "seed", "dimensions", "digest", *_SHOWN)
    problems = unknown_keys(settings, accepted)
    problems += [
        f"metric {name!r} is unknown; known: {', '.join(METRICS)}.{nearest(name, METRICS)}"
        for name in settings.get("metrics", [])
        if name not in METRICS
    ]
    if "source" not in settings:
        problems.append("key 'source' is missing: a name in data/")
    if "seed" in settings and "cases" not in settings:
        problems.append("seed draws a phantom set of so many cases; give cases too")
    raise_problems(ConfigError, path, problems)
    return settings


def benchmark_from_cases(name: str, source: CaseSet, cases: Sequence[Case]) -> Benchmark:
    """Returns some cases of a set as a benchmark, such as the test part of the training data.

    The ceiling stays that of the whole set: what the same experts leave within reach.
    """
    digest, dimensions = digest_of(cases), dimensions_of(cases)
    chosen = replace(source, cases=cases, digest=digest, dimensions=dimensions, excluded=())
    return Benchmark(name, chosen)
