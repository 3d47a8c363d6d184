"""A set whose `dataset.yaml` names files beside it: their form, columns, dimension and images."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medrm.data.image_references import ImageOptions
from medrm.data.medical.conversions import parse_conversion
from medrm.data.row_tables import RowTable, joined_table, open_table
from medrm.data.sources import (
    DESCRIPTION,
    DataFormat,
    Description,
    ReadResult,
    Source,
    read_about,
)
from medrm.errors import (
    ConfigError,
    DataError,
    brief,
    check_characters,
    first_line,
    nearest,
    raise_problems,
    shortened,
    unknown_keys,
)
from medrm.files import fits

_BY_COLUMNS = "preferences"
"""The form of rows whose columns or dimension are stated, where the form is not."""

_MOST_CASES = 10**6
"""Of a set that is drawn."""

_KEY_TYPES = typing.get_type_hints(Description)


def parse_description(path: Path, formats: Mapping[str, DataFormat]) -> Description:
    """Returns what a `dataset.yaml` says.

    Args:
        path: of the file.
        formats: by name.

    Raises:
        ConfigError: every unknown key and wrong value, in one message.
    """
    try:
        described: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        check_characters(described)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = shortened(first_line(error))
        raise ConfigError(f"{path} is no readable YAML: {reason}. Correct it.") from error
    if not isinstance(described, dict):
        raise ConfigError(f"{path} holds no keys; it describes a data set by `key: value` lines.")
    problems = unknown_keys(described, _KEY_TYPES)
    stated = {key: value for key, value in described.items() if key in _KEY_TYPES}
    description = Description(**{"name": "", **stated})  # its values are not yet known to fit
    required = ("name",) if description.is_local else ("name", "form")
    problems += [f"key {key!r} is missing" for key in required if key not in described]
    problems += [
        f"{key} is {brief(value)}, which is no {_KEY_TYPES[key]}"
        for key, value in stated.items()
        if not fits(value, _KEY_TYPES[key])
    ]
    if not problems and not 0 <= described.get("cases", 0) <= _MOST_CASES:
        problems.append(f"cases is {described['cases']}; give at most {_MOST_CASES:,}")
    forms = [
        name
        for name, data_format in formats.items()
        if data_format.open_described or (description.is_local and data_format.read_table)
    ]
    conversion = described.get("image_conversion")
    if not problems and conversion is not None:
        try:
            parse_conversion(conversion)
        except ConfigError as error:
            problems.append(str(error))
    if not problems and "form" in described and described["form"] not in forms:
        problems.append(f"form is {described['form']!r}; accepted: {', '.join(forms)}")
    raise_problems(ConfigError, path, problems)
    return description


def open_described_files(
    description: Description,
    folder: Path,
    image_options: ImageOptions,
    formats: Mapping[str, DataFormat],
    read_by_columns: Callable[[RowTable, Path], ReadResult],
) -> Source:
    """Returns the source of a set whose description names files beside it.

    Args:
        description: of the set.
        folder: of the description; no file and no folder that it names lies outside.
        image_options: their folder takes the place of the one that the description names.
        formats: by name.
        read_by_columns: reads rows of a form that is not stated.

    Raises:
        ConfigError: a file or folder that is not there or lies outside; what the form cannot use.
    """
    described = folder / DESCRIPTION
    image_options = image_options.or_as(description.image_conversion)
    if description.images is not None:
        images = _inside(folder, description.images, "images")
        if not images.is_dir():
            raise ConfigError(f"{described}: images {description.images!r} is no folder there.")
        image_options = image_options._replace(root=image_options.root or images)
    about, revision = read_about(folder), description.revision
    revision = "local" if revision == Description.revision else revision
    named = [path for pattern in description.files for path in _matching(folder, pattern)]
    data_format = formats.get(description.form)
    if data_format is not None and data_format.open_files is not None:
        opened = data_format.open_files(description, folder, image_options)
        if opened is None:
            raise ConfigError(f"{described}: its files hold no rows of form {description.form!r}.")
        files = (*opened.files, described)
        return dataclasses.replace(opened, files=files, revision=revision, about=about)
    read = partial(_read, description, named, folder, image_options, formats, read_by_columns)
    return Source([*named, described], read, revision, about)


def _read(
    description: Description,
    files: list[Path],
    folder: Path,
    image_options: ImageOptions,
    formats: Mapping[str, DataFormat],
    read_by_columns: Callable[[RowTable, Path], ReadResult],
) -> ReadResult:
    """Reads the rows of all files as those of one table; see `open_described_files`."""
    tables = [open_table(path, folder) for path in files]
    table = joined_table(tables, description.name) if len(tables) > 1 else tables[0]
    table.image_options = image_options
    path = files[0] if len(files) == 1 else folder
    own_columns = bool(description.columns) or description.dimension != Description.dimension
    form = description.form or (_BY_COLUMNS if own_columns else "")
    if not form:
        return read_by_columns(table, path)
    data_format = formats[form]
    if data_format.read_described is not None:
        return data_format.read_described(table, path, description)
    if own_columns:
        able = ", ".join(name for name, other in formats.items() if other.read_described)
        raise ConfigError(
            f"{folder / DESCRIPTION}: rows of form {form!r} name their own dimensions and have "
            f"columns of fixed names; leave columns and dimension out, or give form {able}."
        )
    result = data_format.read_table(table, path, [description]) if data_format.read_table else None
    if result is None:
        raise DataError(
            f"{path} holds no rows of form {form!r}: its columns are {', '.join(table.columns)}. "
            "Leave form out, and the form is known by the columns."
        )
    return result


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a name or pattern, a name that exists being no pattern."""
    literal = _inside(folder, pattern, "files")
    try:
        paths = [literal] if literal.is_file() else [*filter(Path.is_file, folder.glob(pattern))]
    except ValueError as error:  # `**` within a name
        raise _outside(folder, pattern, "files") from error
    if not paths:
        names = sorted(path.name for path in folder.iterdir())
        raise ConfigError(
            f"{folder / DESCRIPTION}: there is no file {shortened(pattern)!r} in its folder."
            f"{nearest(pattern, names)}"
        )
    return [_inside(folder, str(path.relative_to(folder)), "files") for path in sorted(paths)]


def _inside(folder: Path, written: str, key: str) -> Path:
    """Returns the path of what a description names, which neither path nor link leads outside."""
    path = PurePosixPath(written)
    if not written or "\0" in written or path.is_absolute() or ".." in path.parts:
        raise _outside(folder, written, key)
    location = folder / path
    try:
        location.is_dir()  # raises where a name is longer than names may be
        stays = location.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, half a character
        raise _outside(folder, written, key) from error
    if not stays:
        raise _outside(folder, written, key)
    return location


def _outside(folder: Path, written: str, key: str) -> ConfigError:
    return ConfigError(
        f"{folder / DESCRIPTION}: {key} {shortened(written)!r} is not accepted; name what lies in "
        "the folder of the description, relative to it."
    )
