"""`medrm data import`: annotation from other programs and sheets, as a set that medrm reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from medrm.config.option import option
from medrm.errors import ConfigError, shortened
from medrm.evaluation.tables.table import table_of
from medrm.evaluation.tables.terminal import print_contents
from medrm.exchange.hash_keys import REPORT_FILE
from medrm.exchange.imported import Importer, Opened
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.mapping_file import read_mapping
from medrm.exchange.open_source import open_source, refuse_no_rows
from medrm.exchange.suggest import CHOOSES_SHEET
from medrm.exchange.write_votes import write_votes
from medrm.files import check_outputs, write_output

logger = logging.getLogger(__name__)

_MOST_REASONS = 10


@dataclass(frozen=True)
class ImportRequest:
    """What one `medrm data import` is asked to do.

    Attributes:
        file: to import.
    """

    file: str
    output: Path | None = option(
        None, "folder to write; it appears complete or not at all (needed but for --suggest)"
    )
    mapping: Path | None = option(
        None, "YAML file that says what the columns and values of a sheet mean; see data/README.md"
    )
    suggest: bool = option(
        False,
        "write such a file from the sheet's own columns and values, to --mapping (default: "
        "FILE.mapping.yaml), and import nothing; a file there with only `sheet` or "
        "`header_row` says which table is meant",
    )
    sheet: str | None = option(
        None, "which sheet of a workbook is read (default: the only one with rows)"
    )
    image_root: Path | None = option(
        None, "folder in which images are looked for first (default: that of the file)"
    )
    image_conversion: str | None = option(
        None,
        "how DICOM and NIfTI images become the pictures that are stored (data/README.md has all "
        "names)",
    )
    join: Path | None = option(
        None,
        "folder of a set whose votes are written before those of FILE, such as those of the first "
        "readers on the same cases",
    )
    overwrite_output_dir: bool = option(
        False, "replace what an earlier import has left in output, or the file of --suggest"
    )

    def __post_init__(self) -> None:
        if self.output is None and not self.suggest:
            raise ConfigError("--output is missing; give the folder to write, or --suggest.")


def import_file(request: ImportRequest) -> dict[str, Any]:
    """Imports a file and returns the report, which is also written and shown in short.

    Raises:
        DataError: the file cannot be read, or not one row can be taken.
        ConfigError: the mapping or the output is not accepted.
    """
    path = Path(request.file)
    if request.suggest:
        target = request.mapping or Path(f"{path.name}.mapping.yaml")
        chosen = _chosen_sheet(target)
        _check_target(target, is_to_be_completed=chosen is not None, request=request)
        if request.sheet is not None:
            chosen = {"sheet": request.sheet, **(chosen or {})}
        opened = open_source(path, request.image_root, chosen, sheet=request.sheet)
        return _suggest(opened, target)
    assert request.output is not None
    check_outputs({"--output": request.output})
    content = read_mapping(request.mapping) if request.mapping is not None else None
    conversion = request.image_conversion
    opened = open_source(path, request.image_root, content, conversion, request.sheet)
    importer = importer_of(opened)
    overwrite = request.overwrite_output_dir
    summary = write_votes(request.output, opened, importer, request.join, overwrite=overwrite)
    print_summary(summary, request.output)
    return summary


def importer_of(opened: Opened) -> Importer:
    """Returns the importer of a file.

    Raises:
        ConfigError: no importer recognises it.
        DataError: it holds no rows.
    """
    refuse_no_rows(opened)
    for importer in IMPORTERS.values():
        by_mapping = importer.suggest is not None
        if importer.recognises(opened) and (by_mapping or opened.mapping is None):
            return importer
    is_object = isinstance(opened.content, dict)
    hint = " It holds one object; rows stand in a list of objects." if is_object else ""
    raise ConfigError(
        f"{opened.path} is of no form that is imported; accepted are {', '.join(IMPORTERS)}.{hint}"
    )


def _chosen_sheet(target: Path) -> dict[str, Any] | None:
    """Returns a mapping that says which sheet is meant and no more; None: there is none."""
    try:
        content = read_mapping(target)
    except ConfigError:
        return None
    return content if content and content.keys() <= {*CHOOSES_SHEET} else None


def _check_target(target: Path, *, is_to_be_completed: bool, request: ImportRequest) -> None:
    """Refuses to replace a mapping that people may have corrected."""
    check_outputs({"--mapping": target}, folders=False)
    if target.exists() and not is_to_be_completed and not request.overwrite_output_dir:
        raise ConfigError(
            f"--mapping {target} is there, and says more than `sheet:`. Give another file, or "
            "--overwrite_output_dir to replace it."
        )


def _suggest(opened: Opened, target: Path) -> dict[str, Any]:
    """Writes a mapping, and says what it leaves open."""
    importer = importer_of(opened)
    if importer.suggest is None:
        raise ConfigError(f"{opened.path} ({importer.name}) needs no mapping; import it.")
    suggestion = importer.suggest(opened)
    write_output(target, [suggestion.text.encode()])
    points = "\n".join(f"  - {shortened(point)}" for point in suggestion.open_points)
    still = f"Replace each ? in it:\n{points}" if points else "Nothing is left open in it."
    logger.info("%s says what is understood of %s. %s", target, opened.path.name, still)
    return {"mapping": suggestion.text, "open_points": suggestion.open_points}


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Shows what was taken of a file and what was not."""
    rows = [{"dimension": name, **_cells(counts)} for name, counts in summary["votes"].items()]
    not_taken, rows_not_taken = summary["not_taken"], summary["rows_not_taken"]
    share = summary["rows_without_image"] / max(1, summary["rows"])
    of_rows = "" if rows_not_taken == not_taken else f" votes or lines, in {rows_not_taken:,} rows"
    lines = [
        f"{summary['source']['name']} ({summary['importer']}): "
        f"{_count(summary['rows'], 'row')} read, {_count(summary['lines'], 'line')} of votes on "
        f"{_count(summary['cases'], 'case')} by {_count(len(summary['annotators']), 'reader')}, "
        f"{_count(summary['images'], 'image')}",
        *summary["notes"],
        f"not taken: {not_taken:,}{of_rows}, {summary['without_image']:,} of them for an image "
        f"({share:.1%} of the rows)",
        *(f"  {shortened(reason, 300)}" for reason in summary["reasons"][:_MOST_REASONS]),
        f"all of it: {output / REPORT_FILE}",
    ]
    table = table_of("votes", sorted(rows, key=lambda row: row["dimension"]))
    print_contents([lines[0], table, *lines[1:]], Console(), fold=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cells(counts: dict[str, int]) -> dict[str, str]:
    return {value: str(count) for value, count in sorted(counts.items())}
