"""Prints an evaluation, a comparison and an audit; readable from 80 columns on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from medrm.data.medical.converted_set import conversion_lines
from medrm.errors import alike_together, printable
from medrm.evaluation.audit import DISCORDANCE, SHOWN_RULES, Audit
from medrm.evaluation.compare import Comparison
from medrm.evaluation.leak_check import leak_line
from medrm.evaluation.report import Report
from medrm.evaluation.tables.comparison_tables import (
    comparison_lines,
    comparison_table,
    control_table,
)
from medrm.evaluation.tables.reader_tables import ceiling_table, neither_line, vote_tables
from medrm.evaluation.tables.report_tables import (
    accuracy_table,
    metric_lines,
    noise_line,
    position_table,
)
from medrm.evaluation.tables.table import (
    DASH,
    Table,
    counted,
    decimal,
    percent,
    plain,
    short,
    table_of,
    to_terminal,
    with_interval,
)
from medrm.schema import USAGE

_MOST_FINDINGS = 10

_LONGEST_HEADING = 8
"""Characters of a dimension's name over a column of percentages."""

COLOURS = {"Improved": "green", "Regressed": "red", "Not shown": "yellow"}

_ACCURACY = ("dimension", "accuracy (95 % CI)", "official", "n", "read", "best rule", "ceiling")

_POSITION = ("dimension", "same verdict", "names the first", "right in both", "kappa", "AC1")

_COMPARISON = ("dimension", "before", "after", "difference (95 % CI)", "p", "n", "ceiling")
_COMPARISON_HEADINGS = {"difference (95 % CI)": "delta (95 % CI)", "p": "p adj."}

_CONTROLS = ("control", "accuracy", "difference (95 % CI)", "p")
_CONTROL_HEADINGS = {"difference (95 % CI)": "adapter minus control"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints one evaluation: accuracy with its interval beside the best rule and the ceiling."""
    contents: list[Table | str] = [accuracy_table(report).pick(_ACCURACY)]
    if "official" in report["protocols"]:
        contents.append(f"Column official: {report['protocols']['official']['label']}.")
    if neither := neither_line(report):
        contents.append(neither)
    if ceiling := ceiling_table({"the model": report}):
        contents.append(ceiling)
    position = position_table({"model": report})
    if position.rows:
        contents.append(position.pick(_POSITION, "both orders"))
    contents += [*_joint_lines(report), *metric_lines(report)]
    if report["unread"]:
        contents.append(f"Unread, counted wrong: {counted(report['unread'])} (cases).")
    contents += _parsing_lines(report["parsing"])
    usage = report.get("usage")  # none in files of earlier versions
    if usage is not None:
        prompts, replies = (f"{usage[name]:,}" for name in USAGE)
        calls = f"{usage['calls']:,} of {report['parsing']['calls']:,} calls"
        contents.append(f"Tokens: {prompts} of prompts, {replies} of replies ({calls}).")
    if report["verdict_mass"] is not None:
        contents.append(f"Mean probability of naming A or B at all: {report['verdict_mass']:.2g}.")
    if noise := noise_line(report):
        contents.append(noise)
    contents.append(leak_line(report))
    print_contents(contents, console or Console())


def _joint_lines(report: Report) -> list[str]:
    """What the dimensions say jointly, one sentence for each measure."""
    means, structure = report["protocols"].get("robust", {}).get("means"), report["structure"]
    if means is None or structure is None:
        return []
    mean, joint = (
        with_interval(means[key]["accuracy"], means[key]["ci95"]) for key in ("mean", "joint")
    )
    lines = []
    if means["mean"]["n"]:
        lines.append(f"Mean over the dimensions: {mean} %.")
    if means["joint"]["n"]:
        lines.append(f"Right on all at once: {joint} % of {means['joint']['n']} cases.")
    if structure["halo"] is not None:
        lines.append(
            f"One answer on all dimensions: {percent(structure['all_same'])} %, the experts "
            f"{percent(structure['all_same_label'])} % ({structure['cases']} cases)."
        )
    return lines


def _parsing_lines(parsing: Mapping[str, Any] | None) -> list[str]:
    """How a judge's replies were read, one sentence for each parser."""
    if parsing is None:
        return []
    lines = []
    if set(parsing["states"]) != {"ok"}:
        lines.append(f"Calls: {counted(parsing['states'])}.")
    for parser in ("strict", "official"):
        counts = parsing[parser]
        if counts:
            notes = {
                name.replace("_", " "): counts[name]
                for name in ("suspect", "voided_but_readable")
                if counts.get(name)
            }
            stages = counted({**counts["stages"], **notes})
            lines.append(f"Replies read by the {parser} parser: {stages}.")
    return lines


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints a comparison: each dimension, the controls, and the verdict in one sentence."""
    console = console or Console()
    compared = comparison_table(comparison).pick(_COMPARISON, headings=_COMPARISON_HEADINGS)
    contents: list[Table | str] = [compared]
    if ceiling := ceiling_table({"after": comparison}):
        contents.append(ceiling)
    if comparison["controls"]:
        controls = control_table(comparison, comparison["primary"]["dimension"])
        contents.append(controls.pick(_CONTROLS, headings=_CONTROL_HEADINGS))
    print_contents([*contents, *comparison_lines(comparison)], console)
    colour = COLOURS[comparison["verdict"]]
    console.print(Text(printable(comparison["headline"]), style=f"bold {colour}"))


def print_audit(audit: Audit, console: Console | None = None) -> None:
    """Prints an audit: labels, rules, groups, images, and at most ten findings of each kind."""
    console = console or Console()
    contents: list[Table | str] = [
        f"{audit['name']}: {audit['cases']} cases in {audit['clusters']} clusters (largest: "
        f"{audit['largest_cluster']}), {audit['text_only']} without an image, "
        f"{audit['excluded_rows']} rows set aside"
    ]
    if audit["labels"]:
        contents += [_label_table(audit), _rule_table(audit)]
        contents += vote_tables(audit["votes"])
        contents += [_organ_table(audit)] if audit["organs"] else []
        contents.append(
            f"gain: what a paired test shows with power 80 % where {DISCORDANCE:.0%} of the cases "
            "change, in points; cases of a cluster independent - changing together."
        )
    print_contents([*contents, *_audit_lines(audit)], console, fold=True)
    print_findings(audit["findings"], console)


def _audit_lines(audit: Audit) -> list[str]:
    """What an audit says below its tables: groups, images, what is shared with training data."""
    counts = {group: dict(sorted(members.items())) for group, members in audit["groups"].items()}
    lines = [f"{group}: {counted(members)}" for group, members in counts.items() if members]
    if audit["organs"]:
        name, least = min(audit["organs"].items(), key=lambda organ: int(organ[1]["cases"]))
        lines.append(f"smallest organ: {name}, {least['cases']} cases")
    images: Mapping[str, Any] = audit["images"]
    if images["distinct"]:
        sizes = [f"{w} x {h}" for w, h in filter(None, (images["smallest"], images["largest"]))]
        modes = counted(dict(sorted(images["modes"].items()))) or "none readable"
        lines.append(
            f"images: {images['distinct']} distinct ({modes}), {' to '.join(sizes)} pixels, "
            f"{images['unreadable']} unreadable"
        )
    lines += conversion_lines(images["converted"])
    if audit["leaks"]:
        lines.append(
            f"cases with a question of the training data: {audit['leaks']['repeated_questions']}, "
            f"with an answer: {audit['leaks']['repeated_answers']}"
        )
    return lines


def print_findings(findings: Mapping[str, Sequence[str]], console: Console | None = None) -> None:
    """Prints at most ten findings of each kind; many that are alike are one line."""
    lines = []
    for name, sentences in findings.items():
        shown = alike_together(sentences) if len(sentences) > _MOST_FINDINGS else sentences
        if sentences:
            lines += [f"{name}: {len(sentences)}"]
            lines += [f"  {text}" for text in shown[:_MOST_FINDINGS]]
        if len(shown) > _MOST_FINDINGS:
            lines.append(f"  ... and {len(shown) - _MOST_FINDINGS} more")
    print_contents(lines or ["no findings"], console or Console())


_CHOICES = ("A", "tie", "B")


def _label_table(audit: Audit) -> Table:
    """How the labels of each dimension are spread, and how far the votes agree."""
    rows = []
    for name, labels in audit["labels"].items():
        agreement, total = labels["agreement"] or {}, labels["n"]
        rows.append(
            {
                "dimension": name,
                "cases": str(labels["cases"]),
                **{key: percent(labels[key] / total if total else None) for key in _CHOICES},
                "neither": percent(labels["neither"] / total if total else None),
                "no majority": str(labels["no_majority"]),
                "missing": str(audit["cases"] - labels["cases"]),
                "votes": str(labels["votes"]),
                "agree": percent(agreement.get("raw")),
                "alpha": decimal(agreement.get("alpha"), 2),
            }
        )
    return table_of("labels: A, tie, B, neither and the agreement of votes in percent", rows)


def _rule_table(audit: Audit) -> Table:
    """What rules that need no model reach, and the gain that the labels can show."""
    rows = []
    for name, labels in audit["labels"].items():
        gain, pairs = labels["detectable"], labels["A"] + labels["B"]
        shares = {label: percent(labels["rules"][rule]) for rule, label in SHOWN_RULES.items()}
        reach = "-".join(f"{100 * value:.1f}" for value in gain.values()) if gain else DASH
        rows.append({"dimension": name, "A/B": str(pairs), **shares, "gain": reach})
    return table_of("right without a model, in percent of the A/B labels", rows)


def _organ_table(audit: Audit) -> Table:
    """The share of labels A in each organ."""
    rows = []
    for organ, members in audit["organs"].items():
        shares = [labels["rules"]["always_a"] for labels in members["labels"].values()]
        rows.append([organ, str(members["cases"]), *map(percent, shares)])
    names = [short(name, _LONGEST_HEADING) for name in audit["labels"]]
    caption = "always A in an organ, in percent; always B is the rest"
    return Table(caption, ("organ", "cases", *names), rows)


def print_contents(
    contents: Iterable[Table | str], console: Console, *, fold: bool = False
) -> None:
    """Prints tables and lines; `fold` breaks the tables' cells where the terminal is narrow."""
    for content in contents:
        if isinstance(content, str):
            console.print(plain(content))
        else:
            wrapped = range(1, len(content.columns)) if fold else ()
            console.print(to_terminal(content, wrapped=wrapped))
