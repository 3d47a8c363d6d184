"""The registry of exporters: forms in which cases are written for other programs."""

from __future__ import annotations

from medrm.exchange.exported import Exporter
from medrm.exchange.exporters.annotation_sheet import write_sheet
from medrm.exchange.exporters.hub_folder import write_hub_folder
from medrm.exchange.exporters.label_studio_project import write_project
from medrm.exchange.exporters.trainer_rows import write_llamafactory, write_ms_swift, write_trl

EXPORTERS: dict[str, Exporter] = {
    "label_studio": Exporter(write_project, ("seed", "embed_images"), asks=True),
    "sheet": Exporter(write_sheet, ("seed", "table", "annotator", "with_votes"), asks=True),
    "trl": Exporter(write_trl),
    "ms_swift": Exporter(write_ms_swift),
    "llamafactory": Exporter(write_llamafactory),
    "hub": Exporter(write_hub_folder),
}
"""Name to exporter. One from outside the package is added by putting an entry into this dict."""
