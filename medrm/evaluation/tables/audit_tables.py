"""Tables of the audit of a set of cases; imports no torch."""

from __future__ import annotations

from medrm.evaluation.audit import SHOWN_RULES, Audit
from medrm.evaluation.tables.table import DASH, Table, decimal, percent, short, table_of

_LONGEST_HEADING = 8
"""Characters of a dimension's name over a column of percentages."""


def label_table(audit: Audit) -> Table:
    """Returns how the labels of each dimension are spread, and how far the votes agree."""
    rows = []
    for name, labels in audit["labels"].items():
        agreement = labels["agreement"] or {"raw": None, "alpha": None}
        total = labels["n"]
        rows.append(
            {
                "dimension": name,
                "cases": str(labels["cases"]),
                **{key: percent(labels[key] / total if total else None) for key in _CHOICES},
                "no majority": str(labels["no_majority"]),
                "missing": str(audit["cases"] - labels["cases"]),
                "votes": str(labels["votes"]),
                "agree": percent(agreement["raw"]),
                "alpha": decimal(agreement["alpha"], 2),
            }
        )
    return table_of("labels: A, tie, B and the agreement of votes in percent", rows)


_CHOICES = ("A", "tie", "B")


def rule_table(audit: Audit) -> Table:
    """Returns what rules that need no model reach, and the gain that the labels can show."""
    rows = []
    for name, labels in audit["labels"].items():
        gain = labels["detectable"]
        rows.append(
            {
                "dimension": name,
                "A/B": str(labels["A"] + labels["B"]),
                **{label: percent(labels["rules"][rule]) for rule, label in SHOWN_RULES.items()},
                "gain": DASH
                if gain is None
                else f"{100 * gain['independent']:.1f}-{100 * gain['clustered']:.1f}",
            }
        )
    return table_of("right without a model, in percent of the A/B labels", rows)


def organ_table(audit: Audit) -> Table:
    """Returns the share of labels A in each organ."""
    rows = [
        [
            organ,
            str(members["cases"]),
            *(percent(labels["rules"]["always_a"]) for labels in members["labels"].values()),
        ]
        for organ, members in audit["organs"].items()
    ]
    names = [short(name, _LONGEST_HEADING) for name in audit["labels"]]
    caption = "always A in an organ, in percent; always B is the rest"
    return Table(caption, ("organ", "cases", *names), rows)
