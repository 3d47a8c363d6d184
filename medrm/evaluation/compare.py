"""The paired before/after comparison of two evaluation folders.

Needs no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.errors import ConfigError, DataError, nearest
from medrm.evaluation.comparison import gate, pairing
from medrm.evaluation.comparison.pairing import Evaluation
from medrm.evaluation.comparison.sentences import (
    failed_checks,
    headline_sentence,
    image_use,
    is_gain,
    notes_of,
    rule_sentence,
)
from medrm.evaluation.measures.accuracy import split_gain
from medrm.evaluation.report import write_json
from medrm.files import RUN_FILE
from medrm.folder_lock import refuse_owned

Comparison = dict[str, Any]


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
        ConfigError: `primary` is no dimension of the benchmark, or a declared difference is none,
            or a run that is under way owns the folder to write.
    """
    folder = Path(output_dir or home_of(after_dir))
    refuse_owned(folder, "Give another --output_dir, or wait for the run's own comparison.")
    read = pairing.read_evaluation
    against = {name: read(Path(control)) for name, control in (controls or {}).items()}
    comparison = comparison_of(
        read(before_dir), read(after_dir), primary, against, allowed_differences, notes
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    return comparison


def comparison_of(
    before: Evaluation,
    after: Evaluation,
    primary: str | None,
    controls: Mapping[str, Evaluation],
    allowed_differences: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Returns the comparison of two evaluations that are read; arguments and errors as `compare`'s.

    `controls` are read as well.
    """
    comparison: Comparison = {
        **gated(before, after, allowed_differences),
        "verdict": "",
        "headline": "",
        **_compared(before, after, primary_of(primary, before, after), controls),
    }
    comparison["notes"] = list(dict.fromkeys([*notes, *notes_of(before, after, comparison)]))
    comparison["verdict"] = verdict_of(comparison)
    comparison["headline"] = headline_sentence(comparison)
    return comparison


def gated(before: Evaluation, after: Evaluation, allowed_differences: Sequence[str]) -> Comparison:
    """Returns whether two evaluations can be compared, and what besides the weights differs.

    Raises:
        ConfigError: a declared difference is none.
    """
    gate.check_declared(allowed_differences, before.report, after.report)
    differences = gate.find_differences(before, after)
    return {
        "comparable": differences.keys() <= set(allowed_differences),
        "differences": differences,
        "allowed_differences": list(allowed_differences),
        "not_recorded": {
            name: gate.not_recorded(side.report)
            for name, side in (("before", before), ("after", after))
        },
    }


def home_of(after_dir: Path) -> Path:
    """Returns where a comparison lies unless something else is asked: beside its later evaluation.

    Two evaluations laid out as a run's, `FOLDER/evaluation/NAME`, have it in FOLDER; a real run has
    a comparison of its own there, with its controls, which is replaced only on request.
    """
    after = Path(after_dir)
    layout = after.resolve().parent
    if layout.name == "evaluation" and not (layout.parent / RUN_FILE).exists():
        return layout.parent
    return after


def _compared(
    before: Evaluation, after: Evaluation, primary: str, controls: Mapping[str, Evaluation]
) -> Comparison:
    """Everything that is measured, before it is judged."""
    measured = pairing.paired_measures(before, after, primary)
    headline = measured["dimensions"][primary]
    difference = {name: headline[name] for name in _KEYS} | {"p": headline["p_unadjusted"]}
    against = {name: _control(name, control, after, primary) for name, control in controls.items()}
    groups = after.report["protocols"]["robust"]["groups"]
    return {
        "benchmark": after.report["benchmark"],
        "before": {key: before.report[key] for key in _IDENTITY},
        "after": {key: after.report[key] for key in _IDENTITY},
        "primary": difference,
        "human_ceiling": after.report.get("human_ceiling"),
        "best_rule": _best_rule(after, primary),
        "pictures": image_use(difference, against),
        **measured,
        "gain": _gain(before, after),
        "controls": against,
        "guardrails": gate.non_inferiority_checks(before, after, primary),
        "cells": {group: pairing.cells(before, after, group) for group in groups},
    }


_IDENTITY = ("model", "weights", "readout")
_KEYS = ("dimension", "before", "after", "delta", "ci95", "p", "n", "clusters", "ceiling")


def primary_of(requested: str | None, before: Evaluation, after: Evaluation) -> str:
    """The dimension of the headline."""
    both = [name for name in after.robust if name in before.robust]
    if requested is None:
        labelled = [name for name in both if after.scores["robust"][name]]
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
    shared = {"ceiling": after.report["ceiling"][primary]}
    return (
        dict.fromkeys(_KEYS) | pairing.tested_entry(pairing.pair(control, after), primary) | shared
    )


def _best_rule(after: Evaluation, primary: str) -> dict[str, Any] | None:
    """The best rule without a model: its paired difference, and a sentence."""
    difference = pairing.against_best_rule(after, primary)
    if difference is None:
        return None
    sentence = rule_sentence(difference, after.report["model"])
    shared = {"ceiling": after.report["ceiling"][primary], "sentence": sentence}
    return difference | shared


def _gain(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]] | None:
    """Judgement and format in each dimension's difference; None unless both sides are judges."""
    if before.report["parsing"] is None or after.report["parsing"] is None:
        return None
    scores = [side.scores["robust"] for side in (before, after)]
    return {
        name: split_gain(before.robust[name], after.robust[name], shared)
        for name in scores[0]
        if (shared := scores[0][name].keys() & scores[1].get(name, {}).keys())
    }


def verdict_of(comparison: Comparison) -> str:
    """Returns Improved, Not shown or Regressed; neither of them without a gain that is shown."""
    difference = comparison["primary"]
    if not comparison["comparable"] or difference["ci95"] is None:
        return "Not shown"
    if is_gain(difference) and not failed_checks(comparison):
        return "Improved"
    return "Regressed" if difference["ci95"][1] < 0 else "Not shown"
