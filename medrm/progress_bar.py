"""Bars on the terminal that show how far something is; elsewhere nothing. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


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
