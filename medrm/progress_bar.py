"""Bars on the terminal that show how far something is; elsewhere nothing. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


def progress_bar(*columns: ProgressColumn, show: bool = True) -> Progress:
    """Returns a bar with name and count, and further columns behind them.

    Args:
        columns: such as the time that remains.
        show: whether a terminal shows it; one of several processes does.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not (show and console.is_terminal),
    )


@contextmanager
def counting(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what a long reading calls with the number done and the number in all."""
    with progress_bar() as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
