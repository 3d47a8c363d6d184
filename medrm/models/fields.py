"""Checks what was read from JSON against the fields of a dataclass: names, types and choices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medrm.errors import AdapterError, nearest, report


def check_keys(path: Path, record: Mapping[str, Any], kind: type) -> None:
    """Raises AdapterError unless the record has the keys of a dataclass and no others."""
    accepted = {item.name for item in dataclasses.fields(kind)}
    problems = [f"{key} is missing" for key in sorted(accepted - record.keys())]
    problems += [
        f"{key} is not known.{nearest(key, accepted)}" for key in sorted(record.keys() - accepted)
    ]
    if problems:
        raise AdapterError(
            report(f"{path} does not fit this version of medrm. Save the adapter again:", problems)
        )


def check_values(path: Path, record: Mapping[str, Any], kind: type) -> None:
    """Raises AdapterError unless each value is one of its field's type."""
    problems = []
    for name, hint in get_type_hints(kind).items():
        if not _fits(record[name], hint):
            given = json.dumps(record[name])[:80]
            problems.append(f"{name} is {given}; accepted: {_accepted(hint)}")
    if problems:
        raise AdapterError(
            report(f"{path} holds values that are not accepted. Save the adapter again:", problems)
        )


def _fits(value: object, hint: Any) -> bool:
    """Returns whether a value read from JSON is of an annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if isinstance(value, bool):
        return hint is bool
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint)  # a part that was checked before
    return isinstance(value, (int, float) if hint is float else hint)


def _accepted(hint: Any) -> str:
    """Returns an annotated type in the words of JSON."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(json.dumps, inner))
    if origin in (Union, UnionType):
        return ", ".join(map(_accepted, inner))
    if origin is tuple:
        return f"a list of: {_accepted(inner[0])}"
    if origin is Mapping:
        return "an object"
    return {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }.get(hint, "null")
