"""The command line of `medrm`: options from dataclasses, and the nearest word to a misspelt one."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from medrm.errors import nearest, printable

_IMAGE_FEATURES = (
    "leave it out; equal images of a batch go through the vision tower once without it"
)
REMOVED = dict.fromkeys(
    ("image_feature_memory_mb", "image_feature_dir", "image_feature_dir_mb"), _IMAGE_FEATURES
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


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and says what a misspelt option or command may mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._commands: Any = None

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
        if default is False:
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
            continue
        if default and not required:
            text += f" (default {' '.join(map(str, default)) if listed else default})"
        literal = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
        types = (hint, *typing.get_args(hint))
        parser.add_argument(
            f"--{field.name}",
            type=next((each for each in (Path, int, float) if each in types), str),
            nargs="+" if listed else None,
            choices=field.metadata.get("choices", literal),
            required=required,
            default=None if required else default,
            help=text,
        )
