"""A leaderboard: which models it names, and the table of their evaluation folders; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import yaml

from medrm.errors import (
    ConfigError,
    nearest,
    raise_problems,
    report,
    unknown_keys,
    without_paths,
)
from medrm.evaluation.benchmark import Benchmark, best_rule
from medrm.evaluation.measures.accuracy import case_scores
from medrm.evaluation.records.jsonl import read_verdicts, verdicts_by
from medrm.evaluation.report import Report, robust_of
from medrm.files import asset, asset_names, fits
from medrm.readouts import OPTION_READOUTS
from medrm.scorer.engines import ENGINES
from medrm.statistics.intervals import mean_interval
from medrm.statistics.significance import rank_ranges, sign_flip_test


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model got right, from its evaluation folder under the robust protocol.

    Attributes:
        scores: dimension to case to mean score over the presented orders, labelled cases only.
        clusters: case to cluster.
    """

    scores: Mapping[str, Mapping[str, float]]
    clusters: Mapping[str, str]


def read_judged(folder: Path) -> Judged:
    """Returns the scores of an evaluation folder.

    Raises:
        DataError: its verdicts are missing or unreadable.
    """
    robust = [row for row in read_verdicts(folder / "verdicts.jsonl") if row.protocol == "robust"]
    of_dimension = verdicts_by(robust, attrgetter("dimension")).items()
    scores = {name: case_scores(rows) for name, rows in of_dimension}
    return Judged(scores, {row.case_id: row.cluster for row in robust})


def rankings(models: Mapping[str, Judged], dimension: str) -> dict[str, dict[str, Any]]:
    """Returns, for each model that judged all labelled cases, where it stands on a dimension.

    Args:
        models: name to what it judged.
        dimension: on which they are ranked.

    Returns:
        Name to `rank_range` [best, worst] (see `statistics.rank_ranges`) and `to_best`: `delta`
        (this accuracy less that of the best model), `ci95` of it (None below two clusters) and `p`
        of the sign-flip test, adjusted by max-T for all models that are compared with the best one;
        None for the best model itself.
    """
    judged = {name: model.scores.get(dimension, {}) for name, model in models.items()}
    cases = sorted({case for scores in judged.values() for case in scores})
    names = sorted(name for name, scores in judged.items() if scores and len(scores) == len(cases))
    if not names:
        return {}
    clusters = [models[names[0]].clusters[case] for case in cases]
    scores = np.array([[judged[name][case] for case in cases] for name in names])  # (models, n)
    best = int(scores.mean(axis=1).argmax())
    differences = (scores - scores[best]).T  # (n, models)
    adjusted = sign_flip_test(differences, clusters).adjusted
    ranges = rank_ranges(scores, clusters)
    ranked: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        ranked[name] = {"rank_range": list(ranges[number]), "to_best": None}
        if number != best:
            interval = mean_interval(differences[:, number].tolist(), clusters, span=(-1.0, 1.0))
            difference = {"delta": interval.mean, "ci95": interval.bounds}
            ranked[name]["to_best"] = {**difference, "p": adjusted[number]}
    return ranked


FOLDER = "evaluation/leaderboards"

_LONGEST = 200
_REVISION = re.compile(r"[\w][\w./-]*")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that a leaderboard names.

    Attributes:
        name: under which it is reported.
        model: hub repository, folder, `mock:NAME`, or a service's model; None: nothing to load.
        engine: what runs it, one of `ENGINES`.
        remote_code: whether it needs the code that its checkpoint ships.
        proprietary: whether it runs behind a service that asks for a key.
        revision: branch, tag or commit of the hub repository.
        base: where the base of a saved model lies now; None: it is looked for.
        note: what a reader should know of it.
        options: how this judge is asked, in place of what is asked of the whole list.
        price_per_million_prompt_tokens: for the cost of a dry run.
        price_per_million_completion_tokens: likewise, of the replies.
    """

    name: str
    model: str | None
    engine: str = "transformers"
    remote_code: bool = False
    proprietary: bool = False
    revision: str | None = None
    base: str | None = None
    note: str | None = None
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    price_per_million_prompt_tokens: float | None = None
    price_per_million_completion_tokens: float | None = None

    @property
    def slug(self) -> str:
        """The name of its folder: lower case, without a character that a path could mean."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The models to be evaluated on one benchmark."""

    name: str
    benchmark: str
    entries: tuple[ListedModel, ...]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What became of a listed model: its report and what it judged, or why there is none."""

    listed: ListedModel
    state: Literal["done", "skipped", "failed"]
    report: Report | None = None
    reason: str | None = None
    judged: Judged | None = None


_OPTIONS: dict[str, Any] = {"readout": str, "judge_prompt": str, "votes": int}
_OPTIONS |= {"judge_temperature": int | float, "max_new_tokens": int}
"""What an entry may ask for, and its types; a prompt file is the user's alone to name."""

_TYPES = get_type_hints(ListedModel) | {"options": dict}
"""The keys of an entry, and their types."""


def leaderboard_names() -> list[str]:
    """Returns the names that `read_leaderboard` knows."""
    return asset_names(FOLDER, "*.yaml")


def read_leaderboard(name: str) -> Leaderboard:
    """Returns the leaderboard of that name in evaluation/leaderboards/, or of a YAML file.

    Raises:
        ConfigError: unknown, no YAML, or with wrong keys or values; all of them in one message.
    """
    path = _path(name)
    try:
        listing = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(listing, dict) or not isinstance(listing.get("models"), list):
        raise ConfigError(f"{path} is no leaderboard; give the keys benchmark and models (a list).")
    problems = unknown_keys(listing, ("benchmark", "models"))
    if not isinstance(listing.get("benchmark"), str):
        problems.append("key 'benchmark' is missing: a name in evaluation/benchmarks/")
    entries = []
    for number, item in enumerate(listing["models"], 1):
        wrong_values = _entry_problems(item)
        problems += [f"entry {number}: {problem}" for problem in wrong_values]
        if not wrong_values:
            entries.append(ListedModel(**item))
    first_of_folder: dict[str, ListedModel] = {}
    for listed in entries:
        first = first_of_folder.setdefault(listed.slug, listed)
        if first is not listed:
            problems.append(
                f"entries {first.name!r} and {listed.name!r} would share the folder "
                f"{listed.slug!r}; rename one"
            )
    raise_problems(ConfigError, path, problems)
    return Leaderboard(path.stem, listing["benchmark"], tuple(entries))


def chosen_entries(leaderboard: Leaderboard, only: Sequence[str]) -> tuple[ListedModel, ...]:
    """Returns the entries of those names, without regard to case; all where none is named.

    Raises:
        ConfigError: a name is not in the list.
    """
    names = [listed.name for listed in leaderboard.entries]
    chosen, accepted = ({name.lower() for name in each} for each in (only, names))
    problems = [f"{n!r}.{nearest(n, names)}" for n in only if n.lower() not in accepted]
    if problems:
        title = f"--only names what leaderboard {leaderboard.name!r} does not hold:"
        raise ConfigError(report(title, [*problems, f"known: {', '.join(names)}"]))
    return tuple(
        listed for listed in leaderboard.entries if not only or listed.name.lower() in chosen
    )


def primary_dimension(benchmark: Benchmark, requested: str | None) -> str:
    """Returns the dimension to rank by: the one asked for, else overall, else the first.

    Raises:
        ConfigError: no case is labelled on it.
    """
    names = benchmark.dimensions
    if not names:
        raise ConfigError(f"Benchmark {benchmark.name!r} labels nothing; give one with labels.")
    if requested is None:
        return "overall" if "overall" in names else names[0]
    if requested not in names:
        raise ConfigError(
            f"primary_dimension is {requested!r}; benchmark {benchmark.name!r} labels "
            f"{', '.join(names)}.{nearest(requested, names)}"
        )
    return requested


def standings(
    leaderboard: str, benchmark: Benchmark, primary: str, outcomes: Sequence[ModelResult]
) -> dict[str, Any]:
    """Returns the content of `leaderboard.json`: the models by rank, then those without a result.

    Models are ranked by their robust accuracy on the primary dimension; equal ones share a rank,
    one that is not scored on it stands last, without a rank. The range of ranks that its cases
    leave open stands beside it, for models that judged all of them.
    """
    judged = {result.listed.name: result.judged for result in outcomes if result.judged is not None}
    ranks = {name: rankings(judged, name) for name in benchmark.dimensions}
    reports = [(result.listed, result.report) for result in outcomes if result.report is not None]
    rule = best_rule(reports[0][1]["baselines"], primary) if reports else None  # alike in all
    rows = [_row(listed, report, ranks) for listed, report in reports]
    rows.sort(key=lambda row: (-_accuracy(row, primary), row["name"].lower()))
    scores = [_accuracy(row, primary) for row in rows]
    ranked = [
        {"rank": None if score < 0 else 1 + scores.index(score), **row}
        for score, row in zip(scores, rows, strict=True)
    ]
    return {
        "leaderboard": leaderboard,
        "benchmark": benchmark.identity(),
        "primary": primary,
        "best_rule": rule and {"name": rule[0], "accuracy": rule[1]},
        "dimensions": list(benchmark.dimensions),
        "models": ranked,
        **{
            state: [
                {**_identity(result.listed), "reason": without_paths(result.reason or "")}
                for result in outcomes
                if result.state == state
            ]
            for state in ("failed", "skipped")
        },
    }


def _row(listed: ListedModel, report: Report, ranks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns a ranked model; `ranks` leads from dimension and name to what `rankings` says."""
    robust, official = robust_of(report), report["protocols"].get("official", {})
    measures = ("accuracy", "ci95", "n", "coverage", "consistency")
    unranked = {"rank_range": None, "to_best": None}
    readers = report.get("human_ceiling") or {}  # none in 0.2
    return {
        **_identity(listed),
        "readout": report["readout"],
        "settings": report["settings"],
        "dimensions": {
            name: {
                **{measure: (robust.get(name) or {}).get(measure) for measure in measures},
                "official_micro": official.get("micro", {}).get(name),
                "official_macro": official.get("macro", {}).get(name),
                **by_model.get(listed.name, unranked),
                "human_ceiling": readers.get(name),
            }
            for name, by_model in ranks.items()
        },
    }


def _identity(listed: ListedModel) -> dict[str, Any]:
    return {
        **{key: getattr(listed, key) for key in ("name", "model", "revision", "engine")},
        "model": listed.model and without_paths(listed.model),
        "folder": listed.slug,
        "note": listed.note,
    }


def _accuracy(row: Mapping[str, Any], dimension: str) -> float:
    """Returns an accuracy to sort by; less than any where there is none."""
    value = row["dimensions"][dimension]["accuracy"]
    return -1.0 if value is None else float(value)


def _path(name: str) -> Path:
    """Returns the file of a leaderboard's name or path.

    Raises:
        ConfigError: there is none.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: no such file; give a leaderboard's name or YAML file.")
        return Path(name)
    names = leaderboard_names()
    if name.lower() not in names:
        raise ConfigError(
            f"leaderboard {name!r} is unknown; known: {', '.join(names)}.{nearest(name, names)} "
            "A list of your own is given by the path of its YAML file."
        )
    return asset(f"{FOLDER}/{name.lower()}.yaml")


def _key_problems(settings: Mapping[Any, Any], types: Mapping[str, Any]) -> list[str]:
    """Returns the unknown keys, and the values of another type than is accepted."""
    problems = unknown_keys(settings, types)
    for key, hint in types.items():
        if key in settings and not fits(settings[key], hint):
            names = ["null" if t is type(None) else t.__name__ for t in get_args(hint) or (hint,)]
            problems.append(f"{key} is {settings[key]!r}; give {' or '.join(names)}")
    return problems


def _entry_problems(item: Any) -> list[str]:
    """Returns what is wrong with one entry of the list."""
    if not isinstance(item, dict):
        return [f"{item!r} is not a mapping of keys to values"]
    problems = [f"key {key!r} is missing" for key in ("name", "model") if key not in item]
    problems += _key_problems(item, _TYPES)
    if problems:
        return problems
    name, model, revision = item["name"], item["model"], item.get("revision")
    is_named = _is_text(name) and re.search(r"[a-zA-Z0-9_]", name)
    checks = {
        "name": (is_named, f"printable, with a letter or digit, at most {_LONGEST} characters"),
        "model": (model is None or _is_text(model), "printable, not empty"),
        "engine": (item.get("engine") in (None, *ENGINES), f"accepted: {', '.join(ENGINES)}"),
        "revision": (revision is None or _REVISION.fullmatch(revision), "a branch, tag or commit"),
    }
    problems = [f"{key} is {item[key]!r}; {text}" for key, (fit, text) in checks.items() if not fit]
    options, accepted = item.get("options", {}), OPTION_READOUTS
    of_options = _key_problems(options, _OPTIONS)
    if options.get("readout") not in (None, *accepted):
        choices = f"{', '.join(accepted)}.{nearest(str(options['readout']), accepted)}"
        of_options.append(f"readout is {options['readout']!r}; accepted: {choices}")
    return problems + [f"options: {problem}" for problem in of_options]


def _is_text(text: str) -> bool:
    return text.isprintable() and len(text.strip()) > 0 and len(text) <= _LONGEST
