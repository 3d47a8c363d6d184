"""One living owner of a run folder; under several processes the first holds the lock for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medrm.evaluation.gathering import opened_by_first
from medrm.folder_lock import RUN_LOCK, hold


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Owns a run folder; entered before anything in it is read for a decision, or removed.

    Raises:
        ConfigError: another run owns it; nothing in it was changed.
        Stopped: in the processes beside the first, which alone says why.
    """

    def take(stack: ExitStack) -> None:
        stack.enter_context(hold(folder, RUN_LOCK, lambda who: _refusal(folder, who)))

    with opened_by_first(take):
        yield


def _refusal(folder: Path, owner: str) -> str:
    return (
        f"A run is writing {folder} ({owner}). Wait for it or stop it, or give another "
        "--output_dir; nothing in the folder was changed."
    )
