"""The figure of how a judge's replies were read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.run_files import RunFiles

_LEAST_LABELLED = 12.0
"""Percent from which a bar holds its count."""

_MOST = 10
"""Outcomes that the legend names."""


def funnel(run: RunFiles) -> Figure | None:
    """Returns how many replies each rule of each parser read, and why others were not wholly read.

    None unless a judge wrote text. What was read is blue, from the strictest rule on ever paler;
    `none` counts replies of which nothing was read, split by its reasons where they add up.
    """
    bars = [
        (parser if side == "model" else f"{parser} {side}", _outcomes(report["parsing"][parser]))
        for parser in ("strict", "official")
        for side, report in run.sides.items()
        if report["parsing"] is not None and report["parsing"][parser] is not None
    ]
    if not bars:
        return None
    colours = _colours(outcome for _, counts in bars for outcome in counts)
    legend_lines = (min(len(colours), _MOST) + 1) // 2
    height, bottom = 52 + 20 * len(bars) + 13 * legend_lines, 28 + 13 * legend_lines
    names = [name for name, _ in bars]
    title = "How the replies were read"
    figure, axes = canvas.row_chart(title, names, height, bottom=bottom, right=44)
    for row, (_, counts) in enumerate(bars):
        total, start = sum(counts.values()) or 1, 0.0
        for outcome, count in counts.items():
            colour, alpha = colours[outcome]
            size = 100 * count / total
            label = str(count) if size >= _LEAST_LABELLED else ""
            ink = canvas.BACK if alpha > 0.6 else canvas.INK
            canvas.bar(axes, row, start, size, label, colour, ink, alpha)
            start += size
        canvas.beside(axes, row, f"n {sum(counts.values())}", canvas.SOFT)
    canvas.percent_axis(axes)
    for index, (outcome, (colour, alpha)) in enumerate(list(colours.items())[:_MOST]):
        x, y = 6 + 158 * (index % 2), (4 + 13 * (legend_lines - 1 - index // 2)) / height
        square, text = x / canvas.WIDTH, (x + 11) / canvas.WIDTH
        figure.text(square, y, "\u25a0", va="bottom", color=colour, alpha=alpha, size=10)
        name = canvas.short(outcome, 32)
        figure.text(text, y, name, va="bottom", color=canvas.SOFT, size=canvas.SMALL)
    return figure


def _outcomes(parsing: Mapping[str, Any]) -> dict[str, int]:
    """Counts by the rule that read a reply, then of those that none read."""
    stages = dict(parsing["stages"])
    unread = stages.pop("none", 0)
    counts = {f"read by rule: {stage}": count for stage, count in stages.items()}
    if not unread:
        return counts
    if sum(parsing["unread"].values()) == unread:
        reasons = parsing["unread"].items()
        return counts | {f"unread: {reason}": count for reason, count in reasons}
    return counts | {"unread": unread}


def _colours(outcomes: Iterable[str]) -> dict[str, tuple[str, float]]:
    """A colour and an opacity for each outcome, those that were read first."""
    distinct = list(dict.fromkeys(outcomes))
    read = [outcome for outcome in distinct if outcome.startswith("read")]
    unread = [outcome for outcome in distinct if outcome not in read]
    return {
        outcome: (colour, max(0.2, 1.0 - 0.27 * index))
        for colour, group in ((canvas.GOOD, read), (canvas.BAD, unread))
        for index, outcome in enumerate(group)
    }
