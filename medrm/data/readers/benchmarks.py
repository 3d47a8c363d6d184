"""Benchmarks as their authors released them: rows of pairs, best-of-N answers or criteria.

What each column holds stands in `data/<name>/dataset.yaml`; no benchmark is known by name here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from medrm.data.drafts import CaseDraft, ReadResult
from medrm.data.readers.benchmark_rows import best_of, criterion_of, pair_of, text_of
from medrm.data.readers.media import media_of
from medrm.data.registry import Description
from medrm.data.row_tables import SUFFIXES, Row, RowTable, missing_columns, open_table
from medrm.errors import DataError, report

_ROWS = {"pairs": pair_of, "best_of": best_of, "criteria": criterion_of}
_IMAGE_MARK = "<image>"
_OPTIONAL = ("image", "video")


def released_files(description: Description, root: Path) -> list[Path]:
    """Returns the tables of a described set at `root`, which is their folder or one of them."""
    if root.is_file():
        columns = open_table(root).columns if root.suffix in SUFFIXES else ()
        return [] if missing_columns(columns, _required(description)) else [root]
    for pattern in description.files:
        if Path(pattern).suffix in SUFFIXES:
            found = sorted(root.glob(pattern)) or sorted(root.glob(Path(pattern).name))
            if found:
                return found
    return []


def read_released(
    description: Description, files: Iterable[Path], boundary: Path | None = None
) -> ReadResult:
    """Returns the cases of a benchmark's files.

    An id that occurs again is told apart by a number behind it, `id#2`; the id as it is written is
    the group `prompt`, and its cases are one cluster.

    Args:
        description: what the columns hold.
        files: one table each.
        boundary: the folder that no link may leave, by default that of each file.

    Raises:
        DataError: all missing columns, wrong rows and missing images in one message.
    """
    problems: list[str] = []
    drafts: list[CaseDraft] = []
    seen: Counter[str] = Counter()
    for path in files:
        table = open_table(path, boundary)
        missing = missing_columns(table.columns, _required(description))
        problems += [f"{path.name}: {problem}" for problem in missing]
        for index, (place, row) in enumerate(table.rows if not missing else ()):
            try:
                draft = _draft(description, table, index, row)
            except DataError as error:
                problems.append(f"{path.name} {place}: {error}")
                continue
            seen[draft.case_id] += 1
            if seen[draft.case_id] > 1:
                draft.case_id += f"#{seen[draft.case_id]}"
            drafts.append(draft)
        problems += [f"{path.name} {problem}" for problem in table.problems]
    if problems:
        name = description.name
        title = f"{name} has {len(problems)} problems; data/{name}/README.md says how it is had."
        raise DataError(report(title, problems))
    return ReadResult(drafts)


def _required(description: Description) -> tuple[str, ...]:
    columns = description.columns
    return tuple(column for key, column in columns.items() if key not in _OPTIONAL)


def _draft(description: Description, table: RowTable, index: int, row: Row) -> CaseDraft:
    columns = description.columns
    if missing := missing_columns(row, _required(description)):
        raise DataError("; ".join(missing))
    prompt = text_of(row, columns["id"])
    images = media_of(table, index, row, columns.get("image"), columns.get("video"))
    case_id, together = prompt, prompt
    if description.form == "criteria":
        parts = (prompt, text_of(row, columns["response_id"]), text_of(row, columns["category"]))
        case_id = ":".join(parts)
    elif description.form == "best_of":
        together = re.sub("^tied:", "ref:", prompt)
    said = _ROWS[description.form](row, columns, case_id)
    return CaseDraft(
        case_id,
        images,
        said.question.replace(_IMAGE_MARK, "").strip() if images else said.question,
        said.answers,
        {description.dimension: said.votes},
        [f"prompt:{together}"],
        _groups(description, row, prompt),
    )


def _groups(description: Description, row: Row, prompt: str) -> dict[str, str]:
    """Returns the groups: prompt, category where a column states one, and subset.

    The subset is the first whose pattern is found in `category/id/path`, else the category.
    """
    columns = description.columns
    category = text_of(row, columns["category"]) if "category" in columns else ""
    paths = (row.get(columns[key]) for key in _OPTIONAL if key in columns)
    path = next((value for value in paths if isinstance(value, str)), "")
    subset = _first(description.subsets, f"{category}/{prompt}/{path}") or category
    groups = {"category": category, "subset": subset, "prompt": prompt}
    return {group: name for group, name in groups.items() if name}


def _first(patterns: Mapping[str, str], text: str) -> str | None:
    return next((name for name, pattern in patterns.items() if re.search(pattern, text)), None)
