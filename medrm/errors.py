"""The errors medrm raises when a user's input is wrong; row 0 of the layers, imports nothing.

Each message has four parts: what is wrong, what was given, what is accepted, what to do.
The command line turns any of them into exit status 2 and the bare message.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_NEAR = 0.75
"""How much of two names is the same where one may be a slip of the other."""

_MOST_ALIKE = 3
"""Problems that differ in names and numbers alone and are all shown."""

_LONGEST = 1000
"""Characters of one problem in a message."""

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{1000,}")


class MedrmError(ValueError):
    """The user's input is wrong. Cause and cure are in the message."""


class ConfigError(MedrmError):
    """A key or value of the configuration is wrong. Cure: correct the YAML file or the flag."""


class DataError(MedrmError):
    """A data file, label, image or split is wrong. Cure: correct the data the message names."""


class AdapterError(MedrmError):
    """A saved model does not match its contract. Cure: save it again or load the right base."""


class RunFailed(Exception):  # noqa: N818 (it is no fault of the program)
    """A run ended before it was done, through no fault of its input. Cure: in the message."""


class DeterminismError(ConfigError):
    """A model cannot be scored deterministically. Cure: leave it out, or use another device."""


class Stopped(BaseException):
    """The process is to end: a signal asks it, or another process says why the run cannot go on.

    No Exception: nothing that copes with errors may keep it.

    Attributes:
        status: the exit status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


FOREIGN_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""What the code of a model, a processor or a template raises over input it does not foresee."""


def nearest(name: str, accepted: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the closest accepted name, or an empty string.

    >>> nearest("lora_rr", ["lora_r", "head"])
    " Did you mean 'lora_r'?"
    >>> nearest("mine", ["prime"])
    ''
    """
    spelt = {other.casefold(): other for other in accepted}
    match = difflib.get_close_matches(name.casefold(), spelt, n=1, cutoff=_NEAR)
    return f" Did you mean {spelt[match[0]]!r}?" if match else ""


def unknown_keys(keys: Iterable[object], accepted: Collection[str]) -> list[str]:
    """Returns one problem for each key that is not accepted, with the nearest that is."""
    return [f"unknown key {k!r}.{nearest(str(k), accepted)}" for k in keys if k not in accepted]


def applying(checks: Mapping[str, bool]) -> list[str]:
    """Returns the problems that there are.

    Args:
        checks: what may be wrong, and whether it is.

    >>> applying({"lora_r is 0; give 1 or more": True, "dora needs lora": False})
    ['lora_r is 0; give 1 or more']
    """
    return [problem for problem, is_wrong in checks.items() if is_wrong]


def alike_together(problems: Sequence[str]) -> list[str]:
    """Returns problems of which those that differ in names and numbers alone are one line.

    Such a line is the first of them, with their number and where the next ones are.

    >>> alike_together([f"line {number}: 'accuracy' is 0; give 'A' or 'B'" for number in range(9)])
    ["line 0: 'accuracy' is 0; give 'A' or 'B' (9 times, also line 1, line 2, ...)"]
    """
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_VARYING.sub("#", problem), []).append(problem)
    return [line for alike in kinds.values() for fault in _faults(alike) for line in _told(fault)]


def _faults(alike: list[str]) -> list[list[str]]:
    """Returns what is one fault: several of one place are as many, such as a column each."""
    if len({problem.partition(": ")[0] for problem in alike}) == len(alike):
        return [alike]
    faults: dict[str, list[str]] = {}
    for problem in alike:
        faults.setdefault(problem.partition(": ")[2], []).append(problem)
    return list(faults.values())


def _told(fault: list[str]) -> list[str]:
    if len(fault) <= _MOST_ALIKE:
        return fault
    others = ", ".join(shortened(problem.partition(": ")[0]) for problem in fault[1:3])
    return [f"{shortened(fault[0], _LONGEST)} ({len(fault)} times, also {others}, ...)"]


def report(title: str, problems: Sequence[str], limit: int = 20) -> str:
    """Returns one message for all problems of one input, at most `limit` of them in full."""
    lines = [f"- {shortened(problem, _LONGEST)}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"- ... and {len(problems) - limit} more")
    return "\n".join([title, *lines])


def refuse(problems: Sequence[str], title: str = "", error: type[MedrmError] = ConfigError) -> None:
    """Raises one message for all problems of one input, unless there is none.

    Args:
        problems: what is wrong.
        title: of a list with a line for each problem; empty: they stand in one sentence.
        error: what is raised.
    """
    if problems:
        raise error(report(title, problems) if title else "; ".join(problems))


def raise_problems(
    error: type[MedrmError], subject: object, problems: Sequence[str], advice: str = ""
) -> None:
    """Raises one error for all problems of a subject, such as a file, where there are any."""
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    refuse(alike_together(problems), f"{subject} has {count}{advice}.", error)


def printable(text: str) -> str:
    """Returns text of unknown origin as a terminal can show it.

    Control characters, which could drive it, are replaced, and base64 is cut.

    >>> printable("iVBORw0KGgo" * 1000)
    'iVBORw0KGgoiVBORw0KGgoiVBORw0KGgoiVBORw0...'
    """
    text = _BASE64.sub(lambda run: f"{run[0][:40]}...", text)
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


_PATH = re.compile(
    r"(?<=')(?:~|[A-Za-z]:)?[/\\][^'\n]*(?=')|(?<=\")(?:~|[A-Za-z]:)?[/\\][^\"\n]*(?=\")"
    r"|(?<![\w/.:~<])(?:~|[A-Za-z]:)?(?:[/\\]+[^\s/\\'\",;()]+)+"
)
"""An absolute path amid other text: in quotes, or as far as its first blank."""


def without_paths(text: str) -> str:
    """Returns text in which absolute paths are their last component: they tell of the machine.

    >>> without_paths("/data/my scans/votes.jsonl"), without_paths("cannot read '/a/b.png'")
    ('votes.jsonl', "cannot read 'b.png'")
    >>> without_paths(f"{Path.home()}"), without_paths("org/model, 3/4, https://hub.org/x/y")
    ('~', 'org/model, 3/4, https://hub.org/x/y')
    """
    home = str(Path.home())
    if home != os.sep:
        text = text.replace(home, "~")  # its last component is a person's name
    if re.fullmatch(r"(~|[A-Za-z]:)?[/\\]((?!: )[^'\"\n])*", text):  # it may hold blanks
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _PATH.sub(lambda path: re.split(r"[/\\]", path[0])[-1], text)


def reason_of(error: Exception) -> str:
    """Returns why something failed, without the path that an operating system adds."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, else the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str, most: int = 200) -> str:
    """Returns a path or another value for a message: whole, or the middle of a long one left out.

    >>> shortened("n" * 300) == "n" * 80 + "..." + "n" * 40
    True
    """
    return text if len(text) <= most else f"{text[: most - 120]}...{text[-40:]}"


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 20
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 400


def brief(value: object) -> str:
    """Returns a value for a message, in bounded time whatever it holds.

    By its aliases a short YAML file may hold the same list a billion times.

    >>> brief({"name": ["a", [["b"]]]})
    "{'name': ['a', [[...]]]}"
    """
    return shortened(_BRIEF.repr(value))


def check_characters(decoded: Any) -> None:
    """Looks for half a character in the texts of decoded JSON or YAML.

    No file in UTF-8 can hold one, and no tokenizer takes it.

    Raises:
        ValueError: there is one.
    """
    values, seen = [decoded], set[int]()
    while values:
        value = values.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = ascii(value[error.start])[1:-1]
                raise ValueError(
                    f"{half} is half a character; write both halves, or none"
                ) from error
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))  # in YAML it may lie in many places, also in itself
            values += [*value, *value.values()] if isinstance(value, dict) else value
