"""`medrm data import`: annotation from other programs and sheets, as a set that medrm reads."""

from __future__ import annotations

import logging
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from medrm.config.option import option
from medrm.errors import ConfigError
from medrm.exchange.imported import Importer, Opened
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.open_source import open_source
from medrm.exchange.write_votes import REPORT_FILE, write_votes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportRequest:
    """What one `medrm data import` is asked to do.

    Attributes:
        file: to import.
    """

    file: str
    output: Path = option(MISSING, "folder to write; it appears complete or not at all")
    image_root: Path | None = option(
        None, "folder in which images are looked for first (default: that of the file)"
    )
    overwrite_output_dir: bool = option(False, "replace what an earlier import has left in output")

    def __post_init__(self) -> None:
        if self.image_root is not None and not self.image_root.is_dir():
            raise ConfigError(
                f"--image_root {self.image_root} is no folder; give that of the images."
            )


def import_file(request: ImportRequest) -> dict[str, Any]:
    """Imports a file and returns the report, which is also written and shown in short.

    Raises:
        DataError: the file cannot be read, or not one row can be taken.
        ConfigError: the mapping or the output is not accepted.
    """
    opened = open_source(Path(request.file), request.image_root)
    importer = importer_of(opened)
    summary = write_votes(request.output, opened, importer, overwrite=request.overwrite_output_dir)
    logger.info(
        "%s: %d of %d rows not taken, %d lines of %d cases in %s",
        importer.name,
        summary["not_taken"],
        summary["rows"],
        summary["lines"],
        summary["cases"],
        request.output / REPORT_FILE,
    )
    return summary


def importer_of(opened: Opened) -> Importer:
    """Returns the importer of a file.

    Raises:
        ConfigError: no importer recognises it.
    """
    for importer in IMPORTERS.values():
        if importer.recognises(opened):
            return importer
    raise ConfigError(
        f"{opened.path} is of no form that is imported; accepted are {', '.join(IMPORTERS)}."
    )
