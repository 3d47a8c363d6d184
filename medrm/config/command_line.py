"""The command lines of `medrm` and of a run: options from dataclasses, and their help.

What `train_rm.py --help` prints are medrm's own options in full, and the trainers' most used.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import shutil
import sys
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medrm.config.parse import GROUPS, ObjectiveOptions, run_parser, training_class, unknown_name
from medrm.errors import printable


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and says what a misspelt option or command may mean.

    Args:
        fill: adds what the parser knows once it is asked, for that may take a second to import.
    """

    def __init__(
        self, fill: Callable[[argparse.ArgumentParser], None] | None = None, **options: Any
    ) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._commands: Any = None
        self._fill = fill

    def add_subparsers(self, **options: Any) -> Any:
        """Adds commands, whose parsers are of this class as well."""
        self._commands = super().add_subparsers(**options)
        return self._commands

    def parse_known_args(  # type: ignore[override] # the base class is overloaded
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses, and refuses what it does not know before it misses what is required.

        A misspelt `--benchmark` is wrong in itself; argparse would say that there is none.
        """
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        argv = sys.argv[1:] if args is None else list(args)
        options = argv[: argv.index("--")] if "--" in argv else argv
        if self._commands is not None:  # what follows the command is for its own parser
            options = options[: next((i for i, w in enumerate(options) if w[:1] != "-"), None)]
            self._refuse("command", argv[len(options) : len(options) + 1], self._commands.choices)
        names = [word.partition("=")[0] for word in options if word.startswith("--")]
        self._refuse("option", names, self._option_string_actions)
        return super().parse_known_args(argv, namespace)

    def _refuse(self, role: str, names: Sequence[str], accepted: Any) -> None:
        """Ends with status 2 and all problems where a command or an option is not accepted."""
        problems = [unknown_name(role, name, accepted) for name in names if name not in accepted]
        if problems:
            text = f"{' '.join(problems)} Accepted: {', '.join(accepted)}.\n"
            self.exit(2, f"{self.prog}: error: {printable(text)}")


def add_options(
    parser: Any, group: type, names: Collection[str] = (), *, without: Collection[str] = ()
) -> None:
    """Adds the fields of a dataclass that `option` declares as options of a command.

    Args:
        parser: or a group of one.
        group: the dataclass.
        names: which fields; none: all.
        without: which fields are left out.
    """
    hints = typing.get_type_hints(group)  # HfArgumentParser overwrites `type` of the fields
    for field in dataclasses.fields(group):
        if "help" not in field.metadata or field.name in without:
            continue
        if names and field.name not in names:
            continue
        hint, text = hints[field.name], field.metadata["help"]
        make_list: Any = field.default_factory
        listed = make_list is not dataclasses.MISSING
        default: Any = make_list() if listed else field.default
        required = default is dataclasses.MISSING
        name = field.name.rstrip("_")  # a field cannot have the name of a keyword
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
            continue
        if default and not required:
            text += f" (default {' '.join(map(str, default)) if listed else default})"
        literal = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
        types = (hint, *typing.get_args(hint))
        parser.add_argument(
            f"--{name}",
            dest=field.name,
            type=_filled_path if Path in types else _number_type(types),
            nargs="+" if listed else None,
            choices=field.metadata.get("choices", literal),
            required=required,
            default=None if required else default,
            help=text,
        )


def _filled_path(text: str) -> Path:
    """Returns a path; an empty one, as of a shell's variable that is not set, would be `.`."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


def _number_type(types: Collection[Any]) -> type:
    return next((number for number in (int, float) if number in types), str)


def command_of(
    group: type, answered_by: str, name: str = "", meaning: str = ""
) -> Callable[[argparse.ArgumentParser], None]:
    """Returns what adds a command to a parser: the options of a request, and who answers it.

    Args:
        group: the request.
        answered_by: module and function, imported when the command runs.
        name: of the word without an option's name; empty: there is none.
        meaning: of that word.
    """
    module, function = answered_by.split(":")

    def answer(arguments: argparse.Namespace) -> None:
        request = group(**values_of(group, arguments))
        getattr(importlib.import_module(module), function)(request)

    def add(parser: argparse.ArgumentParser) -> None:
        if name:
            parser.add_argument(name, help=meaning)
        add_options(parser, group)
        parser.set_defaults(action=answer)

    return add


def values_of(group: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what a command line has set of the fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(group)}
    return {name: value for name, value in vars(arguments).items() if name in names}


USED = {
    "output_dir": "Folder of the run.",
    "seed": "Seed of everything that is drawn.",
    "num_train_epochs": "Passes through the training cases.",
    "max_steps": "Optimiser steps, in place of num_train_epochs where above 0.",
    "per_device_train_batch_size": "",
    "per_device_eval_batch_size": "",
    "gradient_accumulation_steps": "Micro-batches of a judge's step; a reward model's is planned.",
    "learning_rate": "",
    "lr_scheduler_type": "",
    "warmup_steps": "",
    "weight_decay": "Weight decay, of all but biases and norms.",
    "max_grad_norm": "Largest norm of a step's gradient; 0: any.",
    "bf16": "Train in bfloat16 mixed precision.",
    "use_cpu": "Leave a GPU alone.",
    "gradient_checkpointing": "Recompute activations: less memory, more time.",
    "activation_offloading": "",
    "dataloader_num_workers": "Processes that load images beside the training.",
    "eval_steps": "The development split is measured every so many steps; below 1: a share.",
    "save_steps": "A checkpoint is written every so many steps; below 1: a share.",
    "save_total_limit": "",
    "load_best_model_at_end": "",
    "metric_for_best_model": "",
    "logging_steps": "",
    "report_to": "",
    "resume_from_checkpoint": "Go on at this checkpoint; by default at the last one in output_dir.",
    "push_to_hub": "Publish the adapter when all is done, as medrm publish does.",
    "hub_model_id": "Where push_to_hub publishes: ORG/NAME.",
    "hub_private_repo": "Whether only its owners see it; by default a new repository is private.",
    "beta": "Weight of staying near the reference model.",
    "num_generations": "Verdicts sampled for each prompt.",
    "temperature": "Temperature of sampled verdicts.",
    "reward_weights": "Weights of the rewards: agreement, format, consistency of reasons.",
    "max_completion_length": "",
}
"""The arguments of transformers and TRL that runs set; empty: the library's text is shown."""

_NARROWEST, _INDENT = 100, 29

_LIBRARIES = ("transformers", "trl")

Declarations = dict[str, tuple[Any, type]]
"""Objective to an option's field and the class that holds it."""


def help_text(argv: Sequence[str], objectives: Mapping[str, Callable[[], type]]) -> str | None:
    """Returns the help that a command line asks for; None: it asks for none.

    Args:
        argv: the words after the program's name; `--help` asks for medrm's own options and the
            trainers' most used, `--help_all [OBJECTIVE]` for every option of a run.
        objectives: objective name to a function that imports its training-arguments class.

    Raises:
        ConfigError: there is no such objective.
    """
    if {"-h", "--help"} & set(argv):
        return _short_help(objectives)
    if "--help_all" not in argv:
        return None
    following = argv[argv.index("--help_all") + 1 :]
    name = following[0] if following else ObjectiveOptions.objective
    return str(run_parser(training_class(name, "--help_all", objectives)).format_help())


def _short_help(objectives: Mapping[str, Callable[[], type]]) -> str:
    width = shutil.get_terminal_size(fallback=(_NARROWEST, 24)).columns
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        epilog="transformers' and TRL's other options are accepted as well: --help_all lists every "
        "option of a run, --help_all judge_sft those of another objective.",
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(
            prog, max_help_position=_INDENT, width=width
        ),
    )
    for group in sorted(GROUPS, key=lambda group: group is not ObjectiveOptions):
        section = parser.add_argument_group(str(group.__doc__).rstrip("."))
        for field in dataclasses.fields(group):
            _describe(section, {"": (field, group)})
    for title, options in _training(objectives).items():
        section = parser.add_argument_group(title)
        for declarations in options:
            _describe(section, declarations)
    return parser.format_help()


def _training(objectives: Mapping[str, Callable[[], type]]) -> dict[str, list[Declarations]]:
    """Returns what is shown of the objectives' arguments, by the title that it stands under."""
    declared: dict[str, Declarations] = {}
    for objective, load in objectives.items():
        training = load()
        fields = {field.name: field for field in dataclasses.fields(training)}
        not_ours = USED.keys() | {
            field.name
            for base in training.__mro__
            if dataclasses.is_dataclass(base) and base.__module__.split(".")[0] in _LIBRARIES
            for field in dataclasses.fields(base)
        }
        for name in (*(name for name in fields if name not in not_ours), *USED):
            if name in fields:
                declared.setdefault(name, {})[objective] = (fields[name], training)
    common = "Training, with the options that most runs set"
    sections: dict[str, list[Declarations]] = {}
    for name, declarations in declared.items():
        plural = "s" if len(declarations) > 1 else ""
        title = f"Objective{plural} {', '.join(declarations)}"
        is_common = name in USED and len(declarations) > len(objectives) / 2
        sections.setdefault(common if is_common else title, []).append(declarations)
    return dict(sorted(sections.items(), key=lambda section: section[0] == common))


def _describe(section: Any, declarations: Declarations) -> None:
    """Adds an option with its values and the defaults that it has for the objectives."""
    field, group = next(iter(declarations.values()))
    notes = []
    hint = typing.get_type_hints(group)[field.name]
    literals = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if choices := field.metadata.get("choices", literals):
        notes.append(" | ".join(choices))
    defaults = {name: _written(declared.default) for name, (declared, _) in declarations.items()}
    usual = Counter(defaults.values()).most_common(1)[0][0]
    unusual = [f"{name} {value or 'none'}" for name, value in defaults.items() if value != usual]
    if usual is not None or unusual:
        notes.append("; ".join([f"default {usual}", *unusual]))
    text = USED.get(field.name) or field.metadata["help"]
    described = f"{text} [{', '.join(notes)}]" if notes else text
    section.add_argument(f"--{field.name}", action="store_true", help=described)


def _written(default: Any) -> str | None:
    """Returns a default as a recipe writes it; None: there is none, or it is false."""
    if default is None or default is False or default is dataclasses.MISSING:
        return None
    if default is True:
        return "true"
    return str(default.value if isinstance(default, enum.Enum) else default)
