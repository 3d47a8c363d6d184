"""Terminal tables of an evaluation and of a comparison; readable from 80 columns on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrm.errors import printable
from medrm.evaluation.compare import Comparison
from medrm.evaluation.report import Report

DASH = "-"

CONTROLS = {
    "zero_shot_verdict": "base, zero-shot verdict",
    "zero_shot_likelihood": "base, answer likelihood",
    "frozen_probe": "frozen base, trained head",
    "untrained_head": "untrained head",
    "blank_images": "trained, blank images",
}
"""The controls of a Bradley-Terry run in words."""

_COLOURS = {"Improved": "green", "Regressed": "red", "Not shown": "yellow"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints one evaluation: accuracy with its interval beside ceiling and baselines."""
    console = console or Console()
    benchmark = report["benchmark"]
    table = _table(
        f"{report['model']} on {benchmark['name']} ({report['readout']})",
        (
            "dimension",
            "accuracy (95 % CI)",
            "official",
            "n",
            "read",
            "longer",
            "ceiling",
        ),
    )
    robust = report["protocols"].get("robust", {}).get("dimensions", {})
    official = report["protocols"].get("official", {}).get("micro", {})
    for name, ceiling in report["ceiling"].items():
        measures = robust.get(name) or {}
        table.add_row(
            plain(name),
            _with_interval(measures.get("accuracy"), measures.get("ci95")),
            percent(official.get(name)),
            str(measures.get("n", DASH)),
            percent(measures.get("coverage")),
            percent(report["baselines"]["longer"][name]),
            percent(ceiling),
        )
    console.print(table)
    unread = ", ".join(f"{reason} {count}" for reason, count in report["unread"].items())
    if unread:
        console.print(plain(f"Unread, counted wrong: {unread} (cases)."))
    if report["verdict_mass"] is not None:
        console.print(f"Mean probability of naming A or B at all: {report['verdict_mass']:.2g}.")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a comparison: each dimension, the controls, and the verdict in one sentence."""
    console = console or Console()
    console.print(comparison_table(comparison))
    if comparison["controls"]:
        console.print(control_table(comparison))
    colour = _COLOURS[comparison["verdict"]]
    console.print(Text(printable(comparison["headline"]), style=f"bold {colour}"))


def comparison_table(comparison: Comparison) -> Table:
    """Returns before, after and difference of every dimension, in percent and points."""
    benchmark = comparison["benchmark"]
    table = _table(
        f"{benchmark['name']}: {benchmark['cases']} cases in {benchmark['clusters']} clusters",
        ("dimension", "before", "after", "delta (95 % CI)", "p adj.", "n", "ceiling"),
    )
    for name, entry in comparison["dimensions"].items():
        primary = name == comparison["primary"]["dimension"]
        table.add_row(*_cells(name, entry), style="bold" if primary else "")
    return table


def control_table(comparison: Comparison) -> Table:
    """Returns what else the trained model is compared with, on the primary dimension."""
    primary = comparison["primary"]
    table = _table(
        f"{primary['dimension']}: trained adapter {percent(primary['after'])} against",
        ("control", "accuracy", "adapter minus control", "p"),
    )
    for name, entry in comparison["controls"].items():
        table.add_row(
            plain(CONTROLS.get(name, name)),
            percent(entry["before"]),
            points(entry),
            p_value(entry["p"]),
        )
    return table


def plain(name: str) -> Text:
    """Returns a name that comes from data as it is: neither markup nor control characters."""
    return Text(printable(name))


def percent(value: float | None) -> str:
    """Returns a share as a percentage with one decimal; a dash where there is none."""
    return DASH if value is None else f"{100 * value:.1f}"


def points(entry: Mapping[str, Any]) -> str:
    """Returns a difference with its interval in percentage points."""
    if entry["delta"] is None:
        return DASH
    shown = f"{100 * entry['delta']:+.1f}"
    if entry["ci95"] is None:
        return shown
    low, high = entry["ci95"]
    return f"{shown} ({100 * low:+.1f}, {100 * high:+.1f})"


def p_value(value: float | None) -> str:
    """Returns a p value with three decimals."""
    if value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _cells(name: str, entry: Mapping[str, Any]) -> list[str | Text]:
    return [
        plain(name),
        percent(entry["before"]),
        percent(entry["after"]),
        points(entry),
        p_value(entry["p"]),
        str(entry["n"]),
        percent(entry["ceiling"]),
    ]


def _with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A share with its interval, which is cut at 0 and 100 % for reading only."""
    if value is None or bounds is None:
        return percent(value)
    low, high = max(0.0, bounds[0]), min(1.0, bounds[1])
    return f"{percent(value)} ({percent(low)}, {percent(high)})"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table
