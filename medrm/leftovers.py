"""What a killed process has left half written: known by names that nobody else gives.

Call neither while another process writes into the folder.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from medrm.files import DRAFT, PARTIAL

_PARTIAL_NAME = re.compile(rf"\.\d+-\d+{re.escape(PARTIAL)}\Z")
"""How the name ends that `partial_file` gives: with a process and a thread."""


def remove_drafts(folder: Path) -> None:
    """Removes what is left of folders that were being written or removed."""
    for draft in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def remove_partials(folder: Path, pattern: str) -> None:
    """Removes what is left of files that were to be at paths that fit a pattern of `Path.glob`."""
    for path in folder.glob(f"{pattern}.*{PARTIAL}"):
        if _PARTIAL_NAME.search(path.name):
            path.unlink(missing_ok=True)
