"""Tables of a page: what a run's or one evaluation's reports say, in words; imports no torch.

`sides` are the reports that a page shows, by name: `before` and `after`, or one alone. A cell about
both reads "before > after".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medrm.evaluation.compare import Comparison
from medrm.evaluation.pages.document import Grid
from medrm.evaluation.report import Report
from medrm.evaluation.tables import DASH, p_value, percent

Sides = Mapping[str, Report]

ARROW = " \u2192 "

_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{16,}\b")
"""Shown by its first characters; report.json has it whole."""

ABSENT = "n/a"
"""One side's value where only the other side has one."""


def robust(report: Report) -> Mapping[str, Any]:
    """Returns a report's robust measures by dimension; empty where it was judged otherwise."""
    measures: Mapping[str, Any] = report["protocols"].get("robust", {}).get("dimensions", {})
    return measures


def across(
    sides: Sides, read: Callable[[Report], Any], shown: Callable[[Any], str] = percent
) -> str:
    """Returns one value of every side, as it is shown; a dash where no side has it.

    Counts that are the same on every side stand there once.
    """
    values = [read(report) for report in sides.values()]
    if all(value is None for value in values):
        return DASH
    cells = [ABSENT if value is None else shown(value) for value in values]
    return cells[0] if shown is str and len(set(cells)) == 1 else ARROW.join(cells)


def measure(sides: Sides, dimension: str, key: str, shown: Callable[[Any], str] = percent) -> str:
    """Returns one robust measure of every side."""
    return across(sides, lambda report: (robust(report).get(dimension) or {}).get(key), shown)


def decimal(value: float) -> str:
    """Returns a number with three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Returns a share as signed percentage points."""
    return f"{100 * value:+.1f}"


def dimensions_of(sides: Sides) -> list[str]:
    """Returns the dimensions that any side has judged, in the benchmark's order."""
    last = list(sides.values())[-1]
    return [
        name for name in last["ceiling"] if any(robust(one).get(name) for one in sides.values())
    ]


def transitions(comparison: Comparison) -> Grid | None:
    """Returns what became of every case, by dimension."""
    rows = []
    for name, entry in comparison["dimensions"].items():
        if entry.get("both_right") is None:
            continue
        counts = [entry[key] for key in ("both_right", "fixed", "broken", "both_wrong")]
        tests = [p_value(entry.get(key)) for key in ("p_mcnemar", "p_holm")]
        rows.append([name, *map(str, counts), *tests])
    if not rows:
        return None
    return Grid(
        "Cases by what they were before and are after",
        [
            *("dimension", "both right", "fixed", "broken", "both wrong"),
            *("McNemar mid-p", "Holm p"),
        ],
        rows,
        "Fixed: scored higher after than before, over the presented orders; broken: lower. "
        "McNemar's test assumes independent cases and stands for reference. Holm: of the sign-flip "
        "test over clusters, adjusted for looking at all dimensions.",
    )


def position(sides: Sides) -> Grid | None:
    """Returns what the presented order does to the verdicts; None for scalar models alone."""
    rows = []
    for name in dimensions_of(sides):
        first = measure(sides, name, "first_rate")
        if measure(sides, name, "consistency") == DASH:
            continue
        rows.append(
            [
                name,
                measure(sides, name, "consistency"),
                first,
                measure(sides, name, "both_correct"),
                measure(sides, name, "position_gap", signed),
                measure(sides, name, "flips", _flips),
            ]
        )
    if not rows:
        return None
    return Grid(
        "Position: what the order of the answers does",
        [
            *("dimension", "same verdict", "names the first", "right in both", "gap"),
            "first / second wins twice",
        ],
        rows,
        "Percent. Same verdict in both orders, where unread is not the same. Names the first: 50 "
        "has no position bias. Gap: points of accuracy where the better answer is shown first, "
        "above where it is shown second.",
    )


def _flips(flips: Mapping[str, Any]) -> str:
    return f"{flips['first_twice']} / {flips['second_twice']}"


def length(sides: Sides) -> Grid | None:
    """Returns whether the longer answer is preferred beyond what the experts do."""
    rows = []
    for name in dimensions_of(sides):

        def of(key: str, shown: Callable[[Any], str] = percent, name: str = name) -> str:
            return across(
                sides, lambda report: ((report.get("length") or {}).get(name) or {}).get(key), shown
            )

        if of("n", str) == DASH:
            continue
        bias, coefficient = of("bias", signed), of("coefficient", decimal)
        rates = [of(key) for key in ("longer_rate", "longer_rate_label")]
        accuracies = [of(key) for key in ("accuracy_longer", "accuracy_shorter")]
        rows.append([name, *rates, bias, *accuracies, coefficient, of("n", str)])
    if not rows:
        return None
    return Grid(
        "Length: whether longer answers win",
        [
            *("dimension", "names the longer", "experts do", "bias, points"),
            *("right if longer is better", "if shorter is", "coefficient", "pairs"),
        ],
        rows,
        "Pairs whose answers differ by more than 30 characters. Bias: how much more often than the "
        "experts. Coefficient: of the length difference, in a logistic model of the choice that "
        "knows the experts' label.",
    )


def halo(sides: Sides) -> Grid | None:
    """Returns whether the dimensions are told apart as far as the experts do."""
    rows = []
    for side, report in sides.items():
        found = report.get("structure")
        if found:
            shares = [
                maybe(found.get(key), percent)
                for key in ("all_same", "all_same_label", "overall_vs_parts")
            ]
            label = maybe(found.get("overall_vs_parts_label"), percent)
            rows.append([side, *shares[:2], maybe(found.get("halo"), signed), shares[2], label])
    if not rows:
        return None
    return Grid(
        "Halo: one answer on all dimensions",
        [
            *("", "all the same", "experts do", "halo, points"),
            *("overall follows the parts", "experts do"),
        ],
        rows,
        "Percent of what was read on all dimensions, of pairs labelled on all.",
    )


def correlations(report: Report) -> list[Grid]:
    """Returns the correlations of the dimensions' verdicts, of the model and of the experts."""
    found = report.get("structure") or {}
    names = found.get("dimensions", [])
    captions = {"phi": "Verdicts of the model", "phi_label": "Labels of the experts"}
    return [
        Grid(
            f"{caption}, phi",
            ["", *names],
            [
                [name, *(maybe(cell, "{:.2f}".format) for cell in line)]
                for name, line in zip(names, found[key], strict=True)
            ],
        )
        for key, caption in captions.items()
        if found.get(key)
    ]


def calibration(sides: Sides) -> Grid | None:
    """Returns how far stated probabilities are to be believed; None where none are stated."""
    keys: dict[str, tuple[str, Callable[[Any], str]]] = {
        "ECE": ("ece", decimal),
        "ECE, debiased": ("ece_debiased", decimal),
        "Brier": ("brier", decimal),
        "log loss": ("nll", decimal),
        "AUROC": ("auroc", decimal),
        "surest 80 % right": ("accuracy_at_80", percent),
        "cases": ("n", str),
    }
    rows = []
    for name in dimensions_of(sides):
        found = {
            side: {"model": (robust(report).get(name) or {}).get("calibration") or {}}
            for side, report in sides.items()
        }
        cells = [
            across(found, lambda one, key=key: one["model"].get(key), shown)  # type: ignore[misc]
            for key, shown in keys.values()
        ]
        if cells[-1] != DASH:
            rows.append([name, *cells])
    if not rows:
        return None
    return Grid(
        "Calibration of the stated probabilities",
        ["dimension", *keys],
        rows,
        "Lower is better for ECE, Brier and log loss. AUROC: whether confidence tells right from "
        "wrong. Surest 80 %: accuracy (percent) where the least sure fifth is set aside.",
    )


def funnels(sides: Sides) -> list[Grid]:
    """Returns, for each parser, the counts of replies: read, not wholly read, suspect."""
    tables = []
    notes = {
        "strict": "The strict parser reads every reply of every order.",
        "official": "The official parser reads the first reply of the stored order. Suspect: read "
        "by a rule of the released scorer that is known to misread. Voided but readable: dropped "
        "as a whole by it, although the strict parser reads a part.",
    }
    for parser, note in notes.items():
        found = [(one["parsing"] or {}).get(parser) or {} for one in sides.values()]
        if not any(found):
            continue
        rows = []
        for part, word in {"stages": "read by rule", "unread": "not wholly read"}.items():
            names = sorted({name for one in found for name in one.get(part, {})})
            rows += [
                [f"{word}: {name}", *(str(one.get(part, {}).get(name, 0)) for one in found)]
                for name in names
            ]
        if parser == "official":
            rows += [
                [part.replace("_", " "), *(str(one.get(part, 0)) for one in found)]
                for part in ("suspect", "voided_but_readable")
            ]
        tables.append(Grid(f"Replies, {parser} parser", ["", *sides], rows, note))
    return tables


def guardrails(comparison: Comparison) -> Grid:
    """Returns what must not get worse, and whether it did."""
    rows = [
        [
            name.replace("_", " "),
            maybe(rail["before"], percent),
            maybe(rail["after"], percent),
            maybe(rail.get("margin"), percent),
            rail["state"],
        ]
        for name, rail in comparison["guardrails"].items()
    ]
    return Grid(
        f"Guardrails on {comparison['primary']['dimension']}",
        ["measure", "before", "after", "may lose", "state"],
        rows,
        "Percent. A failed guardrail forbids the word Improved. Skipped: one side has no such "
        "value, as a scalar reward has only one presented order.",
    )


def agreement(sides: Sides) -> Grid:
    """Returns accuracy's relatives: agreement with the experts, bounds, what was read."""
    rows = [
        [
            name,
            measure(sides, name, "coverage"),
            measure(sides, name, "parsed_accuracy"),
            measure(sides, name, "bounds", _range),
            measure(sides, name, "balanced_accuracy"),
            measure(sides, name, "kappa", decimal),
            measure(sides, name, "ac1", decimal),
            measure(sides, name, "n_tie", str),
        ]
        for name in dimensions_of(sides)
    ]
    return Grid(
        "Agreement with the experts",
        [
            *("dimension", "read", "right of what was read", "bounds", "balanced"),
            *("kappa", "AC1", "experts' ties"),
        ],
        rows,
        "Percent. Bounds: the accuracy if all that is unread were wrong, and if it were right. "
        "Kappa (Cohen) and AC1 (Gwet) take off what chance would give.",
    )


def _range(bounds: Sequence[float]) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def settings_grid(sides: Sides) -> Grid:
    """Returns what besides the weights could change a number."""
    rows = [["model", *(one["model"] for one in sides.values())]]
    rows.append(["readout", *(one["readout"] for one in sides.values())])
    rows.append(
        ["weights", *(_setting(one.get("weights") or "not stated") for one in sides.values())]
    )
    rows += [
        [name, *(_setting(one["settings"].get(name)) for one in sides.values())]
        for name in sorted({name for one in sides.values() for name in one["settings"]})
    ]
    return Grid("Models and settings", ["", *sides], rows)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return DASH if value is None else _DIGEST.sub(r"\1...", str(value))


def folds_grid(crossfit: Mapping[str, Any] | None) -> Grid | None:
    """Returns the folds of a cross-fitted run, each judged by a model of its own."""
    if not crossfit or not crossfit.get("per_fold"):
        return None
    rows = []
    for fold in crossfit["per_fold"]:
        measured = fold.get("calibration") or {}
        counts = [str(fold[key]) for key in ("fold", "cases", "clusters")]
        cells = [maybe(fold["accuracy"], percent), maybe(fold["temperature"], decimal)]
        errors = [maybe((measured.get(key) or {}).get("ece"), decimal) for key in ("raw", "scaled")]
        rows.append([*counts, *cells, *errors])
    return Grid(
        "Folds",
        ["fold", "cases", "clusters", "accuracy", "temperature", "ECE", "ECE, scaled"],
        rows,
        "Each temperature was fitted on development cases of its fold's own training data.",
    )


def maybe(value: Any, shown: Callable[[Any], str]) -> str:
    """Returns a value as it is shown; a dash where there is none."""
    return DASH if value is None else shown(value)
