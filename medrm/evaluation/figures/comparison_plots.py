"""Figures of a comparison: differences by dimension and by group, and what became of the cases."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.comparison.sentences import SIGNIFICANCE
from medrm.evaluation.figures import canvas
from medrm.evaluation.report import RunFiles
from medrm.evaluation.tables.comparison_tables import FEW
from medrm.evaluation.tables.table import short

MOST = 24
"""Members of a group that a figure shows, those with most cases first."""

_WIDEST = 40.0
"""Points of a column of a heat map, at most."""

_STRONGEST = 0.5
"""Opacity of the largest difference of a heat map, which leaves its text readable."""

_OUTCOMES = {
    "both_right": ("right both times", canvas.LINE, canvas.INK),
    "fixed": ("fixed", canvas.GOOD, canvas.BACK),
    "broken": ("broken", canvas.BAD, canvas.BACK),
    "both_wrong": ("wrong both times", canvas.SOFT, canvas.BACK),
}
"""Key to name, colour, and colour of the number in it."""


def forest(run: RunFiles) -> Figure | None:
    """Returns each dimension's difference with its interval; None where nothing was compared.

    A marker is hollow where p, adjusted over the dimensions, is 0.05 or more. The mean over the
    dimensions, a diamond, is hollow where its interval holds 0.
    """
    compared = run.comparison["dimensions"] if run.comparison else {}
    rows = [
        (name, difference, "o", difference["p"] is not None and difference["p"] < SIGNIFICANCE)
        for name, difference in compared.items()
        if difference["delta"] is not None
    ]
    if run.comparison is None or not rows:
        return None
    mean = run.comparison["mean"]
    if len(rows) > 1 and mean is not None:
        bounds = mean["ci95"]
        rows.append(("mean", mean, "D", bounds is not None and not bounds[0] <= 0 <= bounds[1]))
    names, title = [short(name) for name, *_ in rows], "Accuracy after minus before, in points"
    figure, axes = canvas.row_chart(title, names, 66 + 19 * len(names), bottom=34, right=104)
    for row, (_, difference, shape, clear) in enumerate(rows):
        canvas.difference_row(axes, row, difference, shape, clear)
    canvas.zero_line(axes)
    hollow = "adjusted p \u2265 0.05 (mean: the interval holds 0)"
    canvas.note(figure, f"95 % intervals; hollow: {hollow}")
    return figure


def transitions(run: RunFiles) -> Figure | None:
    """Returns a bar of cases for each dimension; None where nothing was compared."""
    compared = run.comparison["dimensions"] if run.comparison else {}
    differences = {name: difference for name, difference in compared.items() if difference["n"]}
    if not differences:
        return None
    names, title = list(map(short, differences)), "What became of the cases, by dimension"
    figure, axes = canvas.row_chart(title, names, 72 + 20 * len(names), bottom=44, right=74)
    for row, difference in enumerate(differences.values()):
        pieces = [
            (difference[key], colour, ink, 1.0) for key, (_, colour, ink) in _OUTCOMES.items()
        ]
        canvas.stacked_bar(axes, row, pieces, least_labelled=14.0)
        canvas.beside(axes, row, f"+{difference['fixed']} / \u2212{difference['broken']}")
    canvas.percent_axis(axes)
    left = 6.0
    for label, colour, _ in _OUTCOMES.values():
        canvas.legend_entry(figure, label, left, 4, colour, 1.0, 10)
        left += 20 + 4.6 * len(label)
    return figure


def dumbbell(run: RunFiles, group: str) -> Figure | None:
    """Returns before and after of each member of a group on the primary dimension.

    None without members.

    Args:
        run: with a comparison.
        group: such as organ.
    """
    cells = [
        cell
        for cell in (run.comparison or {})["cells"][group]
        if cell["dimension"] == run.primary and None not in (cell["before"], cell["after"])
    ]
    if not cells:
        return None
    largest = sorted(cells, key=lambda cell: (-cell["n"], cell["member"]))[:MOST]
    names = [f"{short(cell['member'])} ({cell['n']})" for cell in largest]
    title = f"Accuracy in % by {short(group)}: {short(run.primary)}"
    figure, axes = canvas.row_chart(title, names, 66 + 16 * len(names), bottom=36, right=76)
    for row, cell in enumerate(largest):
        before, after = 100 * cell["before"], 100 * cell["after"]
        alpha, ink = (0.45, canvas.SOFT) if cell["n"] < FEW else (1.0, canvas.INK)
        line: dict[str, Any] = {"linewidth": 1.4, "alpha": alpha, "zorder": 1}
        axes.plot([before, after], [row, row], color=canvas.SOFT, **line)
        canvas.dot(axes, before, row, canvas.OLD, canvas.BACK, alpha)
        canvas.dot(axes, after, row, canvas.NEW, canvas.NEW, alpha)
        canvas.beside(axes, row, f"{before:.1f} \u2192 {after:.1f}", ink)
    axes.set_xlim(-3, 103)
    axes.axvline(50, color=canvas.LINE, linewidth=1, zorder=0)
    left_out = len(cells) - len(largest)
    more = f"; {left_out} smaller ones are left out" if left_out else ""
    canvas.note(figure, f"hollow: before, filled: after; faded: fewer than {FEW} cases{more}")
    return figure


def heatmap(run: RunFiles) -> Figure | None:
    """Returns the difference of each member and dimension of a group, in points; None without any.

    The group is the organ where cases name one. A dot stands where p, adjusted over all cells
    (Benjamini-Hochberg), is below 0.05.
    """
    by_group = run.comparison["cells"] if run.comparison else {}
    group = "organ" if "organ" in by_group else next(iter(by_group), "")
    cells = [cell for cell in by_group.get(group, ()) if cell["delta"] is not None]
    if run.comparison is None or not cells:
        return None
    counts = {cell["member"]: cell["n"] for cell in sorted(cells, key=lambda cell: cell["n"])}
    members = sorted(counts, key=lambda member: (-counts[member], member))[:MOST]
    compared = {cell["dimension"] for cell in cells}
    columns = [name for name in run.comparison["dimensions"] if name in compared]
    names = [f"{short(member, 20)} ({counts[member]})" for member in members]
    title = f"After minus before by {short(group)} and dimension, in points"
    right = max(34, canvas.WIDTH - canvas.margin(names) - _WIDEST * len(columns))
    height = 112 + 18 * len(names)
    figure, axes = canvas.row_chart(title, names, height, bottom=20, right=right, top=92)
    largest = max(abs(cell["delta"]) for cell in cells) or 1.0
    for cell in cells:
        if cell["member"] in members:
            row, column = members.index(cell["member"]), columns.index(cell["dimension"])
            strength = _STRONGEST * cell["delta"] / largest
            canvas.tile(axes, row, column, strength, f"{100 * cell['delta']:+.0f}", 8)
            if cell["p_bh"] is not None and cell["p_bh"] < SIGNIFICANCE:
                axes.plot(column + 0.4, row - 0.36, marker="o", markersize=2.5, color=canvas.INK)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    headings = [short(name, 20) for name in columns]
    axes.set_xticks(range(len(columns)), headings, rotation=40, ha="left")
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines["bottom"].set_visible(False)
    canvas.note(figure, "exploratory; dot: p < 0.05, adjusted over all cells (Benjamini-Hochberg)")
    return figure
