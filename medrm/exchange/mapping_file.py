"""The YAML file of a mapping, read strictly: all values are texts, and no key stands twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medrm.errors import ConfigError, check_characters, shortened

_LARGEST = 2**20
"""Bytes of a mapping."""


class _Loader(yaml.BaseLoader):
    """Reads every value as the text that was written, and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(
                f"key {shortened(doubled)!r} stands twice (line {node.start_mark.line + 1})"
            )
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the content of a mapping file, not yet checked.

    Raises:
        ConfigError: there is none, or it is no YAML of keys and values.
    """
    if not path.is_file():
        raise ConfigError(f"mapping {path}: there is no such file; --suggest writes one.")
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"mapping {path} has more than {_LARGEST:,} bytes; is it another file?")
    try:
        return load_mapping(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = shortened(" ".join(str(error).split()))
        raise ConfigError(f"mapping {path} is no readable YAML: {reason}. Correct it.") from error


def load_mapping(text: str) -> dict[str, Any]:
    """Returns the keys and values of a mapping's YAML, all values as texts.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it holds none.
    """
    content = yaml.load(text, _Loader)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys")
    check_characters(content)
    return content
