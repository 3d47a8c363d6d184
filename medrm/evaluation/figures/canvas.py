"""The sheet a figure is drawn on, its colours, and how it becomes SVG or PNG; imports no torch.

A colour on a sheet is a role. In a page it becomes that page's CSS variable of the same name, so
that light and dark work; in a file of its own it stays the light colour given here.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.cells import cell_len

from medrm.files import partial_file, write_atomically

_STYLE = matplotlib.rc_params_from_file(
    str(Path(__file__).with_name("figures.mplstyle")), use_default_template=False
)

INK, SOFT, LINE = (_STYLE[key] for key in ("text.color", "axes.labelcolor", "axes.edgecolor"))
BACK = "#ffffff"
OLD, NEW, GOOD, BAD = "#d55e00", "#0072b2", "#0071b3", "#d45d01"
"""Vermillion and blue of Okabe and Ito. Each role has a value of its own, so that it can be told
from its colour."""

ROLES = {INK: "ink", SOFT: "soft", LINE: "line", BACK: "back"}
ROLES |= {OLD: "old", NEW: "new", GOOD: "good", BAD: "bad"}

WIDTH = 324.0
"""Points, 4.5 inches: text of 9 points reads on a phone and in two columns of a wide page."""

SMALL = 8.0
"""Points of the smaller text."""

_RESOLUTION = 200
"""Dots per inch of a PNG."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"(url\(|^)#([^)]+)")
_FONT = re.compile(r"font-family:[^;]*;?\s*")

_FILLING = "width:100%;height:auto;display:block;stroke-linejoin:round"


@contextmanager
def drawing() -> Iterator[None]:
    """While it lasts, figures are drawn in our style, whatever style the user has set."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is measured badly and still written as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", append=False)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def sheet(title: str, height: float) -> Figure:
    """Returns an empty figure with its title; call it, and draw, inside `drawing`.

    Args:
        title: at the top left, and the figure's description for those who cannot see it.
        height: points.
    """
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    figure.set_label(title)
    figure.text(4 / WIDTH, 1 - 4 / height, title, va="top", weight="bold", size=10)
    return figure


def axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Returns axes that leave these margins (points) of a figure."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    size = ((width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes((left / width, bottom / height, *size))


def note(figure: Figure, text: str) -> None:
    """Writes a line of small print at the bottom left of a figure."""
    height = 72 * figure.get_size_inches()[1]
    figure.text(4 / WIDTH, 4 / height, text, va="bottom", size=SMALL, color=SOFT)


def margin(names: Sequence[str]) -> float:
    """Returns the points that names of 9 points need at the left of the axes."""
    return 16 + 4.9 * max(map(cell_len, names), default=0)


def row_chart(
    title: str, names: Sequence[str], height: float, *, bottom: float, right: float, top: float = 24
) -> tuple[Figure, Axes]:
    """Returns a figure whose y axis is a list of names from top to bottom, and its axes.

    Args:
        title: of the figure.
        names: of the rows; row i has the coordinate i.
        height: of the figure in points.
        bottom: margin below the axes in points.
        right: margin beside them, for the values.
        top: margin above them.
    """
    figure = sheet(title, height)
    chart = axes(figure, margin(names), bottom, right, top)
    rows(chart, names)
    return figure, chart


def rows(chart: Axes, names: Sequence[str]) -> None:
    """Makes the y axis a list of rows from top to bottom, without a line."""
    chart.set_yticks(range(len(names)), names)
    chart.set_ylim(len(names) - 0.4, -0.6)
    chart.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    chart.spines["left"].set_visible(False)


def percent_axis(chart: Axes) -> None:
    """Makes the x axis reach from 0 to 100 %."""
    chart.set_xlim(0, 100)
    chart.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])


def value_axis(chart: Axes) -> None:
    """Lets the y axis start at 0, with faint lines."""
    chart.set_ylim(bottom=0)
    chart.grid(axis="y", color=LINE, linewidth=0.5)


def beside(chart: Axes, row: float, text: str, colour: str = INK) -> None:
    """Writes the value of a row at the right of the axes."""
    style: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    chart.annotate(text, (1, row), (6, 0), va="center", size=SMALL, color=colour, **style)


def list_beside(
    chart: Axes, lines: Sequence[str], left: float, top: float, step: float, **first: Any
) -> None:
    """Writes lines beside the axes, from `top` on (fractions), the first one in another style."""
    for index, line in enumerate(lines):
        style = {"size": SMALL, **first} | ({"color": SOFT, "weight": "normal"} if index else {})
        chart.text(left, top - step * index, line, transform=chart.transAxes, **style)


def dot(
    chart: Axes, x: float, y: float, colour: str, fill: str, alpha: float = 1.0, shape: str = "o"
) -> None:
    """Draws a marker, which stays complete at the edge of the axes."""
    style: dict[str, Any] = {"marker": shape, "markersize": 6, "markerfacecolor": fill}
    chart.plot(x, y, color=colour, alpha=alpha, clip_on=False, **style)


def difference_row(
    chart: Axes, row: int, difference: Mapping[str, Any], shape: str, clear: bool
) -> None:
    """Draws a difference with its interval, cut at 100 points, and writes both beside it.

    Args:
        chart: with a row for each difference.
        row: of this one.
        difference: `delta` and `ci95`, see `comparison.json`.
        shape: of the marker.
        clear: whether the marker is filled.
    """
    delta, bounds = difference["delta"], difference["ci95"]
    low, high = bounds or (delta, delta)
    low, high = max(-1.0, low), min(1.0, high)
    chart.plot([100 * low, 100 * high], [row, row], color=NEW, linewidth=1.6)
    dot(chart, 100 * delta, row, NEW, NEW if clear else BACK, shape=shape)
    interval = f" ({100 * low:+.1f}, {100 * high:+.1f})" if bounds else ""
    beside(chart, row, f"{100 * delta:+.1f}{interval}")


def zero_line(chart: Axes) -> None:
    """Draws the line of no difference below what is there, and keeps it inside."""
    chart.axvline(0, color=SOFT, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
    low, high = chart.get_xlim()
    chart.set_xlim(min(low, -1), max(high, 1))


def stacked_bar(
    chart: Axes, row: float, pieces: Sequence[tuple[int, str, str, float]], least_labelled: float
) -> None:
    """Draws a row's bar from 0 to 100 %, a piece for each count in proportion to it.

    Args:
        chart: with a percent axis.
        row: of the bar.
        pieces: count, colour, colour of its label, and opacity, from left to right.
        least_labelled: percent from which a piece holds its count.
    """
    total, start = sum(count for count, *_ in pieces) or 1, 0.0
    for count, colour, ink, alpha in pieces:
        size = 100 * count / total
        label = str(count) if size >= least_labelled else ""
        chart.barh(row, size, 0.72, start, color=colour, alpha=alpha)
        chart.text(start + size / 2, row, label, ha="center", va="center", size=7.5, color=ink)
        start += size


def tile(chart: Axes, row: int, column: int, strength: float, text: str, font_size: float) -> None:
    """Draws a cell of a matrix: blue above 0, red below, as opaque as `strength` is far from 0."""
    colour = GOOD if strength >= 0 else BAD
    chart.bar(column, 0.94, 0.94, row - 0.47, color=colour, alpha=abs(strength))
    chart.text(column, row, text, ha="center", va="center", size=font_size)


def legend_entry(
    figure: Figure, label: str, left: float, bottom: float, colour: str, alpha: float, gap: float
) -> None:
    """Writes a coloured square at a place of a figure (points), and its name `gap` beside it."""
    height = bottom / (72 * figure.get_size_inches()[1])
    figure.text(left / WIDTH, height, "\u25a0", va="bottom", color=colour, alpha=alpha, size=10)
    figure.text((left + gap) / WIDTH, height, label, va="bottom", color=SOFT, size=SMALL)


def svg_inline(figure: Figure, name: str) -> str:
    """Returns a figure as an `<svg>` element for a page: it fills its place, in the page's colours.

    The same figure gives the same bytes. `name` keeps its ids apart from those of other figures.
    """
    root = ElementTree.fromstring(_svg(figure, name))
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {identity for value in values for _, identity in _REFERENCE.findall(value)}
    for element in list(root.iter()):
        _tidy(element, used, f"{name}-")
    for key in ("width", "height", "version"):
        root.attrib.pop(key)
    root.attrib |= {"xmlns": _SVG, "role": "img", "aria-label": str(figure.get_label())}
    root.attrib |= {"class": "figure", "style": _FILLING}
    return ElementTree.tostring(root, encoding="unicode")


def write_figure(figure: Figure, name: str, folder: Path) -> tuple[Path, Path]:
    """Writes `<name>.svg` and `<name>.png` in light colours on white and returns their paths."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    figure.patch.set_facecolor(BACK)
    write_atomically(svg, [_svg(figure, name)])
    with partial_file(png) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None}, dpi=_RESOLUTION)
    return svg, png


def _svg(figure: Figure, name: str) -> bytes:
    """Returns a figure as an SVG file; the same figure drawn anew gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _tidy(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Gives one element the page's colours and font, and ids that no other figure has."""
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    for child in list(element):
        # A style sheet of a figure would hold for all of the page.
        if child.tag.endswith(("}metadata", "}style")):
            element.remove(child)
    for key, value in list(element.attrib.items()):
        element.set(key, _REFERENCE.sub(rf"\1#{prefix}\2", value))
    if "style" in element.attrib:
        style = _FONT.sub("", element.attrib["style"])
        element.set("style", _COLOUR.sub(lambda match: f"var(--{ROLES[match[0]]})", style))
    if _LINK in element.attrib:
        element.set("href", element.attrib.pop(_LINK))
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", prefix + identity)
    element.text, element.tail = (
        (text or "").strip() or None for text in (element.text, element.tail)
    )
