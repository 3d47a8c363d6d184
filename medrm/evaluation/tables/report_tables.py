"""Tables of what `report.json` says of one evaluation, or of two beside each other; no torch.

`sides` are the reports that a table shows, by name: `before` and `after`, or one alone. A cell
about both reads "before > after", with an arrow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from medrm.evaluation.benchmark import best_rule
from medrm.evaluation.measures.benchmark_metrics import CRITERIA
from medrm.evaluation.report import Report, robust_of
from medrm.evaluation.tables.table import (
    DASH,
    Cell,
    Columns,
    Styles,
    Table,
    Track,
    cells_of,
    decimal,
    percent,
    signed,
    table_of,
    with_interval,
)
from medrm.schema import USAGE

Sides = Mapping[str, Report]

Read = Callable[[Report, str], Mapping[str, Any]]
"""Returns the numbers of a report on a dimension, by key."""

ABSENT = "n/a"
"""One side's value where only the other side has one."""

ABSENT_LEGEND = f"{ABSENT}: one side has no such number."

_ARROW = " \u2192 "

_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b")
"""Shown by its first characters; report.json has it in full."""

_SHORT_RULES = {"always_a": "A", "always_b": "B"}


def across(values: Iterable[Any], write: Callable[[Any], str] = percent) -> str:
    """Returns the value of every side; a dash where no side has one.

    Counts that are the same on every side stand there once.
    """
    values = list(values)
    if all(value is None for value in values):
        return DASH
    cells = [ABSENT if value is None else write(value) for value in values]
    return cells[0] if write is str and len(set(cells)) == 1 else _ARROW.join(cells)


def accuracy_table(report: Report, *, mean: bool = False, unscored: str = DASH) -> Table:
    """Returns the accuracy on every dimension; the best rule is the one that sees no image.

    Args:
        report: of one evaluation.
        mean: whether the mean over the dimensions is the last row.
        unscored: the accuracy of a dimension that was not scored.
    """
    robust, protocols = robust_of(report), report["protocols"]
    official = protocols.get("official", {}).get("micro", {})
    rows: list[dict[str, Cell]] = []
    for name, ceiling in report["ceiling"].items():
        measures, rule = robust.get(name) or {}, best_rule(report["baselines"], name)
        cells = accuracy_cells(name, measures, ceiling, unscored)
        cells["official"] = percent(official.get(name))
        cells["read"] = percent(measures.get("coverage"))
        cells["same verdict"] = percent(measures.get("consistency"))
        cells["best rule"] = DASH
        if rule is not None:
            cells["best rule"] = f"{_SHORT_RULES.get(rule[0], rule[0])} {percent(rule[1])}"
        rows.append({**cells, "ceiling": percent(ceiling)})
    styles: Styles = {}
    overall = protocols.get("robust", {}).get("means", {}).get("mean")
    if mean and overall and overall["accuracy"] is not None and len(robust) > 1:
        styles[len(rows)] = "sum"
        rows.append(accuracy_cells("mean", overall, None, unscored))
    title = f"{report['model']} on {report['benchmark']['name']} ({report['readout']})"
    return table_of(title, rows, styles=styles)


def accuracy_cells(
    name: str, measures: Mapping[str, Any] | None, ceiling: float | None, unscored: str = DASH
) -> dict[str, Cell]:
    """Returns the cells that say how accurate a model is.

    Args:
        name: of the row.
        measures: None where it was not scored.
        ceiling: the accuracy that can be reached; None where it is not known.
        unscored: what stands in place of the accuracy where there is none.
    """
    if not measures:
        return {"dimension": name, "drawn": "", "accuracy (95 % CI)": unscored, "n": DASH}
    accuracy, bounds = measures["accuracy"], measures["ci95"]
    return {
        "dimension": name,
        "drawn": Track(None, accuracy, ceiling, bounds, name),
        "accuracy (95 % CI)": with_interval(accuracy, bounds),
        "n": str(measures["n"]),
    }


def by_dimension(
    caption: str, sides: Sides, columns: Columns, read: Read, needed: str | None = None
) -> Table:
    """Returns a row for each dimension that any side has judged, in the benchmark's order.

    Args:
        caption: of the table.
        sides: the reports.
        columns: heading to the key of a number and how it is written.
        read: returns the numbers.
        needed: heading of the column without which a dimension is left out.
    """
    rows = []
    for name in list(sides.values())[-1]["ceiling"]:
        numbers = [read(report, name) for report in sides.values()]
        cells = {
            heading: across((of_side.get(key) for of_side in numbers), write)
            for heading, (key, write) in columns.items()
        }
        judged = any(robust_of(report).get(name) for report in sides.values())
        if judged and (needed is None or cells[needed] != DASH):
            rows.append({"dimension": name, **cells})
    absent = any(ABSENT in cell for row in rows for cell in row.values())
    return table_of(caption, rows, ABSENT_LEGEND if absent else "")


def robust_on(report: Report, dimension: str) -> Mapping[str, Any]:
    """Returns a report's robust measures on a dimension; none where it was not judged so."""
    return robust_of(report).get(dimension) or {}


def position_table(sides: Sides) -> Table:
    """Returns what the presented order does to the verdicts; no row for scalar models."""
    return by_dimension(
        "Position: what the order of the answers does",
        sides,
        {
            "same verdict": ("consistency", percent),
            "names the first": ("first_rate", percent),
            "right in both": ("both_correct", percent),
            "gap": ("position_gap", signed),
            "first / second wins twice": ("flips", "{first_twice} / {second_twice}".format_map),
            "kappa": ("kappa", decimal),
            "AC1": ("ac1", decimal),
        },
        robust_on,
        "same verdict",
    )


def length_table(sides: Sides) -> Table:
    """Returns whether the longer answer is preferred beyond what the experts do."""
    return by_dimension(
        "Length: whether longer answers win",
        sides,
        {
            "names the longer": ("longer_rate", percent),
            "experts do": ("longer_rate_label", percent),
            "bias, points": ("bias", signed),
            "right if longer is better": ("accuracy_longer", percent),
            "if shorter is": ("accuracy_shorter", percent),
            "coefficient": ("coefficient", decimal),
            "pairs": ("n", str),
        },
        lambda report, name: (report.get("length") or {}).get(name) or {},
        "pairs",
    )


def calibration_table(sides: Sides) -> Table:
    """Returns how far stated probabilities are to be believed; no row where none are stated."""
    return by_dimension(
        "Calibration of the stated probabilities",
        sides,
        {
            "ECE": ("ece", decimal),
            "ECE, debiased": ("ece_debiased", decimal),
            "Brier": ("brier", decimal),
            "log loss": ("nll", decimal),
            "AUROC": ("auroc", decimal),
            "surest 80 % right": ("accuracy_at_80", percent),
            "cases": ("n", str),
        },
        lambda report, name: robust_on(report, name).get("calibration") or {},
        "cases",
    )


_HALO = (
    ("all the same", "all_same", percent),
    ("experts do", "all_same_label", percent),
    ("halo, points", "halo", signed),
    ("overall follows the parts", "overall_vs_parts", percent),
    ("experts do", "overall_vs_parts_label", percent),
)
"""Heading, key and form; two columns have the same heading."""


def halo_table(sides: Sides) -> Table:
    """Returns whether the dimensions are told apart as far as the experts do."""
    rows = [
        [side, *(write(report["structure"][key]) for _, key, write in _HALO)]
        for side, report in sides.items()
        if report["structure"]
    ]
    columns = ("", *(heading for heading, _, _ in _HALO))
    return Table("Halo: one answer on all dimensions", columns, rows)


def correlation_tables(report: Report) -> list[Table]:
    """Returns the correlations of the dimensions' verdicts, of the model and of the experts."""
    structure = report["structure"] or {}
    names = structure.get("dimensions", [])
    captions = {"phi": "Verdicts of the model, phi", "phi_label": "Labels of the experts, phi"}
    tables = []
    for key, caption in captions.items():
        rows = zip(names, structure.get(key) or (), strict=False)
        cells = [[name, *(decimal(value, 2) for value in values)] for name, values in rows]
        tables += [Table(caption, ["", *names], cells)] if cells else []
    return tables


def parsing_tables(sides: Sides) -> dict[str, Table]:
    """Returns, for each parser, the counts of replies: read, not wholly read, suspect.

    And those of their tokens, where they were counted.
    """
    tables = {}
    for parser in ("strict", "official"):
        of_sides = [(report["parsing"] or {}).get(parser) or {} for report in sides.values()]
        rows = []
        for key, label in {"stages": "read by rule", "unread": "not wholly read"}.items():
            counts = [of_side.get(key, {}) for of_side in of_sides]
            rows += [
                [f"{label}: {name}", *(str(of_side.get(name, 0)) for of_side in counts)]
                for name in sorted({name for of_side in counts for name in of_side})
            ]
        if parser == "official":
            rows += [
                [key.replace("_", " "), *(str(of_side.get(key, 0)) for of_side in of_sides)]
                for key in ("suspect", "voided_but_readable")
            ]
        if any(of_sides):
            tables[parser] = Table(f"Replies, {parser} parser", ["", *sides], rows)
    # Files of earlier versions count none.
    usages = [report.get("usage") or {} for report in sides.values()]
    if any(usages):
        rows = [
            [label, *(f"{usage[key]:,}" if usage else DASH for usage in usages)]
            for key, label in zip(("calls", *USAGE), _TOKEN_ROWS, strict=True)
        ]
        tables["usage"] = Table("Tokens, as the engine counts them", ["", *sides], rows)
    return tables


_TOKEN_ROWS = ("calls that were counted", "tokens of prompts, images included", "of replies")


def official_table(sides: Sides) -> Table | None:
    """Returns the released scorer's table, 4 decimals, with its means; None where it was not run.

    Its rows are organs, whatever `official.csv` calls them; the columns `<dimension>_acc` are
    those of `official.csv`. The sides stand one below the other.
    """
    scored = [report for report in sides.values() if "official" in report["protocols"]]
    if not scored:
        return None
    rows: list[list[str]] = []
    styles: Styles = {}
    for report in scored:
        official = report["protocols"]["official"]
        styles |= {len(rows): "sum", len(rows) + len(official["organs"]): "sum"}
        means = {"mean over cases": official["micro"], "mean over organs": official["macro"]}
        rows += [
            [organ, report["model"], *(decimal(value, 4) for value in values.values())]
            for organ, values in {**official["organs"], **means}.items()
        ]
    columns = ("organ", "model", *(f"{name}_acc" for name in official["micro"]))
    return Table(f"Released order, {official['label']}.", columns, rows, styles=styles)


def published_table(report: Report) -> Table:
    """Returns the numbers that others reported on the benchmark."""
    rows = [
        {"model": number["model"], "accuracy, %": number["accuracy"], "source": number["source"]}
        for number in report["published"]
    ]
    return table_of("Published, as their sources state them", rows)


def settings_table(sides: Sides) -> Table:
    """Returns what besides the weights could change a number."""
    reports = sides.values()
    rows = [[key, *(report[key] for report in reports)] for key in ("model", "readout")]
    weights = [report.get("weights") or "not stated" for report in reports]
    rows.append(["weights", *map(_setting, weights)])
    for name in sorted({name for report in reports for name in report["settings"]}):
        rows.append([name, *(_setting(report["settings"].get(name)) for report in reports)])
    return Table("Models and settings", ["", *sides], rows)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return DASH if value is None else _DIGEST.sub(r"\1...", str(value))


_FOLD: Columns = {
    **{name: (name, str) for name in ("fold", "cases", "clusters")},
    "accuracy": ("accuracy", percent),
    "temperature": ("temperature", decimal),
    "ECE": ("raw", decimal),
    "ECE, scaled": ("scaled", decimal),
}


def folds_table(crossfit: Mapping[str, Any] | None) -> Table:
    """Returns the folds of a cross-fitted run, each judged by a model of its own."""
    rows = []
    for fold in (crossfit or {}).get("per_fold", ()):
        calibration = fold.get("calibration") or {}
        errors = {key: (calibration.get(key) or {}).get("ece") for key in ("raw", "scaled")}
        rows.append(cells_of(fold | errors, _FOLD))
    return table_of("Folds", rows)


def noise_line(report: Report) -> str | None:
    """Returns how many margins lie within rounding, in a sentence; None where nothing says so."""
    measured: Mapping[str, Any] = report.get("within_noise") or {}
    if report.get("rounding", {}).get("deterministic") and measured:
        return (
            "Scored deterministically: no verdict depends on what else was scored with it (another "
            "device or version of torch still rounds otherwise)."
        )
    counts = [
        f"{name} {numbers['within']} of {numbers['margins']} (below {numbers['noise']:.1g})"
        for name, numbers in measured.items()
        if numbers["within"]
    ]
    if not counts:
        return None
    dtype = report["settings"].get("dtype")
    return (
        f"Margins within the rounding of {dtype}, which another batch may turn around: "
        f"{', '.join(counts)}. --deterministic scores each answer by itself."
    )


_IMPLIED_LEVELS = ("members", "subset", "subsets")
"""Levels of a metric that a line leaves out."""


def metric_lines(report: Report) -> list[str]:
    """Returns a line for each metric of the benchmark's authors, in percent."""
    return [
        f"Metric {metric} ({dimension}): "
        + ", ".join(f"{name} {percent(value)}" for name, value in _flat(numbers))
        + "."
        for dimension, metrics in report["metrics"].items()
        for metric, numbers in metrics.items()
    ]


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Yields the numbers with their names joined; without HealthBench's 34 criteria."""
    for name, value in numbers.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{name}", value
        elif name != CRITERIA:
            yield from _flat(value, prefix if name in _IMPLIED_LEVELS else f"{prefix}{name} ")
