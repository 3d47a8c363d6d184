"""How an option is declared, and read where it states weights by name; imports no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from typing import Any

from medrm.errors import ConfigError


def option(default: Any, text: str, choices: Collection[str] | None = None) -> Any:
    """Returns a dataclass field with its one description.

    Args:
        default: of the option.
        text: that `--help` shows.
        choices: the accepted values, such as a registry, whose later entries are accepted as well;
            None: those of the annotated type.
    """
    metadata = {"help": text} if choices is None else {"help": text, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def as_in(group: type, name: str) -> Any:
    """Returns an option that another dataclass declares."""
    declared = next(field for field in dataclasses.fields(group) if field.name == name)
    return dataclasses.field(default=declared.default, metadata=declared.metadata)


def positive_weights(option_name: str, written: str, names: str, example: str) -> dict[str, float]:
    """Returns the weights by name that an option states as a JSON object.

    Args:
        option_name: for the message.
        written: JSON.
        names: what the weights are of, for the message.
        example: of such an object.

    Raises:
        ConfigError: it maps no names to positive, finite numbers.
    """
    try:
        weights = {str(name): float(weight) for name, weight in json.loads(written).items()}
    except (ValueError, TypeError, AttributeError):
        weights = {"": 0.0}
    if not weights or not all(0 < weight < math.inf for weight in weights.values()):
        raise ConfigError(
            f"{option_name} is {written!r}; give positive numbers by {names}, such as {example}"
        )
    return weights


def weights_of_annotators(written: str | None) -> dict[str, float] | None:
    """Returns what `annotator_weights` says, None where it is not given.

    Raises:
        ConfigError: not a mapping of names to positive numbers.
    """
    if written is None:
        return None
    return positive_weights("annotator_weights", written, "annotator", '{"senior": 2}')
