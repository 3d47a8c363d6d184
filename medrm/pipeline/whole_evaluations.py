"""Evaluations of a run are as they were written, are derived anew, or are asked anew."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState

from medrm.errors import DataError, MedrmError
from medrm.evaluation.evaluator import rescore
from medrm.evaluation.folder import SETUP_FILE, seal_evaluation
from medrm.evaluation.records.jsonl import RESPONSES_FILE, VERDICTS_FILE
from medrm.evaluation.records.stored_cases import CASES_FILE
from medrm.evaluation.report import Report, read_report
from medrm.integrity import MANIFEST, damage, is_sealed

logger = logging.getLogger(__name__)

_RECORD = (RESPONSES_FILE, SETUP_FILE, CASES_FILE)
"""What the rest of an evaluation follows from."""


def is_undamaged(folder: Path) -> bool:
    """Returns whether an evaluation is as it was sealed, or follows from its responses again.

    One that is not sealed is under way, or of a version before 0.3: it counts as it is.
    """
    problems = damage(folder) if is_sealed(folder) else []
    if not problems:
        return True
    if _is_record_damaged(problems):
        return False
    try:
        rescore(folder)
    except (MedrmError, OSError):
        return False
    seal_evaluation(folder)
    logger.warning(
        "%s was damaged, and was derived anew from its %s: %s",
        folder,
        RESPONSES_FILE,
        "; ".join(problems),
    )
    return True


def whole_report(folder: Path) -> Report | None:
    """Returns the report of an evaluation, which is written last; None: it is not whole."""
    files = (folder / SETUP_FILE, folder / VERDICTS_FILE)
    if not is_undamaged(folder) or not all(map(Path.is_file, files)):
        return None
    with suppress(DataError):
        return read_report(folder)
    return None


@contextmanager
def sealing(folder: Path) -> Iterator[None]:
    """Seals an evaluation once it has been written; of a damaged one nothing is taken over.

    All processes call it together.
    """
    is_main = PartialState().is_main_process
    if is_main and is_sealed(folder):
        problems = damage(folder)
        if problems:
            logger.warning("%s is damaged, and is asked anew: %s", folder, "; ".join(problems))
            (folder / RESPONSES_FILE).unlink(missing_ok=True)
        (folder / MANIFEST).unlink()
    yield
    if is_main:
        seal_evaluation(folder)


def _is_record_damaged(problems: list[str]) -> bool:
    return any(problem.startswith(tuple(f"{name} " for name in _RECORD)) for problem in problems)
