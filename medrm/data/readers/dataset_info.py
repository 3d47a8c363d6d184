"""`dataset_info.json` of LLaMA-Factory: what the columns of a file beside it hold."""

from __future__ import annotations

import posixpath
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from medrm.data.row_tables import Row, read_json_file
from medrm.errors import DataError
from medrm.files import file_digest, fits

DATASET_INFO = "dataset_info.json"

_COLUMNS = {"prompt": "instruction", "query": "input", "messages": "conversations"}
"""What the file calls a column, and the column that it is by default; others are called by it."""

_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


class RankingInfo(NamedTuple):
    """What is said of the ranking rows of a file.

    Attributes:
        form: of the rows, a name of `row_forms.ROW_FORMS`.
        columns: the default name of a column to its name in the file.
        tags: keys and roles of its messages, by LLaMA-Factory's names of these.
    """

    form: str
    columns: dict[str, str]
    tags: dict[str, str]

    def in_default_columns(self, row: Row) -> Row:
        """Returns a row with its columns, and the keys and roles of its messages, by default."""
        renamed = {name: row[column] for name, column in self.columns.items() if column in row}
        cells = {
            name: self._messages(cell)
            for name, cell in renamed.items()
            if self.tags and name in ("conversations", "chosen", "rejected")
        }
        return row | renamed | cells

    def _messages(self, cell: Any) -> Any:
        if fits(cell, list[Row]):
            return [self._messages(message) for message in cell]
        if not isinstance(cell, dict):
            return cell
        role = cell.get(self.tags.get("role_tag", "from"))
        roles = {self.tags[tag]: role for tag, role in _ROLES.items() if tag in self.tags}
        named = roles.get(role, role) if isinstance(role, str) else role
        return {"role": named, "content": cell.get(self.tags.get("content_tag", "value"))}


def ranking_info(path: Path) -> RankingInfo | None:
    """Returns what a file's folder says of its rows; None: nothing, or that they are no rankings.

    Raises:
        DataError: what it says is no JSON, or names columns by something else than text.
    """
    info_path = path.parent / DATASET_INFO
    if not info_path.is_file():
        return None
    return _stated_ranking_info(info_path, path.name, file_digest(info_path))


@lru_cache(maxsize=1)  # each form of rows asks for it
def _stated_ranking_info(info_path: Path, name: str, _digest: str) -> RankingInfo | None:
    info = read_json_file(info_path)
    # Other tools have a file of this name as well, which holds a list.
    described = info.values() if isinstance(info, dict) else ()
    of_rankings = (
        settings
        for settings in described
        if isinstance(settings, dict)
        and posixpath.normpath(str(settings.get("file_name"))) == name
        and settings.get("ranking")
    )
    settings = next(of_rankings, None)
    if settings is None:
        return None
    columns, tags = (settings.get(key) or {} for key in ("columns", "tags"))
    if not fits(columns, dict[str, str]) or not fits(tags, dict[str, str]):
        raise DataError(f"{info_path}: columns and tags of {name!r} must be names.")
    is_alpaca = settings.get("formatting", "alpaca") == "alpaca"
    return RankingInfo(
        "llamafactory_alpaca" if is_alpaca else "llamafactory_sharegpt",
        {_COLUMNS.get(name, name): column for name, column in columns.items()},
        tags,
    )
