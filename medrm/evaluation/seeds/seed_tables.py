"""Tables of a comparison over seeds, for terminal, page and papers; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from medrm.errors import printable
from medrm.evaluation.comparison.sentences import interval_words
from medrm.evaluation.tables.comparison_tables import CONTROLS
from medrm.evaluation.tables.table import (
    DASH,
    Cell,
    Styles,
    Table,
    Track,
    p_value,
    percent,
    points,
    table_of,
    to_csv,
)
from medrm.evaluation.tables.terminal import COLOURS, print_contents

Seeds = dict[str, Any]
"""What `seed_comparison.comparison_over` returns."""

INTERVAL = "difference (95 % CI)"

LEGEND = (
    "Mean ± standard deviation over the seeds. The interval and p are over seeds and cases: they "
    "say what another seed would gain on other cases."
)

_TERMINAL = ("dimension", "before", "after", INTERVAL, "p", "n", "ceiling")
_SHORT = {INTERVAL: "delta (95 % CI)", "p": "p adj."}
_SPREADS = ("before", "after", "delta")

_SEEDS_FOR_PARTS = 5
"""Below so many seeds their part of the variance is too uncertain to be shown."""


def dimension_table(comparison: Seeds) -> Table:
    """Returns before, after and difference of every dimension, over seeds and cases.

    Below several dimensions stands their mean; then the accuracy on the primary dimension by the
    official protocol.
    """
    primary, entries = comparison["primary"]["dimension"], comparison["dimensions"]
    rows = [_cells(name, entry) for name, entry in entries.items()]
    styles: Styles = {i: "primary" for i, row in enumerate(rows) if row["dimension"] == primary}
    below: dict[str, Mapping[str, Any]] = {}
    if len(rows) > 1:
        below["mean"] = {**comparison["mean"], "p": None}
    if primary in (comparison["official"] or {}):
        below[f"official: {primary}"] = {**comparison["official"][primary], "p": None}
    below = {name: entry for name, entry in below.items() if entry["delta"] is not None}
    if below:
        styles[len(rows)] = "sum"
        rows += [_cells(name, entry) for name, entry in below.items()]
    benchmark = comparison["benchmark"]
    caption = (
        f"{benchmark['name']}: {benchmark['cases']} cases in {benchmark['clusters']} clusters, "
        f"{len(comparison['seeds'])} seeds ({', '.join(map(str, comparison['seeds']))})"
    )
    return table_of(caption, rows, LEGEND, styles)


def _cells(name: str, entry: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of an entry; what it has no number for is a dash."""
    spread = entry["after_spread"]
    reach = f"{percent(spread['min'])} to {percent(spread['max'])}" if spread else DASH
    return {
        "dimension": name,
        "drawn": Track(entry["before"], entry["after"], entry.get("ceiling"), None, name),
        "before": with_spread(entry, "before"),
        "after": with_spread(entry, "after"),
        "least to most": reach,
        INTERVAL: points(entry),
        "over cases alone": points({**entry, "ci95": entry["ci95_cases"]}),
        "SD": DASH if not spread else percent(entry["delta_spread"]["sd"]),
        "p": p_value(entry["p"]),
        "n": str(entry["n"]),
        "ceiling": percent(entry.get("ceiling")),
    }


def with_spread(entry: Mapping[str, Any], side: str) -> str:
    """Returns a mean over the seeds with its standard deviation, in percent.

    A base is the same for all seeds: where the mean before does not vary, it stands alone.
    """
    spread = entry[f"{side}_spread"]
    if not spread or (side == "before" and spread["min"] == spread["max"]):
        return percent(entry[side])
    return f"{percent(entry[side])} ± {percent(spread['sd'])}"


def seed_table(comparison: Seeds) -> Table:
    """Returns what each seed says by itself on the primary dimension."""
    rows: list[dict[str, Cell]] = [
        {
            "seed": str(run["seed"]),
            "before": percent(run["before"]),
            "after": percent(run["after"]),
            INTERVAL: points(run),
            "p": p_value(run["p"]),
            "verdict": run["verdict"],
            "failed guardrails": ", ".join(run["failed"]) or "none",
        }
        for run in comparison["by_seed"]
    ]
    caption = f"Each seed by itself on {comparison['primary']['dimension']}."
    return table_of(caption, rows, "Here the interval is over the cases alone, for this training.")


def control_table(comparison: Seeds) -> Table:
    """Returns what else could explain the accuracy on the primary dimension, over all seeds."""
    rows: list[dict[str, Cell]] = [
        {
            "control": CONTROLS.get(name, name),
            "accuracy": with_spread(entry, "before"),
            INTERVAL: points(entry),
            "p": p_value(entry["p"]),
        }
        for name, entry in comparison["controls"].items()
    ]
    primary = comparison["primary"]
    caption = f"{primary['dimension']}: trained adapters {with_spread(primary, 'after')} against"
    return table_of(caption, rows)


def seed_lines(comparison: Seeds) -> list[str]:
    """Returns what stands beside the headline, one sentence or two each."""
    lines, primary = [], comparison["primary"]
    verdicts = [run["verdict"] for run in comparison["by_seed"]]
    counts = ", ".join(f"{name} {verdicts.count(name)}" for name in dict.fromkeys(verdicts))
    lines.append(f"Each seed by itself: {counts}.")
    parts = primary["variance"]
    # The part of the cases is cut at 0, where it says nothing of the other one.
    if parts and parts["cases"] > 0 and len(comparison["seeds"]) >= _SEEDS_FOR_PARTS:
        share = parts["seeds"] / (parts["seeds"] + parts["cases"])
        lines.append(
            "The part of this gain's variance that more seeds make smaller is estimated at "
            f"{100 * share:.0f} %."
        )
    if primary["ci95_cases"]:
        lines.append(f"For these very seeds: {interval_words(primary['ci95_cases'])}.")
    if comparison["best_rule"]:
        lines.append(comparison["best_rule"]["sentence"])
    lines += [f"Left out: {name}, {reason}." for name, reason in comparison["left_out"].items()]
    return lines


def note_lines(comparison: Seeds) -> list[str]:
    """Returns what qualifies the gain of some seed."""
    notes: dict[str, list[int]] = {}
    for run in comparison["by_seed"]:
        for note in run["notes"]:
            notes.setdefault(note, []).append(run["seed"])
    return [f"Seed {', '.join(map(str, seeds))}: {note}" for note, seeds in notes.items()]


def print_seeds(comparison: Seeds, console: Console | None = None) -> None:
    """Prints a comparison over seeds: dimensions, seeds, controls, and the verdict."""
    console = console or Console()
    contents: list[Table | str] = [dimension_table(comparison).pick(_TERMINAL, headings=_SHORT)]
    headings = {INTERVAL: _SHORT[INTERVAL]}
    contents.append(seed_table(comparison).without("failed guardrails", headings=headings))
    if comparison["controls"]:
        headings = {INTERVAL: "adapter minus control"}
        controls = control_table(comparison)
        contents.append(controls.pick(controls.columns, headings=headings))
    print_contents([*contents, *seed_lines(comparison), *note_lines(comparison)], console)
    style = f"bold {COLOURS[comparison['verdict']]}"
    console.print(Text(printable(comparison["headline"]), style=style))


def seeds_csv(comparison: Seeds) -> str:
    """Returns every mean of every dimension and control with its spread, unrounded."""
    by_seed = [f"seed_{seed}" for seed in comparison["seeds"]]
    bounds = [f"{name}_{end}" for name in ("ci95", "ci95_cases") for end in ("low", "high")]
    columns = ["protocol", "row", "measure", "mean", "sd", "min", "max", *bounds]
    return to_csv([*columns, "p", "p_adjusted", "n", "clusters", *by_seed], _csv_rows(comparison))


def _csv_rows(comparison: Seeds) -> Iterator[Sequence[Any]]:
    entries = [("robust", name, entry) for name, entry in comparison["dimensions"].items()]
    entries.append(("robust", "mean", comparison["mean"]))
    entries += [("official", name, of) for name, of in (comparison["official"] or {}).items()]
    entries += [("robust", f"minus {name}", of) for name, of in comparison["controls"].items()]
    for protocol, row, entry in entries:
        for measure in _SPREADS if entry["n"] else ():
            spread = entry[f"{measure}_spread"]
            tested: list[Any] = [None] * 6
            if measure == "delta":
                both, cases = (entry[key] or (None, None) for key in ("ci95", "ci95_cases"))
                adjusted = "p_unadjusted" in entry
                p = entry["p_unadjusted"] if adjusted else entry["p"]
                tested = [*both, *cases, p, entry["p"] if adjusted else None]
            numbers = [entry[measure], *(spread[key] for key in ("sd", "min", "max"))]
            counts = [entry["n"], entry["clusters"]]
            yield [protocol, row, measure, *numbers, *tested, *counts, *spread["by_seed"]]
