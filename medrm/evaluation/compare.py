"""The paired before/after comparison of two evaluation folders; needs no model and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.errors import ConfigError, DataError, nearest
from medrm.evaluation.comparison.evaluations import Evaluation, read_evaluation
from medrm.evaluation.comparison.gate import OTHER_DATA, check_declared, find_differences
from medrm.evaluation.comparison.non_inferiority import non_inferiority_checks
from medrm.evaluation.comparison.notes import image_use, interval_words, notes_of
from medrm.evaluation.comparison.pairing import (
    cells,
    detectable,
    dimension_entries,
    forward_entries,
    mean_entry,
    pair,
    paired_entry,
    simple_entries,
)
from medrm.evaluation.measures.gain import gains
from medrm.evaluation.report import write_json
from medrm.statistics.significance import sign_flip_test

Comparison = dict[str, Any]

SIGNIFICANCE = 0.05

DIGEST_LENGTH = 64


def compare(
    before_dir: Path,
    after_dir: Path,
    primary: str | None = None,
    controls: Mapping[str, Path] | None = None,
    allowed_differences: Sequence[str] = (),
    output_dir: Path | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares two evaluation folders case by case and writes `comparison.json`.

    A case counts with its mean score over the orders in which it was presented, so a judge of both
    orders and a reward model are compared on the same cases.

    Args:
        before_dir: the evaluation of the model before training.
        after_dir: the evaluation of the trained model.
        primary: the dimension of the headline; None: overall where labelled, else the first.
        controls: name to evaluation folder of what else the trained model is compared with.
        allowed_differences: differences besides the weights that were declared beforehand.
        output_dir: where to write; None: as `home_of` says.
        notes: sentences that a reader of the headline must know.

    Raises:
        DataError: a folder is incomplete, or no labelled case was judged by both.
        ConfigError: `primary` is no dimension of the benchmark, or a declared difference is none.
    """
    before, after = read_evaluation(before_dir), read_evaluation(after_dir)
    check_declared(allowed_differences, before.report, after.report)
    comparison: Comparison = {
        **_compared(before, after, _primary(primary, before, after), controls or {}),
        "allowed_differences": list(allowed_differences),
    }
    comparison["comparable"] = set(comparison["differences"]) <= set(allowed_differences)
    comparison["notes"] = list(dict.fromkeys([*notes, *notes_of(before, after, comparison)]))
    comparison["verdict"] = _verdict(comparison)
    comparison["headline"] = headline_sentence(comparison)
    folder = Path(output_dir or home_of(after_dir))
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {name: comparison[name] for name in (*_FIRST, *comparison)}
    write_json(folder / "comparison.json", ordered)
    return ordered


def home_of(after_dir: Path) -> Path:
    """Returns where a comparison lies unless something else is asked: beside its later evaluation.

    Two evaluations laid out as a run's, `FOLDER/evaluation/NAME`, have it in FOLDER; a real run has
    a comparison of its own there, with its controls, which is replaced only on request.
    """
    after = Path(after_dir)
    layout = after.resolve().parent
    if layout.name == "evaluation" and not (layout.parent / "run.json").exists():
        return layout.parent
    return after


_FIRST = ("comparable", "differences", "allowed_differences", "verdict", "headline")
"""What stands first in `comparison.json`."""


def _compared(
    before: Evaluation, after: Evaluation, primary: str, controls: Mapping[str, Path]
) -> Comparison:
    """Everything that is measured, before it is judged."""
    pairing = pair(before, after, before.scores, after.scores)
    dimensions = dimension_entries(before, after, pairing)
    difference = {name: dimensions[primary][name] for name in _KEYS}
    against = {
        name: _control(name, read_evaluation(Path(folder)), after, primary)
        for name, folder in controls.items()
    }
    official = before.official and after.official
    groups = after.report["protocols"]["robust"]["groups"]
    return {
        "differences": find_differences(before, after),
        "benchmark": after.report["benchmark"],
        "before": {key: before.report[key] for key in ("model", "weights", "readout")},
        "after": {key: after.report[key] for key in ("model", "weights", "readout")},
        "primary": {**difference, "p": dimensions[primary]["p_unadjusted"]},
        "pictures": image_use(difference, against),
        "minimum_detectable": detectable(pairing, primary),
        "dimensions": dimensions,
        "mean": mean_entry(pairing),
        "official": simple_entries(before, after, before.official_scores, after.official_scores)
        if official
        else None,
        "forward_only": forward_entries(before, after, dimensions),
        "gain": _gain(before, after),
        "controls": against,
        "guardrails": non_inferiority_checks(before, after, primary),
        "cells": cells(pairing, after.groups, list(groups)),
    }


_KEYS = ("dimension", "before", "after", "delta", "ci95", "p", "n", "clusters", "ceiling")


def headline_sentence(comparison: Comparison) -> str:
    """Returns the comparison in words: numbers, interval, what differs, and the verdict."""
    difference = comparison["primary"]
    if difference["delta"] is None:
        return f"Not shown: {difference['dimension']} was not judged by both on any labelled case."
    changes = comparison["differences"]
    named = ", ".join(
        f"{name} ({_brief(change['before'])} -> {_brief(change['after'])})"
        for name, change in changes.items()
    )
    if not comparison["comparable"]:
        sentence = f"Not shown: the evaluations differ in more than was declared: {named}."
        return sentence if changes.keys() & OTHER_DATA else f"{sentence} {_declaration(comparison)}"
    interval = "no interval below two clusters"
    if difference["ci95"]:
        interval = interval_words(difference["ci95"])
    p = "p < 0.001" if difference["p"] < 0.001 else f"p = {difference['p']:.3f}"
    sentence = (
        f"{comparison['verdict']} on {difference['dimension']}: "
        f"{100 * difference['before']:.1f} % -> {100 * difference['after']:.1f} %, "
        f"{100 * difference['delta']:+.1f} points ({interval}, {p}; "
        f"{difference['n']} cases in {difference['clusters']} clusters)."
    )
    failed = _failed_checks(comparison)
    if failed:
        sentence += f" Failed guardrails: {', '.join(failed)}."
    return sentence + (f" Declared difference besides the weights: {named}." if named else "")


def _declaration(comparison: Comparison) -> str:
    """What would have declared the differences."""
    names = dict.fromkeys([*comparison["allowed_differences"], *comparison["differences"]])
    return (
        f"Where that is meant, the recipe says so: allowed_differences: [{', '.join(names)}] "
        f"(medrm compare: --allowed_differences {' '.join(names)})."
    )


def _brief(value: Any) -> Any:
    """A list by its length, a digest by its first characters."""
    if isinstance(value, list):
        return len(value)
    return value[:12] if isinstance(value, str) and len(value) == DIGEST_LENGTH else value


def _primary(requested: str | None, before: Evaluation, after: Evaluation) -> str:
    """The dimension of the headline."""
    both = [name for name in after.judged if name in before.judged]
    if requested is None:
        labelled = [name for name in both if after.scores[name]]
        if not labelled:
            raise DataError(
                f"{str(before.folder)!r} and {str(after.folder)!r} share no dimension with labels. "
                "Evaluate both models on the same benchmark."
            )
        return "overall" if "overall" in labelled else labelled[0]
    if requested not in both:
        raise ConfigError(
            f"The primary dimension {requested!r} was not judged in both evaluations; judged in "
            f"both: {', '.join(both) or 'none'}.{nearest(requested, both)}"
        )
    return requested


def _control(name: str, control: Evaluation, after: Evaluation, primary: str) -> dict[str, Any]:
    """The trained model against a control on the primary dimension."""
    if control.clusters != after.clusters:
        raise DataError(
            f"Control {name!r} ({str(control.folder)!r}) did not judge the cases of "
            f"{str(after.folder)!r}. Evaluate it again on the same benchmark."
        )
    difference: dict[str, Any] = {"dimension": primary, **dict.fromkeys(_KEYS[1:]), "n": 0}
    difference |= {"clusters": 0, "ceiling": after.report["ceiling"][primary]}
    if primary in control.scores:
        scores = [{primary: side.scores[primary]} for side in (control, after)]
        pairing = pair(control, after, *scores)
        difference |= paired_entry(pairing.before[:, 0], pairing.after[:, 0], pairing.clusters)
        if difference["n"]:
            difference["p"] = sign_flip_test(pairing.differences, pairing.clusters).p[0]
    return difference


def _gain(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]] | None:
    """Judgement and format in each dimension's difference; None unless both sides are judges."""
    if before.report["parsing"] is None or after.report["parsing"] is None:
        return None
    shared = {
        name: scores.keys() & after.scores[name].keys()
        for name, scores in before.scores.items()
        if name in after.scores
    }
    return gains(before.robust, after.robust, shared)


def _verdict(comparison: Comparison) -> str:
    difference = comparison["primary"]
    if not comparison["comparable"] or difference["ci95"] is None:
        return "Not shown"
    low, high = difference["ci95"]
    if low > 0 and difference["p"] < SIGNIFICANCE and not _failed_checks(comparison):
        return "Improved"
    return "Regressed" if high < 0 else "Not shown"


def _failed_checks(comparison: Comparison) -> list[str]:
    """The names of what got worse and must not."""
    checks = comparison["guardrails"].items()
    return [name for name, check in checks if check["state"] == "failed"]
