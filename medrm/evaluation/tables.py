"""Terminal tables of an evaluation and of a comparison; readable from 80 columns on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrm.errors import printable
from medrm.evaluation.compare import Comparison
from medrm.evaluation.measures.accuracy import best_rule
from medrm.evaluation.measures.criteria import CRITERIA
from medrm.evaluation.report import Report

DASH = "-"

CONTROLS = {
    "zero_shot_verdict": "base, zero-shot verdict",
    "zero_shot_averaged": "base, verdict of both orders",
    "zero_shot_likelihood": "base, answer likelihood",
    "frozen_probe": "frozen base, trained head",
    "untrained_head": "untrained head",
    "base_skeleton": "base, forced skeleton",
    "base_averaged": "base, skeleton of both orders",
    "init_adapter": "adapter before this training",
    "skeleton": "trained, forced skeleton",
    "blank_images": "trained, blank images",
    "shuffled_images": "trained, another case's images",
    "text_only": "trained, no images",
}
"""The controls of a run in words: of scores, of judges, of both."""

_PLAIN = ("members", "subset", "subsets")
"""Levels of a metric that a line leaves out."""

_SHORT = {"always_a": "A", "always_b": "B"}

_COLOURS = {"Improved": "green", "Regressed": "red", "Not shown": "yellow"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints one evaluation: accuracy with its interval beside the best rule and the ceiling."""
    console = console or Console()
    console.print(accuracy_table(report))
    if "official" in report["protocols"]:
        console.print(plain(f"Column official: {report['protocols']['official']['label']}."))
    if any(one and one["consistency"] is not None for one in _robust(report).values()):
        console.print(position_table(report))
    for line in (*together_lines(report), *metric_lines(report)):
        console.print(plain(line))
    unread = counted(report["unread"])
    if unread:
        console.print(plain(f"Unread, counted wrong: {unread} (cases)."))
    for line in parsing_lines(report["parsing"]):
        console.print(plain(line))
    if report["verdict_mass"] is not None:
        console.print(f"Mean probability of naming A or B at all: {report['verdict_mass']:.2g}.")


def accuracy_table(report: Report) -> Table:
    """Returns the accuracy on every dimension; the best rule is the one that sees no image."""
    table = _table(
        f"{report['model']} on {report['benchmark']['name']} ({report['readout']})",
        ("dimension", "accuracy (95 % CI)", "official", "n", "read", "best rule", "ceiling"),
    )
    official = report["protocols"].get("official", {}).get("micro", {})
    for name, ceiling in report["ceiling"].items():
        measures = _robust(report).get(name) or {}
        best = best_rule(report["baselines"], name)
        table.add_row(
            plain(name),
            with_interval(measures.get("accuracy"), measures.get("ci95")),
            percent(official.get(name)),
            str(measures.get("n", DASH)),
            percent(measures.get("coverage")),
            DASH if best is None else f"{_SHORT.get(best[0], best[0])} {percent(best[1])}",
            percent(ceiling),
        )
    return table


def position_table(report: Report) -> Table:
    """Returns what the presented order does to a judge's verdicts."""
    table = _table(
        "both orders",
        ("dimension", "same verdict", "names the first", "right in both", "kappa", "AC1"),
    )
    for name, measures in _robust(report).items():
        if measures:
            table.add_row(
                plain(name),
                percent(measures["consistency"]),
                percent(measures["first_rate"]),
                percent(measures["both_correct"]),
                _coefficient(measures["kappa"]),
                _coefficient(measures["ac1"]),
            )
    return table


def together_lines(report: Report) -> list[str]:
    """Returns what the dimensions say together, one sentence for each measure."""
    means, structure = report["protocols"].get("robust", {}).get("means"), report["structure"]
    if means is None or structure is None:
        return []
    lines = []
    if means["mean"]["n"]:
        shown = with_interval(means["mean"]["accuracy"], means["mean"]["ci95"])
        lines.append(f"Mean over the dimensions: {shown} %.")
    if means["joint"]["n"]:
        shown = with_interval(means["joint"]["accuracy"], means["joint"]["ci95"])
        lines.append(f"Right on all at once: {shown} % of {means['joint']['n']} cases.")
    if structure["halo"] is not None:
        lines.append(
            f"One answer on all dimensions: {percent(structure['all_same'])} %, the experts "
            f"{percent(structure['all_same_label'])} % ({structure['cases']} cases)."
        )
    return lines


def metric_lines(report: Report) -> list[str]:
    """Returns a line for each metric of the benchmark's authors, in percent."""
    return [
        f"Metric {metric} ({dimension}): "
        + ", ".join(f"{name} {percent(value)}" for name, value in _flat(numbers))
        + "."
        for dimension, metrics in report["metrics"].items()
        for metric, numbers in metrics.items()
    ]


def _flat(numbers: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float | None]]:
    """Yields the numbers with their names joined; without HealthBench's 34 criteria."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            if name != CRITERIA:
                yield from _flat(value, f"{before}{name} " if name not in _PLAIN else before)
        else:
            yield f"{before}{name}", value


def parsing_lines(parsing: Mapping[str, Any] | None) -> list[str]:
    """Returns how a judge's replies were read, one sentence for each parser."""
    if parsing is None:
        return []
    lines = []
    if set(parsing["states"]) != {"ok"}:
        lines.append(f"Calls: {counted(parsing['states'])}.")
    for parser in ("strict", "official"):
        found = parsing[parser]
        if found:
            notes = {name: found.get(name, 0) for name in ("suspect", "voided_but_readable")}
            named = [f"{name.replace('_', ' ')} {count}" for name, count in notes.items() if count]
            stages = ", ".join([counted(found["stages"]), *named])
            lines.append(f"Replies read by the {parser} parser: {stages}.")
    return lines


def counted(counts: Mapping[str, int]) -> str:
    """Returns names with how often they occur."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a comparison: each dimension, the controls, and the verdict in one sentence."""
    console = console or Console()
    console.print(comparison_table(comparison))
    if comparison["controls"]:
        console.print(control_table(comparison))
    for line in beside_lines(comparison):
        console.print(plain(line))
    colour = _COLOURS[comparison["verdict"]]
    console.print(Text(printable(comparison["headline"]), style=f"bold {colour}"))


def beside_lines(comparison: Comparison) -> list[str]:
    """Returns what stands beside the headline, one sentence or two each."""
    gain, pictures = gain_sentence(comparison), comparison["pictures"]
    lines = [gain] if gain else []
    if pictures is not None:
        lines.append(pictures["sentence"])
    official = (comparison["official"] or {}).get(comparison["primary"]["dimension"])
    if official is not None and official["delta"] is not None:
        lines.append(
            f"Official protocol on {comparison['primary']['dimension']}: "
            f"{percent(official['before'])} % -> {percent(official['after'])} %."
        )
    least = comparison["minimum_detectable"]["points"]
    if least is not None:
        lines.append(f"Smallest gain that such cases show (power 80 %): {100 * least:.1f} points.")
    return [*lines, *comparison["notes"]]


def gain_sentence(comparison: Comparison) -> str | None:
    """Returns what the primary dimension's difference consists of; None unless both are judges.

    Where one side wrote nothing that could be read, the split says nothing about judgement.
    """
    dimension, coverage = comparison["primary"]["dimension"], comparison["guardrails"]["coverage"]
    gain = (comparison["gain"] or {}).get(dimension)
    if gain is None:
        return None
    mute = [side for side in ("before", "after") if coverage[side] == 0]
    if not mute:
        return (
            f"Of the difference on {dimension}, {100 * gain['judgement']:+.1f} points come from "
            f"judging better what was read, {100 * gain['format']:+.1f} points from how much could "
            "be read."
        )
    sentence = (
        f"Nothing could be read {' and '.join(mute)} on {dimension}, so the difference says "
        "nothing about judging better."
    )
    control = comparison["controls"].get("base_skeleton")
    if "before" in mute and control is not None:
        sentence += (
            f" With the JSON given, the base is right in {percent(control['before'])} % "
            f"({CONTROLS['base_skeleton']})."
        )
    return sentence


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
    mean = comparison["mean"]
    if len(comparison["dimensions"]) > 1 and mean["n"]:
        table.add_row(*_cells("mean", {**mean, "p": None, "ceiling": None}))
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


def _robust(report: Report) -> Mapping[str, Any]:
    measures: Mapping[str, Any] = report["protocols"].get("robust", {}).get("dimensions", {})
    return measures


def plain(name: str) -> Text:
    """Returns a name that comes from data as it is: neither markup nor control characters."""
    return Text(printable(name))


def percent(value: float | None) -> str:
    """Returns a share as a percentage with one decimal; a dash where there is none."""
    return DASH if value is None else f"{100 * value:.1f}"


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """Returns a share with its interval, which is cut at 0 and 100 % for reading only."""
    if value is None or bounds is None:
        return percent(value)
    low, high = max(0.0, bounds[0]), min(1.0, bounds[1])
    return f"{percent(value)} ({percent(low)}, {percent(high)})"


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


def _coefficient(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


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


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table
