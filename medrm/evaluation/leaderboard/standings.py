"""A leaderboard: which models it names, and the table of their evaluation folders; no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from medrm.assets import asset, asset_names
from medrm.errors import ConfigError, nearest, report
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.leaderboard.ranking import Judged, rankings
from medrm.evaluation.measures.accuracy import best_rule
from medrm.evaluation.report import Report
from medrm.readouts import readout_names
from medrm.scorer.engines import ENGINES

FOLDER = "evaluation/leaderboards"

_LONGEST = 200
_REVISION = re.compile(r"[\w][\w./-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a leaderboard.

    Attributes:
        name: under which it is reported.
        model: hub repository, folder, `mock:NAME`, or a service's model; None: nothing to load.
        engine: what runs it, one of `ENGINES`.
        remote_code: whether it needs the code that its checkpoint ships.
        proprietary: whether it runs behind a service that asks for a key.
        revision: branch, tag or commit of the hub repository.
        note: what a reader should know of it.
        options: how this judge is asked, in place of what is asked of the whole list.
    """

    name: str
    model: str | None
    engine: str = "transformers"
    remote_code: bool = False
    proprietary: bool = False
    revision: str | None = None
    note: str | None = None
    options: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of its folder: lower case, without a character that a path could mean."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The models to be evaluated on one benchmark."""

    name: str
    benchmark: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry: its report and what it judged, or why there is none."""

    entry: Entry
    state: Literal["done", "skipped", "failed"]
    report: Report | None = None
    reason: str | None = None
    judged: Judged | None = None


_OPTIONS: dict[str, tuple[type, ...]] = {
    "readout": (str,),
    "judge_prompt": (str,),
    "votes": (int,),
    "judge_temperature": (int, float),
    "max_new_tokens": (int,),
}
"""What an entry may ask for, and its types; a prompt file is the user's alone to name."""

_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str, type(None)),
    "engine": (str,),
    "remote_code": (bool,),
    "proprietary": (bool,),
    "revision": (str, type(None)),
    "note": (str, type(None)),
    "options": (dict,),
}


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
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("models"), list):
        raise ConfigError(f"{path} is no leaderboard; give the keys benchmark and models (a list).")
    problems = _unknown(content, ("benchmark", "models"), "")
    if not isinstance(content.get("benchmark"), str):
        problems.append("key 'benchmark' is missing: a name in evaluation/benchmarks/")
    entries = []
    for number, item in enumerate(content["models"], 1):
        found = _entry_problems(item, f"entry {number}: ")
        problems += found
        if not found:
            entries.append(Entry(**item))
    problems += _clashes(entries)
    if problems:
        raise ConfigError(report(f"{path} has {len(problems)} problems.", problems))
    return Leaderboard(path.stem, content["benchmark"], tuple(entries))


def chosen_entries(leaderboard: Leaderboard, only: Sequence[str]) -> tuple[Entry, ...]:
    """Returns the entries of those names; all of them where none is named.

    Raises:
        ConfigError: a name is not in the list.
    """
    names = [entry.name for entry in leaderboard.entries]
    problems = [f"{name!r}.{nearest(name, names)}" for name in only if name not in names]
    if problems:
        title = f"--only names what leaderboard {leaderboard.name!r} does not hold:"
        raise ConfigError(report(title, [*problems, f"known: {', '.join(names)}"]))
    return tuple(one for one in leaderboard.entries if not only or one.name in only)


def primary_dimension(benchmark: Benchmark, asked: str | None) -> str:
    """Returns the dimension to rank by: the one asked for, else overall, else the first.

    Raises:
        ConfigError: no case is labelled on it.
    """
    names = benchmark.dimensions
    if not names:
        raise ConfigError(f"Benchmark {benchmark.name!r} labels nothing; give one with labels.")
    if asked is None:
        return "overall" if "overall" in names else names[0]
    if asked not in names:
        raise ConfigError(
            f"primary_dimension is {asked!r}; benchmark {benchmark.name!r} labels "
            f"{', '.join(names)}.{nearest(asked, names)}"
        )
    return asked


def standings(
    leaderboard: str, benchmark: Benchmark, primary: str, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Returns the content of `leaderboard.json`: the models by rank, then those without a result.

    Models are ranked by their robust accuracy on the primary dimension; equal ones share a rank,
    one that is not scored on it stands last, without a rank. The range of ranks that its cases
    leave open stands beside it, for models that judged all of them.
    """
    judged = {one.entry.name: one.judged for one in outcomes if one.judged is not None}
    places = {name: rankings(judged, name) for name in benchmark.dimensions}
    rows = [
        _row(outcome.entry, outcome.report, places)
        for outcome in outcomes
        if outcome.report is not None
    ]
    rows.sort(key=lambda row: (-_accuracy(row, primary), row["name"].lower()))
    scores = [_accuracy(row, primary) for row in rows]
    ranked = [
        {"rank": None if score < 0 else 1 + scores.index(score), **row}
        for score, row in zip(scores, rows, strict=True)
    ]
    return {
        "leaderboard": leaderboard,
        "benchmark": {
            "name": benchmark.name,
            "revision": benchmark.source.revision,
            "digest": benchmark.source.digest,
            "cases": len(benchmark.cases),
            "clusters": benchmark.clusters,
            "synthetic": benchmark.source.synthetic,
        },
        "primary": primary,
        "best_rule": _best_rule(outcomes, primary),
        "dimensions": list(benchmark.dimensions),
        "models": ranked,
        "failed": [_without(one) for one in outcomes if one.state == "failed"],
        "skipped": [_without(one) for one in outcomes if one.state == "skipped"],
    }


def _best_rule(outcomes: Sequence[Outcome], dimension: str) -> dict[str, Any] | None:
    """Returns the rule that is most often right without a model; every report has the same."""
    for outcome in outcomes:
        if outcome.report is not None:
            found = best_rule(outcome.report["baselines"], dimension)
            return None if found is None else {"name": found[0], "accuracy": found[1]}
    return None


def _row(
    entry: Entry, report: Report, places: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    protocols = report["protocols"]
    robust = protocols.get("robust", {}).get("dimensions", {})
    official = protocols.get("official", {})
    measures = ("accuracy", "ci95", "n", "coverage", "consistency")
    unranked = {"rank_range": None, "to_best": None}
    return {
        **_identity(entry),
        "readout": report["readout"],
        "settings": report["settings"],
        "dimensions": {
            name: {
                **{measure: (robust.get(name) or {}).get(measure) for measure in measures},
                "official_micro": official.get("micro", {}).get(name),
                "official_macro": official.get("macro", {}).get(name),
                **ranks.get(entry.name, unranked),
            }
            for name, ranks in places.items()
        },
    }


def _identity(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.model,
        "revision": entry.revision,
        "engine": entry.engine,
        "folder": entry.slug,
        "note": entry.note,
    }


def _without(outcome: Outcome) -> dict[str, Any]:
    return {**_identity(outcome.entry), "reason": outcome.reason}


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
    if name not in names:
        raise ConfigError(
            f"leaderboard {name!r} is unknown; known: {', '.join(names)}.{nearest(name, names)} "
            "A list of your own is given by the path of its YAML file."
        )
    return asset(f"{FOLDER}/{name}.yaml")


def _unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> list[str]:
    return [
        f"{where}unknown key {key!r}.{nearest(str(key), known)}"
        for key in given
        if key not in known
    ]


def _entry_problems(item: Any, where: str) -> list[str]:
    """Returns what is wrong with one entry of the list."""
    if not isinstance(item, dict):
        return [f"{where}{item!r} is not a mapping of keys to values"]
    known = tuple(one.name for one in fields(Entry))
    problems = _unknown(item, known, where)
    problems += [f"{where}key {key!r} is missing" for key in ("name", "model") if key not in item]
    problems += _type_problems(item, _TYPES, where)
    if problems:
        return problems
    checks: list[tuple[str, Callable[[str], bool], str]] = [
        ("name", _is_name, f"printable, with a letter or digit, at most {_LONGEST} characters"),
        ("model", _is_text, "printable, not empty"),
        ("engine", lambda text: text in ENGINES, f"accepted: {', '.join(ENGINES)}"),
        ("revision", lambda text: bool(_REVISION.fullmatch(text)), "a branch, tag or commit"),
    ]
    problems += [
        f"{where}{key} is {item[key]!r}; {accepted}"
        for key, accepts, accepted in checks
        if item.get(key) is not None and not accepts(item[key])
    ]
    options = item.get("options", {})
    accepted = readout_names("judge", "base")
    if options.get("readout") not in (None, *accepted):
        problems.append(
            f"{where}options: readout is {options['readout']!r}; accepted: {', '.join(accepted)}."
            f"{nearest(str(options['readout']), accepted)}"
        )
    problems += _unknown(options, tuple(_OPTIONS), f"{where}options: ")
    return problems + _type_problems(options, _OPTIONS, f"{where}options: ")


def _type_problems(
    given: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], where: str
) -> list[str]:
    """Returns the values of another type than is accepted; true and false are no numbers."""
    return [
        f"{where}{key} is {given[key]!r}; give "
        + " or ".join("null" if one is type(None) else one.__name__ for one in accepted)
        for key, accepted in types.items()
        if key in given and type(given[key]) not in accepted
    ]


def _is_text(text: str) -> bool:
    return text.isprintable() and len(text.strip()) > 0 and len(text) <= _LONGEST


def _is_name(text: str) -> bool:
    return _is_text(text) and re.search(r"[a-zA-Z0-9_]", text) is not None


def _clashes(entries: Sequence[Entry]) -> list[str]:
    """Returns the entries that would write into one folder."""
    first: dict[str, str] = {}
    problems = []
    for entry in entries:
        if entry.slug in first:
            problems.append(
                f"entries {first[entry.slug]!r} and {entry.name!r} would share the folder "
                f"{entry.slug!r}; rename one"
            )
        first.setdefault(entry.slug, entry.name)
    return problems
