"""Tables and sentences of a comparison: dimensions, controls, groups, what must not get worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from typing import Any

from medrm.evaluation.benchmark import RULES
from medrm.evaluation.compare import Comparison
from medrm.evaluation.comparison.sentences import SIGNIFICANCE
from medrm.evaluation.report import Report, robust_of
from medrm.evaluation.tables.report_tables import (
    ABSENT,
    ABSENT_LEGEND,
    Sides,
    accuracy_cells,
    across,
)
from medrm.evaluation.tables.table import (
    DASH,
    Cell,
    Columns,
    Styles,
    Table,
    Track,
    cells_of,
    p_value,
    percent,
    points,
    signed,
    table_of,
    with_interval,
)

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

FEW = 50
"""Groups of fewer cases are shown faded: their intervals span tens of points."""

FIXED_LEGEND = "Fixed: scored higher after than before, over the presented orders; broken: lower."


def comparison_table(
    comparison: Comparison, sides: Sides | None = None, official: Sequence[str] = ()
) -> Table:
    """Returns before, after and difference of every dimension, in percent and points.

    Below several dimensions stands their mean.

    Args:
        comparison: of two evaluations.
        sides: their reports, for the columns `same verdict` and `read`.
        official: dimensions whose accuracy under the official protocol stands below.
    """
    primary = comparison["primary"]["dimension"]
    rows = [
        {**_paired_cells(name, difference), **_read_cells(sides or {}, name)}
        for name, difference in comparison["dimensions"].items()
    ]
    styles: Styles = {i: "primary" for i, row in enumerate(rows) if row["dimension"] == primary}
    average, by_official = comparison["mean"], comparison["official"] or {}
    below = [{f"official: {name}": by_official[name] for name in official if name in by_official}]
    if average and average["delta"] is not None and len(rows) > 1:
        below.insert(0, {"mean": average})
    for differences in filter(None, below):
        styles[len(rows)] = "sum"
        rows += starmap(_paired_cells, differences.items())
    benchmark = comparison["benchmark"]
    title = f"{benchmark['name']}: {benchmark['cases']} cases in {benchmark['clusters']} clusters"
    absent = any(ABSENT in cell for row in rows for cell in row.values() if isinstance(cell, str))
    note = f"{FIXED_LEGEND} {ABSENT_LEGEND}" if absent else FIXED_LEGEND
    return table_of(title, rows, note, styles)


def _paired_cells(name: str, difference: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of a paired difference; what its difference has no number for is a dash."""
    before, after, fixed = difference["before"], difference["after"], difference.get("fixed")
    return {
        "dimension": name,
        "drawn": Track(before, after, difference.get("ceiling"), None, name),
        "before": percent(before),
        "after": percent(after),
        "difference (95 % CI)": points(difference),
        "p": p_value(difference.get("p")),
        "fixed / broken": DASH if fixed is None else f"{fixed} / {difference['broken']}",
        "n": str(difference.get("n", DASH)),
        "ceiling": percent(difference.get("ceiling")),
    }


def _read_cells(sides: Sides, dimension: str) -> dict[str, Cell]:
    """What each side read, and whether its verdict was the same in both orders."""
    measures = [robust_of(report).get(dimension) or {} for report in sides.values()]
    return {
        heading: across(of_side.get(key) for of_side in measures)
        for heading, key in {"same verdict": "consistency", "read": "coverage"}.items()
        if sides
    }


def card_table(comparison: Comparison, after: Report) -> Table:
    """Returns the accuracies of a model card: after training with their interval."""
    primary, robust = comparison["primary"]["dimension"], robust_of(after)
    compared = comparison["dimensions"]
    names = [f"{name} (primary)" if name == primary else name for name in compared]
    accuracies = [
        with_interval(difference["after"], (robust[name] or {}).get("ci95"))
        for name, difference in compared.items()
    ]
    columns = ("dimension", "before", "after", "difference (95 % CI)", "p", "n", "ceiling")
    headings = {"difference (95 % CI)": "difference", "p": "p (adjusted)"}
    table = comparison_table(comparison)
    table = table.with_cells("dimension", names).with_cells("after", accuracies)
    table = table.pick(columns, "", headings)
    return replace(table, rows=table.rows[: len(names)], note="")


_CONTROL = {"control": "dimension", "accuracy": "before"}
_CONTROL |= {name: name for name in ("drawn", "difference (95 % CI)", "p")}
"""Column of the controls to that of a paired difference."""


def control_table(
    comparison: Comparison | None, primary: str, report: Report | None = None
) -> Table:
    """Returns what else could explain the accuracy on a dimension.

    Args:
        comparison: its controls are the first rows; None: one evaluation by itself.
        primary: the dimension.
        report: of the trained model, for the rules that need no model.
    """
    rows: list[dict[str, Cell]] = []
    for name, difference in comparison["controls"].items() if comparison else ():
        cells = _paired_cells(CONTROLS.get(name, name), difference)
        rows.append({heading: cells[column] for heading, column in _CONTROL.items()})
    if report is not None:
        after = (robust_of(report).get(primary) or {}).get("accuracy")
        ceiling = report["ceiling"].get(primary)
        for rule, description in RULES.items():
            label = f"rule: {description}"
            accuracy = (report["baselines"].get(rule) or {}).get(primary)
            has_both = accuracy is not None and after is not None
            drawn = Track(accuracy, after, ceiling, None, label) if has_both else ""
            rows.append({"control": label, "drawn": drawn, "accuracy": percent(accuracy)})
    caption = "" if comparison is None else percent(comparison["primary"]["after"])
    return table_of(f"{primary}: trained adapter {caption} against", rows)


def group_table(
    report: Report, comparison: Comparison | None, group: str, dimension: str
) -> Table | None:
    """Returns the accuracy by a property of the case, most cases first; None without any.

    Of a comparison it holds the cells of the group, of one evaluation its members. Members without
    a labelled case are left out.
    """
    if comparison is None:
        members = report["protocols"].get("robust", {}).get("groups", {}).get(group, {})
        measured = [{**cells[dimension], "member": name} for name, cells in members.items()]
        columns, exploratory = ["drawn", "accuracy (95 % CI)"], ""
    else:
        cells = comparison["cells"].get(group, ())
        measured = [cell for cell in cells if cell["dimension"] == dimension]
        columns = ["drawn", "before", "after", "difference (95 % CI)", "p (BH)"]
        exploratory = "; exploratory"
    labelled = [numbers for numbers in measured if numbers["n"]]
    labelled.sort(key=lambda numbers: (-numbers["n"], numbers["member"]))
    rows: list[dict[str, Cell]] = []
    for numbers in labelled:
        member = {"member": numbers["member"], "clusters": str(numbers["clusters"])}
        if comparison is None:
            rows.append(member | accuracy_cells(numbers["member"], numbers, None))
        else:
            paired = _paired_cells(numbers["member"], numbers)
            rows.append(member | paired | {"p (BH)": p_value(numbers["p_bh"])})
    few: Styles = {index: "few" for index, numbers in enumerate(labelled) if numbers["n"] < FEW}
    caption = f"Accuracy in percent on {dimension} by {group}{exploratory}."
    table = table_of(caption, rows, styles=few)
    return table.pick(("member", *columns, "n", "clusters")) if rows else None


def cell_tables(comparison: Comparison) -> list[Table]:
    """Returns the difference in every cell of every grouping, for who cannot see the heat map."""
    names = list(comparison["dimensions"])
    tables = []
    for group, cells in comparison["cells"].items():
        members: dict[str, dict[str, str]] = {}
        for cell in cells:
            mark = " *" if cell["p_bh"] is not None and cell["p_bh"] < SIGNIFICANCE else ""
            members.setdefault(cell["member"], {})[cell["dimension"]] = signed(cell["delta"]) + mark
        rows = [[name, *(row.get(key, DASH) for key in names)] for name, row in members.items()]
        caption = f"Difference in points by {group} and dimension"
        tables.append(Table(caption, [group, *names], rows))
    return tables


_TRANSITIONS: Columns = {
    **{
        key.replace("_", " "): (key, str) for key in ("both_right", "fixed", "broken", "both_wrong")
    },
    "McNemar mid-p": ("p_mcnemar", p_value),
    "Holm p": ("p_holm", p_value),
}


def transitions_table(comparison: Comparison) -> Table:
    """Returns what became of every case, by dimension."""
    rows = [
        {"dimension": name, **cells_of(difference, _TRANSITIONS)}
        for name, difference in comparison["dimensions"].items()
        if difference.get("both_right") is not None
    ]
    return table_of("Cases by what they were before and are after", rows)


_CHECKED: Columns = {
    **{name: (name, percent) for name in ("before", "after")},
    "may lose": ("margin", percent),
    "state": ("state", str),
}


def non_inferiority_table(comparison: Comparison) -> Table:
    """Returns what must not get worse, and whether it did."""
    checks = comparison["guardrails"].items()
    rows = [{"measure": name.replace("_", " "), **cells_of(of, _CHECKED)} for name, of in checks]
    return table_of(f"Guardrails on {comparison['primary']['dimension']}", rows)


def comparison_lines(comparison: Comparison) -> list[str]:
    """Returns what stands beside the headline, one sentence or two each."""
    gain, pictures = gain_sentence(comparison), comparison["pictures"]
    lines = [gain] if gain else []
    # A comparison of an earlier version has no best rule.
    lines += [stated["sentence"] for stated in (comparison.get("best_rule"), pictures) if stated]
    official = (comparison["official"] or {}).get(comparison["primary"]["dimension"])
    if official is not None and official["delta"] is not None:
        lines.append(
            f"Official protocol on {comparison['primary']['dimension']}: "
            f"{percent(official['before'])} % -> {percent(official['after'])} %."
        )
    least = comparison["minimum_detectable"]["points"]
    if least is not None:
        lines.append(f"Smallest gain that such cases show (power 80 %): {100 * least:.1f} points.")
    return [*lines, *_unknown_lines(comparison), *comparison["notes"]]


def _unknown_lines(comparison: Comparison) -> list[str]:
    """What nobody can say of the inputs, because an earlier version wrote an evaluation."""
    recorded = comparison.get("not_recorded") or {}
    sides = [side for side, names in recorded.items() if names]
    if not sides:
        return []
    names = dict.fromkeys(name for side in sides for name in recorded[side])
    return [
        f"Whether both read the same input is not known: {', '.join(names)} were not recorded "
        f"{' and '.join(sides)}, by an earlier version of medrm."
    ]


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
