"""The registry of importers: forms in which other programs write annotation."""

from __future__ import annotations

from medrm.exchange.imported import Importer
from medrm.exchange.importers import plain_votes, reader_sheet, sheet

IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importer in (
        Importer("reader_sheet", reader_sheet.is_reader_sheet, reader_sheet.read_reader_sheet),
        Importer("votes", plain_votes.is_plain_votes, plain_votes.read_plain_votes),
        Importer("sheet", sheet.is_sheet, sheet.read_sheet),
    )
}
"""Name to importer. The first one that recognises a file reads it; the sheet is the last, for it
takes every table. One from outside the package is added by putting an entry into this dict."""
