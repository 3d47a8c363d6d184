"""What the processes of an evaluation or a run tell each other, and what one does for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from medrm.errors import MedrmError, Stopped

T = TypeVar("T")


def gather(mine: list[T]) -> list[T]:
    """Waits until every process is here, and returns what all of them have."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return mine
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(mine)
    return gathered


@contextmanager
def opened_by_first(open_it: Callable[[ExitStack], T]) -> Iterator[T]:
    """Lets the first process open something for all, which all go on with or none.

    Args:
        open_it: what the first process does; what it enters into the stack is left at the end.

    Raises:
        MedrmError, OSError: of `open_it`, in the first process.
        Stopped: in the others, which leave it to the first to say why.
    """
    with ExitStack() as stack:
        opened: list[T] = []
        error: MedrmError | OSError | None = None
        if os.environ.get("RANK", "0") == "0":
            try:
                opened.append(open_it(stack))
            except (MedrmError, OSError) as refusal:
                error = refusal
        opened = gather(opened)
        if not opened:
            raise error or Stopped(2, "another process says why")
        yield opened[0]
