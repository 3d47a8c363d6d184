"""Figures of groups of cases: before and after by member, and differences by dimension."""

from __future__ import annotations

from matplotlib.figure import Figure

from medrm.evaluation.compare import SIGNIFICANCE
from medrm.evaluation.figures import canvas
from medrm.evaluation.run_files import RunFiles
from medrm.evaluation.tables.comparison_tables import FEW

MOST = 24
"""Members of a group that a figure shows, those with most cases first."""

_WIDEST = 40.0
"""Points of a column of a heat map, at most."""

_STRONGEST = 0.5
"""Opacity of the largest difference of a heat map, which leaves its text readable."""


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
    names = [f"{canvas.short(cell['member'])} ({cell['n']})" for cell in largest]
    title = f"Accuracy in % by {canvas.short(group)}: {canvas.short(run.primary)}"
    figure, axes = canvas.row_chart(title, names, 66 + 16 * len(names), bottom=36, right=76)
    for row, cell in enumerate(largest):
        before, after = 100 * cell["before"], 100 * cell["after"]
        alpha = 0.45 if cell["n"] < FEW else 1.0
        axes.plot(
            [before, after], [row, row], color=canvas.SOFT, linewidth=1.4, alpha=alpha, zorder=1
        )
        canvas.dot(axes, before, row, canvas.OLD, canvas.BACK, alpha)
        canvas.dot(axes, after, row, canvas.NEW, canvas.NEW, alpha)
        colour = canvas.SOFT if alpha < 1 else canvas.INK
        canvas.beside(axes, row, f"{before:.1f} \u2192 {after:.1f}", colour)
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
    if run.comparison is None or not run.comparison["cells"]:
        return None
    by_group, dimensions = run.comparison["cells"], list(run.comparison["dimensions"])
    group = "organ" if "organ" in by_group else next(iter(by_group))
    cells = {
        (cell["member"], cell["dimension"]): cell
        for cell in by_group[group]
        if cell["delta"] is not None
    }
    counts: dict[str, int] = {}
    for (member, _), cell in cells.items():
        counts[member] = max(counts.get(member, 0), cell["n"])
    members = sorted(counts, key=lambda member: (-counts[member], member))[:MOST]
    columns = [name for name in dimensions if any(key[1] == name for key in cells)]
    if not cells or not columns:
        return None
    names = [f"{canvas.short(member, 20)} ({counts[member]})" for member in members]
    title = f"After minus before by {canvas.short(group)} and dimension, in points"
    right = max(34, canvas.WIDTH - canvas.margin(names) - _WIDEST * len(columns))
    height = 112 + 18 * len(names)
    figure, axes = canvas.row_chart(title, names, height, bottom=20, right=right, top=92)
    largest = max(abs(cell["delta"]) for cell in cells.values()) or 1.0
    for row, member in enumerate(members):
        for column, name in enumerate(columns):
            cell = cells.get((member, name))
            if cell is None:
                continue
            strength = _STRONGEST * cell["delta"] / largest
            canvas.tile(axes, row, column, strength, f"{100 * cell['delta']:+.0f}", 8)
            if cell["p_bh"] is not None and cell["p_bh"] < SIGNIFICANCE:
                axes.plot(column + 0.4, row - 0.36, marker="o", markersize=2.5, color=canvas.INK)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_xticks(range(len(columns)), canvas.named(columns, 20), rotation=40, ha="left")
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines["bottom"].set_visible(False)
    canvas.note(figure, "exploratory; dot: p < 0.05, adjusted over all cells (Benjamini-Hochberg)")
    return figure
