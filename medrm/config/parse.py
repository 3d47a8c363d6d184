"""One run, and its strict parser: one flat YAML recipe plus `--key value`.

The training arguments belong to the objective, whose class is passed to `parse_run`, so that this
module stays below it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from medrm.config.option import option
from medrm.config.options import (
    NO_CONTROLS,
    AdapterOptions,
    DataOptions,
    EvaluationOptions,
    JudgeOptions,
    ModelOptions,
    RunOptions,
)
from medrm.errors import ConfigError, check_characters, nearest, refuse

_FORBIDDEN = {
    "hub_token": "tokens come from the environment alone: set HF_TOKEN and leave the key out",
    "push_to_hub_token": "tokens come from the environment alone: set HF_TOKEN",
}
_DATA_KEYS = ("train_data", "benchmark", "data_root", "dimensions", "split_by_cluster")
"""Keys of the default recipe that speak of its data and fall with it."""
_OBJECTIVE_KEYS = (
    "reward_template",
    "head",
    "head_learning_rate",
    "ties",
    "global_batch_cases",
    "allowed_differences",
)
"""Keys of the default recipe that speak of its objective and fall with it."""

REMOVED = dict.fromkeys(
    ("image_feature_memory_mb", "image_feature_dir", "image_feature_dir_mb"),
    "leave it out; equal images of a batch go through the vision tower once without it",
)
"""Options of version 0.1 that are gone, each with what to do instead."""


def unknown_name(role: str, name: str, accepted: Collection[str]) -> str:
    """Returns what is wrong with a name that is not accepted: removed, or unknown.

    >>> unknown_name("key", "lora_rr", ["lora_r", "lora_alpha"])
    "unknown key 'lora_rr'. Did you mean 'lora_r'?"
    """
    instead = REMOVED.get(name.lstrip("-"))
    if instead is not None:
        return f"{role} {name!r} was removed in 0.2.0: {instead}."
    return f"unknown {role} {name!r}.{nearest(name, accepted)}"


@dataclass(frozen=True)
class ObjectiveOptions:
    """Which objective trains."""

    objective: str = option(
        "bradley_terry",
        "How preferences become a loss: bradley_terry (a reward model); judge_sft, judge_dpo or "
        "judge_grpo (a generative judge).",
    )


GROUPS = (
    DataOptions,
    ModelOptions,
    AdapterOptions,
    EvaluationOptions,
    JudgeOptions,
    RunOptions,
    ObjectiveOptions,
)


@dataclass(frozen=True)
class Run:
    """One resolved run. `training` is the objective's subclass of transformers' arguments."""

    data: DataOptions
    model: ModelOptions
    adapter: AdapterOptions
    evaluation: EvaluationOptions
    judge: JudgeOptions
    objective: str
    training: Any
    job: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if not self.adapter.use_peft and (self.model.load_in_4bit or self.model.load_in_8bit):
            raise ConfigError(
                "use_peft false trains all weights, which load_in_4bit and load_in_8bit freeze; "
                "leave out one of them"
            )

    def resolved(self) -> dict[str, Any]:
        """Returns every option by its flat name, as written to run.json."""
        flat: dict[str, Any] = {"objective": self.objective}
        groups = (self.data, self.model, self.adapter, self.evaluation, self.judge, self.job)
        for group in groups:
            flat.update(dataclasses.asdict(group))
        flat.update(self.training.to_dict())
        return flat


_TITLE = "The configuration has problems."

COMMAND_LINE = "command line"
"""The origin of an option that is in no file."""

Sources = dict[str, tuple[str, list[str] | None]]
"""Key to its origin (a file, or the command line) and its values; None: given as null, so that it
keeps its default, but must exist."""


def _raise(message: str) -> NoReturn:
    raise ConfigError(message)


class _Strict(yaml.SafeLoader):
    """The safe loader, which also refuses a key given twice.

    `on` and `off` are words, as in YAML 1.2: options take them.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class reads it so)
        first: [
            (tag, regex)
            for tag, regex in resolvers
            if first not in "oO" or tag != "tag:yaml.org,2002:bool"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping.

        Raises:
            ConstructorError: a key stands twice.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} is given twice", node.start_mark
            )
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the flat mapping of one YAML recipe.

    Raises:
        ConfigError: missing file, no mapping, or a nested value where none is accepted.
    """
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; give the path of a YAML recipe")
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
        check_characters(recipe)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise ConfigError(f"{path} holds {type(recipe).__name__}; a recipe is `key: value` lines")
    return recipe


def _command_line(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, list[str]]]]:
    """Splits `--key value ...` into the config path and (key, values) in order."""
    options: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            options.append((key.replace("-", "_"), [value] if equals else []))
        elif options:
            options[-1][1].append(word)
        else:
            raise ConfigError(f"{word!r} stands alone; options are written --key value")
    configs = [values for key, values in options if key == "config"]
    if any(len(values) != 1 for values in configs):
        raise ConfigError("--config takes one path, the YAML recipe")
    overrides = [(key, values) for key, values in options if key != "config"]
    return configs[-1][0] if configs else None, overrides


def _as_words(value: Any) -> list[str] | None:
    """Writes one YAML value as the command line would."""
    if value is None:
        return None
    if isinstance(value, list):
        return list(map(str, value))
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def _parse_words(
    parser: argparse.ArgumentParser, sources: Sources, accepted: set[str]
) -> dict[str, Any]:
    """Returns the values of all options, each key parsed alone.

    Raises:
        ConfigError: every problem of the keys and values.
    """
    parsed, problems = vars(parser.parse_args([])), []
    for key, (origin, values) in sources.items():
        if key in _FORBIDDEN and values is not None:
            problems.append(f"{origin}: key {key!r}: {_FORBIDDEN[key]}")
        elif key not in accepted:
            problems.append(f"{origin}: {unknown_name('key', key, accepted)}")
        elif values is not None:
            try:
                parsed[key] = getattr(parser.parse_args([f"--{key}", *values]), key)
            except ConfigError as error:
                problems.append(f"{origin}: {str(error).removeprefix('argument ')}")
    refuse(problems, _TITLE)
    return parsed


def parse_run(
    argv: Sequence[str], objectives: Mapping[str, Callable[[], type]], default_config: Path
) -> Run:
    """Returns the run that a YAML recipe and `--key value` overrides describe.

    Args:
        argv: the words after the program's name; `--config FILE` names the recipe.
        objectives: objective name to a function that imports its training-arguments class.
        default_config: the recipe used without `--config`. Its data keys fall when the command line
            names data of its own.

    Raises:
        ConfigError: every unknown key and wrong value, all in one message.
    """
    sources = _sources(argv, default_config)
    _split_lists(sources)
    origin, objective = sources.get("objective", ("", None))
    name = ObjectiveOptions.objective if objective is None else " ".join(objective)
    return _build(training_class(name, origin, objectives), sources)


def _sources(argv: Sequence[str], default_config: Path) -> Sources:
    """Returns what recipe and command line give, the command line's in place of the recipe's."""
    config, overrides = _command_line(argv)
    path = Path(config or default_config)
    sources: Sources = {
        key: (str(path), _as_words(value)) for key, value in read_yaml(path).items()
    }
    _, recipe_objective = sources.get("objective", ("", None))
    same = [("objective", recipe_objective), ("seeds", ["null"])]
    changed = {key for key, values in overrides if (key, values) not in same}
    replaced = _replaced_keys(changed, default=path.resolve() == default_config.resolve())
    sources = {key: source for key, source in sources.items() if key not in replaced}
    for key, values in overrides:
        sources[key] = (COMMAND_LINE, None if values == ["null"] else values)
    return sources


def flag(argv: Sequence[str], default_config: Path, key: str) -> bool:
    """Returns whether a switch is on, before anything is checked and without torch.

    Args:
        argv: as of `parse_run`.
        default_config: likewise.
        key: of a switch that is off by default.
    """
    _, values = _sources(argv, default_config).get(key, ("", None))
    return values is not None and " ".join(values).lower() in ("", "true", "yes", "y", "t", "1")


def training_class(name: str, origin: str, objectives: Mapping[str, Callable[[], type]]) -> type:
    """Returns the class of an objective's training arguments.

    Args:
        name: of the objective.
        origin: where the name stands.
        objectives: objective name to a function that imports its training-arguments class.

    Raises:
        ConfigError: there is no such objective.
    """
    if name not in objectives:
        raise ConfigError(
            f"{origin}: objective {name!r} is not known; accepted: {', '.join(objectives)}."
            f"{nearest(name, objectives)}"
        )
    return objectives[name]()


def _replaced_keys(changed: set[str], *, default: bool) -> tuple[str, ...]:
    """Returns the keys of a recipe that fall with the keys that the command line changes.

    A recipe may replace its own folder, never one that the user names. The default recipe also
    leaves data and objective to the command line. One seed stands in place of several, and they in
    its place.
    """
    data = _DATA_KEYS if default and changed & {"train_data", "benchmark"} else ()
    objective = _OBJECTIVE_KEYS if default and "objective" in changed else ()
    output = ("overwrite_output_dir",) if changed & {"output_dir", "seeds"} else ()
    seeds = [other for key, other in (("seed", "seeds"), ("seeds", "seed")) if key in changed]
    return (*data, *objective, *output, *seeds)


def _split_lists(sources: Sources) -> None:
    """Splits the values of list options at commas.

    Raises:
        ConfigError: a list that must not be empty is.
    """
    fields = (field for group in GROUPS for field in dataclasses.fields(group))
    lists = {field.name for field in fields if "list" in str(field.type)}
    for key in lists & sources.keys():
        origin, values = sources[key]
        if values is None:
            continue
        names = [name.strip() for value in values for name in value.split(",") if name.strip()]
        if key == "controls" and not values and origin != COMMAND_LINE:  # [] in a file
            names = [NO_CONTROLS]
        if not names:
            raise ConfigError(f"{origin}: {key} is empty; leave it out for the default")
        sources[key] = (origin, names)


def run_parser(training: type) -> Any:
    """Returns the parser of all groups; it raises instead of leaving the process."""
    from transformers import HfArgumentParser

    # TRL's classes repeat options of ours (max_length, trust_remote_code); the last ones stand.
    groups: list[Any] = [training, *GROUPS]
    parser = HfArgumentParser(
        groups,
        prog="train_rm.py",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    parser.error = _raise  # type: ignore[method-assign]
    return parser


def _build(training: Any, sources: Sources) -> Run:
    """Parses the values into the groups and the objective's training arguments."""
    groups: tuple[Any, ...] = (*GROUPS, training)
    names_of = [{f.name for f in dataclasses.fields(group) if f.init} for group in groups]
    parsed = _parse_words(run_parser(training), sources, set().union(*names_of))
    if parsed["seeds"] is not None and "seed" in sources:
        origin = sources["seeds"][0]
        refuse([f"{origin}: seeds and seed exclude each other; leave out one of them"], _TITLE)
    problems = [
        f"{sources[key][0]}: {key} is {value}; give a finite number"
        for key, value in parsed.items()
        if isinstance(value, float) and not math.isfinite(value) and key in sources
    ]
    built: list[Any] = []
    for group, names in zip(groups, names_of, strict=True):
        try:
            built.append(group(**{name: parsed[name] for name in names}))
        except (ValueError, ImportError) as error:
            problems.append(str(error))
    refuse(problems, _TITLE)
    data, model, adapter, evaluation, judge, job, objective, arguments = built
    return Run(data, model, adapter, evaluation, judge, objective.objective, arguments, job)
