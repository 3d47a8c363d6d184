"""Fills dataclasses from JSON: every field there, no other, each of its type and in its range."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from medrm.errors import AdapterError, nearest, report, shortened
from medrm.files import fits

Record = TypeVar("Record")

_CONTROL = re.compile(r"\\u00[01][0-9a-f]|[\x7f-\x9f]")
"""Control characters as JSON escapes them, but line ends and tabs, which it writes shorter."""


def from_json(path: Path, record: dict[str, Any], record_class: type[Record]) -> Record:
    """Returns the dataclass that a JSON object holds; its lists become tuples.

    Raises:
        AdapterError: keys other than the fields, or values of other types than theirs.
    """
    hints = get_type_hints(record_class)
    problems = [f"{key} is missing" for key in sorted(hints.keys() - record.keys())]
    problems += [
        f"{key[:80]} is not known.{nearest(key[:80], hints)}"
        for key in sorted(record.keys() - hints.keys())
    ]
    if problems:
        raise AdapterError(
            report(f"{path} does not fit this version of medrm. Save the adapter again:", problems)
        )
    values = dict(record)
    fields = dataclasses.fields(cast(Any, record_class))
    metadata = {field.name: field.metadata for field in fields}
    for name, hint in hints.items():
        nested = next(filter(dataclasses.is_dataclass, get_args(hint)), None)
        if names := metadata[name].get(
            "choices"
        ):  # a registry, to which entries may have been added
            hint = Literal[tuple(names)]
        if nested is not None and isinstance(record[name], dict):
            values[name] = from_json(path, record[name], cast(Any, nested))
        elif not fits(record[name], hint):
            problems.append(f"{name} is {_shown(record[name])}; accepted: {_json_type(hint)}")
        elif _CONTROL.search(json.dumps(record[name], ensure_ascii=False)):
            problems.append(f"{name} holds control characters: {_shown(record[name])}")
        elif not _in_range(record[name], metadata[name].get("range")):
            least, most = metadata[name]["range"]
            problems.append(f"{name} is {_shown(record[name])}; accepted: {least:g} to {most:g}")
        elif isinstance(record[name], list):
            values[name] = tuple(record[name])
    if problems:
        raise AdapterError(
            report(f"{path} holds values that are not accepted. Save the adapter again:", problems)
        )
    return record_class(**values)


def _in_range(value: Any, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or value is None or bounds[0] <= value <= bounds[1]


def _shown(value: Any) -> str:
    return shortened(json.dumps(value))[:80]


def _json_type(hint: Any) -> str:
    """Returns an annotated type in the words of JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(json.dumps, arguments))
    if origin in (Union, UnionType):
        return ", ".join(map(_json_type, arguments))
    if origin is tuple:
        return f"a list of: {_json_type(arguments[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return {**names, NoneType: "null"}.get(hint, "an object")
