"""The figure of how a judge's replies were read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.figures.canvas import (
    BACK,
    BAD,
    GOOD,
    INK,
    SMALL,
    SOFT,
    WIDTH,
    axes,
    beside,
    margin,
    rows,
    sheet,
    short,
)

Parsing = Mapping[str, Any] | None
"""`parsing` of report.json."""

_SHARE = 12.0
"""Percent from which a part's count is written into it."""

_MOST = 10
"""Parts that the legend names."""


def funnel(before: Parsing, after: Parsing, *, alone: bool = False) -> Figure | None:
    """Returns how many replies each rule of each parser read, and why others were not wholly read.

    None unless a judge wrote text. Read parts are blue, from the strictest rule on ever paler;
    `none` counts replies of which nothing was read, split by its reasons where they add up.

    Args:
        before: how the replies before were read.
        after: how those after were.
        alone: whether there is no before at all.
    """
    bars = [
        (parser if alone else f"{parser} {side}", _parts(found[parser]))
        for parser in ("strict", "official")
        for side, found in (("before", before), ("after", after))
        if found is not None and found[parser] is not None
    ]
    if not bars:
        return None
    colours = _colours([part for _, parts in bars for part in parts])
    lines = (min(len(colours), _MOST) + 1) // 2
    names = [name for name, _ in bars]
    figure = sheet("How the replies were read", 52 + 20 * len(bars) + 13 * lines)
    place = axes(figure, margin(names), 28 + 13 * lines, 44, 24)
    for row, (_, parts) in enumerate(bars):
        total, start = sum(parts.values()) or 1, 0.0
        for part, count in parts.items():
            colour, alpha = colours[part]
            size = 100 * count / total
            place.barh(row, size, 0.72, start, color=colour, alpha=alpha)
            if size >= _SHARE:
                ink = BACK if alpha > 0.6 else INK
                middle = start + size / 2
                place.text(middle, row, str(count), ha="center", va="center", size=7.5, color=ink)
            start += size
        beside(place, row, f"n {sum(parts.values())}", SOFT)
    rows(place, names)
    place.set_xlim(0, 100)
    place.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    height = 72 * figure.get_size_inches()[1]
    for index, (part, (colour, alpha)) in enumerate(list(colours.items())[:_MOST]):
        x, y = 6 + 158 * (index % 2), 4 + 13 * (lines - 1 - index // 2)
        text = partial(figure.text, y=y / height, va="bottom")
        text(x / WIDTH, s="\u25a0", color=colour, alpha=alpha, size=10)
        text((x + 11) / WIDTH, s=short(part, 32), color=SOFT, size=SMALL)
    return figure


def _parts(found: Mapping[str, Any]) -> dict[str, int]:
    """Counts by the rule that read a reply, then of those that none read."""
    stages = dict(found["stages"])
    unread = stages.pop("none", 0)
    parts = {f"read by rule: {stage}": count for stage, count in stages.items()}
    if not unread:
        return parts
    if sum(found["unread"].values()) == unread:
        return parts | {f"unread: {reason}": count for reason, count in found["unread"].items()}
    return parts | {"unread": unread}


def _colours(parts: list[str]) -> dict[str, tuple[str, float]]:
    """A colour and an opacity for each part, read ones first."""
    read, unread = (
        list(dict.fromkeys(part for part in parts if part.startswith("read") is wanted))
        for wanted in (True, False)
    )
    return {
        part: (colour, max(0.2, 1.0 - 0.27 * index))
        for kind, colour in ((read, GOOD), (unread, BAD))
        for index, part in enumerate(kind)
    }
