"""An argument parser that names the nearest of what it accepts, as the parser of a run does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from medrm.errors import nearest, printable


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
        words = sys.argv[1:] if args is None else list(args)
        options = words[: words.index("--")] if "--" in words else words
        if self._commands is not None:  # the rest are the command's own
            options = options[: next((i for i, w in enumerate(options) if w[:1] != "-"), None)]
            self._refuse("command", words[len(options) : len(options) + 1], self._commands.choices)
        given = [word.partition("=")[0] for word in options if word.startswith("--")]
        self._refuse("option", given, self._option_string_actions)
        return super().parse_known_args(words, namespace)

    def _refuse(self, kind: str, given: Sequence[str], accepted: Any) -> None:
        """Ends with status 2 and all problems of a kind, where a word is not accepted."""
        problems = [
            f"unknown {kind} {word!r}.{nearest(word, accepted)}"
            for word in given
            if word not in accepted
        ]
        if problems:
            text = f"{' '.join(problems)} Accepted: {', '.join(accepted)}.\n"
            self.exit(2, f"{self.prog}: error: {printable(text)}")
