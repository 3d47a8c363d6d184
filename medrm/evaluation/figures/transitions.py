"""The figure of what became of the cases: right both times, fixed, broken, wrong both times."""

from __future__ import annotations

from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.run_files import RunFiles

_OUTCOMES = (
    ("both_right", "right both times", canvas.LINE, canvas.INK),
    ("fixed", "fixed", canvas.GOOD, canvas.BACK),
    ("broken", "broken", canvas.BAD, canvas.BACK),
    ("both_wrong", "wrong both times", canvas.SOFT, canvas.BACK),
)
"""Key, name, colour, and colour of the number in it."""

_LEAST_LABELLED = 14.0
"""Percent from which a bar holds its count."""


def transitions(run: RunFiles) -> Figure | None:
    """Returns a bar of cases for each dimension; None where nothing was compared."""
    compared = run.comparison["dimensions"] if run.comparison else {}
    entries = {name: difference for name, difference in compared.items() if difference["n"]}
    if not entries:
        return None
    names = canvas.named(list(entries))
    title, height = "What became of the cases, by dimension", 72 + 20 * len(names)
    figure, axes = canvas.row_chart(title, names, height, bottom=44, right=74)
    for row, difference in enumerate(entries.values()):
        total = sum(difference[key] for key, *_ in _OUTCOMES)
        start = 0.0
        for key, _, colour, ink in _OUTCOMES:
            size = 100 * difference[key] / total
            label = str(difference[key]) if size >= _LEAST_LABELLED else ""
            canvas.bar(axes, row, start, size, label, colour, ink)
            start += size
        canvas.beside(axes, row, f"+{difference['fixed']} / \u2212{difference['broken']}")
    canvas.percent_axis(axes)
    canvas.legend(figure, [(label, colour) for _, label, colour, _ in _OUTCOMES])
    return figure
