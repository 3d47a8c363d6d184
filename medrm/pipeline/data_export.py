"""`medrm data export`: cases for a further reader, for another trainer, or for the hub."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from medrm.config.option import option
from medrm.data.case_set import read_drafts
from medrm.data.readers.votes_jsonl import dimension_problem
from medrm.data.sources import CaseDraft, Excluded
from medrm.data.store.build_index import order_dimensions
from medrm.errors import ConfigError, DataError, nearest, refuse, shortened
from medrm.exchange.case_files import ImageCopies
from medrm.exchange.exported import Export, ExportOptions, facts_of
from medrm.exchange.exporters import EXPORTERS
from medrm.files import write_atomically
from medrm.integrity import MANIFEST, damage, seal_files, sealed_names
from medrm.output_folder import new_folder
from medrm.pipeline.chosen_cases import Drafts, least_agreed, model_disagrees, named_cases
from medrm.version import __version__

logger = logging.getLogger(__name__)

REPORT_FILE = "export_report.json"


@dataclass(frozen=True, kw_only=True)
class DataExportRequest(ExportOptions):
    """What one `medrm data export` is asked to do.

    Attributes:
        source: of the cases, as `--train_data` takes it.
    """

    source: str
    to: str = option(
        MISSING,
        "label_studio: a project with its labelling configuration; sheet: a table with drop-downs; "
        "trl, ms_swift, llamafactory: rows of preferences for their trainers; hub: parquet and a "
        "card, written here and uploaded nowhere",
        EXPORTERS,
    )
    output: Path = option(MISSING, "folder to write; it appears complete or not at all")
    image_root: Path | None = option(
        None, "folder in which images are looked for first (default: that of the source)"
    )
    image_conversion: str | None = option(
        None,
        "how DICOM and NIfTI images become pictures (default: as dataset.json of the source says)",
    )
    cases: Path | None = option(None, "file of the ids of the cases to export, one a line")
    least_agreed: int | None = option(
        None, "this many of the cases that two readers or more judged, the least agreed first"
    )
    model_disagrees: Path | None = option(
        None,
        "evaluation folder: cases where the model prefers what the experts' majority does not, its "
        "most confident ones first",
    )
    limit: int | None = option(None, "at most this many cases, the first")
    overwrite_output_dir: bool = option(
        False, "replace what an earlier export has left in output, where nobody has changed it"
    )

    def __post_init__(self) -> None:
        exporter = EXPORTERS[self.to]
        of_forms = {name for form in EXPORTERS.values() for name in form.takes}
        defaults = {field.name: field.default for field in fields(self)}
        problems = [
            f"--{name} is not for --to {self.to}; leave it out"
            for name in sorted(of_forms - {*exporter.takes})
            if getattr(self, name) != defaults[name]
        ]
        for name in ("least_agreed", "limit"):
            number = getattr(self, name)
            if number is not None and number < 1:
                problems.append(f"--{name} is {number}; give 1 or more")
        if None not in (self.least_agreed, self.model_disagrees):
            problems.append("--least_agreed and --model_disagrees both order cases; give one")
        named = [dimension_problem(name) for name in self.dimensions]
        problems += filter(None, named)
        if len(set(self.dimensions)) < len(self.dimensions):
            problems.append("--dimensions names one twice; name each once")
        refuse(problems)


def export_data(request: DataExportRequest) -> dict[str, Any]:
    """Writes cases in another program's form and returns the report, which is written as well.

    Raises:
        DataError: the source cannot be read, or nothing of it can be written.
        ConfigError: an option or the output is not accepted.
    """
    name, source = read_drafts(request.source, request.image_root, request.image_conversion)

    set_aside: list[Excluded] = []

    def drafts() -> Iterator[CaseDraft]:
        result = source.read()
        yield from result.drafts
        set_aside[:] = result.excluded

    cases = _chosen(request, drafts)
    facts = facts_of(cases())
    dimensions = _dimensions(request, facts.dimensions)
    exporter = EXPORTERS[request.to]
    _refuse_changed(request)
    marks = (REPORT_FILE,)
    overwrite = request.overwrite_output_dir
    with new_folder(request.output, Path(request.source), marks, overwrite=overwrite) as folder:
        export = Export(name, folder, cases, facts, dimensions, request, ImageCopies(folder))
        exporter.write(export)
        for row in set_aside if cases is drafts else ():
            export.leave_out(row.reason, row.case_id)
        report = {"medrm": __version__, "to": request.to, **_settings(request), **export.report()}
        if not export.rows.total():
            reasons = "; ".join(f"{reason} ({n})" for reason, n in export.left_out.most_common())
            raise DataError(f"Nothing of {request.source} can be exported: {reasons or 'no case'}.")
        text = json.dumps(report, ensure_ascii=False, indent=1)
        write_atomically(folder / REPORT_FILE, [f"{text}\n".encode()], durable=False)
        seal_files(folder, os.listdir(folder))
    _show(report, request.output)
    return report


def _settings(request: DataExportRequest) -> dict[str, Any]:
    """Returns by which options cases were chosen and written."""
    names = ("seed", "cases", "least_agreed", "model_disagrees", "limit", "image_conversion")
    stated = {name: getattr(request, name) for name in names}
    return {
        "settings": {
            name: value.name if isinstance(value, Path) else value  # where it lies is not told
            for name, value in stated.items()
            if value is not None
        }
    }


def _chosen(request: DataExportRequest, drafts: Drafts) -> Drafts:
    """Returns the cases that the options choose, in their order; all of the source without any."""
    ids: Sequence[str] | None = None
    if request.cases is not None:
        ids = named_cases(request.cases, drafts)
    if request.least_agreed is not None or request.model_disagrees is not None:
        if request.model_disagrees is not None:
            ranked = model_disagrees(request.model_disagrees, request.dimensions)
            ids = [draft.case_id for draft in drafts()] if ids is None else ids
        else:
            ranked = least_agreed(drafts(), request.dimensions)
        among = {*(ranked if ids is None else ids)}
        ids = [case_id for case_id in ranked if case_id in among][: request.least_agreed]
        if not ids:
            reason = (
                "no case was judged by two readers"
                if request.least_agreed
                else ("the model and the experts' majority differ on no case of the source")
            )
            raise DataError(f"Nothing is chosen: {reason} on these dimensions.")
    if ids is None and request.limit is not None:
        ids = [draft.case_id for _, draft in zip(range(request.limit), drafts(), strict=False)]
    if ids is None:
        return drafts
    wanted = dict.fromkeys(ids[: request.limit])
    by_id = {draft.case_id: draft for draft in drafts() if draft.case_id in wanted}
    chosen = [by_id[case_id] for case_id in wanted]
    return lambda: chosen


def _dimensions(request: DataExportRequest, voted: Sequence[str]) -> tuple[str, ...]:
    """Returns the dimensions of an export: as asked, else all that are voted on.

    Raises:
        ConfigError: there is none, or rows are asked for of one that nobody votes on.
    """
    if not request.dimensions and not voted:
        raise ConfigError("The cases have no votes; name what to ask about with --dimensions.")
    unknown = [name for name in request.dimensions if name not in voted]
    if unknown and not EXPORTERS[request.to].asks:
        raise ConfigError(
            f"No vote is about {', '.join(map(repr, map(shortened, unknown)))}; the cases have "
            f"votes on {', '.join(map(shortened, voted)) or 'nothing'}.{nearest(unknown[0], voted)}"
        )
    return tuple(request.dimensions) or order_dimensions(voted)


def _refuse_changed(request: DataExportRequest) -> None:
    """Refuses to replace an export in which somebody has worked.

    Raises:
        ConfigError: files were changed or added since it was written.
    """
    output = request.output
    if not (request.overwrite_output_dir and (output / MANIFEST).is_file()):
        return
    problems = damage(output)
    try:
        written = {*sealed_names(output), MANIFEST}
    except (OSError, ValueError):
        written = set()
    added = (path.name for path in output.iterdir() if path.is_file())
    problems += [f"{name} was added" for name in added if name not in written]
    if problems:
        raise ConfigError(
            f"--output {output} was changed since it was written: votes of a reader may be there "
            f"({shortened('; '.join(problems))}). Move it away, or give another folder."
        )


def _show(report: dict[str, Any], output: Path) -> None:
    """Says what was written and what was left out."""
    written = ", ".join(f"{name}: {count}" for name, count in report["rows"].items())
    logger.info("%d cases, %s, in %s", report["cases"], written, output)
    for omission in report["left_out"]:
        logger.warning("left out: %s (%d times)", omission["reason"], omission["count"])
    for note in report["notes"]:
        logger.info("%s", note)
