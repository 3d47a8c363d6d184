"""The registry of importers: forms in which other programs write annotation."""

from __future__ import annotations

from medrm.exchange.imported import Importer
from medrm.exchange.importers import (
    argilla,
    doccano,
    exported_project,
    label_studio,
    plain_votes,
    prodigy,
    reader_sheet,
    sheet,
)
from medrm.exchange.importers.tool_mapping import tool
from medrm.exchange.suggest import suggest

IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importer in (
        Importer("reader_sheet", reader_sheet.is_reader_sheet, reader_sheet.read_reader_sheet),
        Importer("votes", plain_votes.is_plain_votes, plain_votes.read_plain_votes),
        Importer(
            "exported_project",
            exported_project.is_exported_project,
            exported_project.read_exported_project,
        ),
        tool("label_studio", label_studio.is_label_studio, label_studio.annotation_rows),
        tool("argilla", argilla.is_argilla, argilla.response_rows),
        tool("prodigy", prodigy.is_prodigy, prodigy.task_rows),
        tool("doccano", doccano.is_doccano, doccano.document_rows),
        Importer("sheet", sheet.is_sheet, sheet.read_sheet, suggest),
    )
}
"""Name to importer. The first one that recognises a file reads it; the sheet is the last, for it
takes every table. One from outside the package is added by putting an entry into this dict."""
