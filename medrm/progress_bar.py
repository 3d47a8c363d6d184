"""How far something is: a bar on a terminal, elsewhere lines of the log. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = (5.0, 60.0)
"""Until the first line of the log, doubled for each further one, and at most."""

_BURST = 1.0
"""Seconds in which all that was computed together is counted: only then a rate means anything."""


def progress_bar(
    *columns: ProgressColumn,
    show: bool = True,
    console: Console | None = None,
    refreshes_per_second: float = 10,
) -> Progress:
    """Returns a bar with name and count, and further columns behind them.

    Args:
        columns: such as the time that remains.
        show: whether a terminal shows it; one of several processes does.
        console: where it is shown; None: standard error.
        refreshes_per_second: how often it is drawn; each time costs what runs beside it.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        console=console,
        transient=True,
        refresh_per_second=refreshes_per_second,
        disable=not (show and console.is_terminal),
    )


@contextmanager
def counting(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what a long reading calls with the number done and the number in all."""
    with progress_bar() as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Advance(Protocol):
    """Says that more are done."""

    def __call__(self, count: int, *, before: bool = False) -> None:
        """Counts `count` more; `before`: by an earlier start, which tells nothing of speed."""


@contextmanager
def progress(
    name: str, total: int | None, *, done: int = 0, show: bool = True
) -> Iterator[Advance]:
    """Yields what is called with how many more are done; a bar, or ever rarer lines of the log.

    Args:
        name: of what is counted.
        total: how many there are; None: not known.
        done: of them before.
        show: whether anything is shown; one of several processes does.
    """
    completed, wait = done, _SECONDS_BETWEEN_LINES[0]
    start = last = time.monotonic()
    due, told_from = start + wait, start + wait + _BURST
    with progress_bar(TimeRemainingColumn(), show=show) as bar:
        task = bar.add_task(name, total=total, completed=done)

        def tell(now: float) -> None:
            nonlocal wait, due, told_from
            if show and bar.disable and completed > done:
                wait = min(2 * wait, _SECONDS_BETWEEN_LINES[1])
                due, told_from = now + wait, now + wait + _BURST
                rate = (completed - done) / max(last - start, 1e-6)
                logger.info("%s", _told(name, completed, total, rate))

        def advance(count: int, *, before: bool = False) -> None:
            nonlocal completed, done, start, last, due, told_from
            now = time.monotonic()
            if last < due <= now:
                told_from = now + _BURST
            if now >= told_from:
                tell(now)
            if before and completed == done:  # nothing was computed yet
                start = now
                due, told_from = start + wait, start + wait + _BURST
            completed, done, last = completed + count, done + before * count, now
            bar.advance(task, count)

        yield advance
        if last >= due:
            tell(last)


def _told(name: str, completed: int, total: int | None, rate: float) -> str:
    """Returns how far something is, how many are done a second, and how long the rest takes."""
    if total is None:
        return f"{name}: {completed:,}; {rate:.3g} a second"
    minutes = (total - completed) / rate / 60
    return f"{name}: {completed:,} of {total:,}; {rate:.3g} a second, {minutes:.1f} min to go"
