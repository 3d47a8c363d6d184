"""The paired before/after comparison of two evaluation folders, as numbers and in sentences.

Needs no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.errors import ConfigError, DataError, nearest
from medrm.evaluation.benchmark import RULES
from medrm.evaluation.comparison import gate, pairing
from medrm.evaluation.comparison.pairing import Evaluation
from medrm.evaluation.measures.accuracy import split_gain
from medrm.evaluation.report import write_json
from medrm.folder_lock import refuse_owned

Comparison = dict[str, Any]

SIGNIFICANCE = 0.05

DIGEST_LENGTH = 64

AVERAGED = ("zero_shot_averaged", "base_averaged")
"""The controls that average a base's verdict over both orders."""

WITHOUT_IMAGES = {
    "blank_images": "with blank images",
    "shuffled_images": "with another case's images",
    "text_only": "without images",
}
"""The controls that take the picture away, in words."""


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
    before, after = pairing.read_evaluation(before_dir), pairing.read_evaluation(after_dir)
    gate.check_declared(allowed_differences, before.report, after.report)
    differences = gate.find_differences(before, after)
    comparison: Comparison = {
        "comparable": differences.keys() <= set(allowed_differences),
        "differences": differences,
        "allowed_differences": list(allowed_differences),
        "not_recorded": {
            name: gate.not_recorded(side.report)
            for name, side in (("before", before), ("after", after))
        },
        "verdict": "",
        "headline": "",
        **_compared(before, after, _primary(primary, before, after), controls or {}),
    }
    comparison["notes"] = list(dict.fromkeys([*notes, *notes_of(before, after, comparison)]))
    comparison["verdict"] = _verdict(comparison)
    comparison["headline"] = headline_sentence(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    return comparison


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


def _compared(
    before: Evaluation, after: Evaluation, primary: str, controls: Mapping[str, Path]
) -> Comparison:
    """Everything that is measured, before it is judged."""
    measured = pairing.paired_measures(before, after, primary)
    headline = measured["dimensions"][primary]
    difference = {name: headline[name] for name in _KEYS} | {"p": headline["p_unadjusted"]}
    against = {
        name: _control(name, pairing.read_evaluation(Path(folder)), after, primary)
        for name, folder in controls.items()
    }
    groups = after.report["protocols"]["robust"]["groups"]
    return {
        "benchmark": after.report["benchmark"],
        "before": {key: before.report[key] for key in _IDENTITY},
        "after": {key: after.report[key] for key in _IDENTITY},
        "primary": difference,
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


def headline_sentence(comparison: Comparison) -> str:
    """Returns the comparison in words: numbers, interval, what differs, and the verdict."""
    difference, changes = comparison["primary"], comparison["differences"]
    dimension = difference["dimension"]
    if difference["delta"] is None:
        return f"Not shown: {dimension} was not judged by both on any labelled case."
    named = ", ".join(
        f"{name} ({_brief(change['before'])} -> {_brief(change['after'])})"
        for name, change in changes.items()
    )
    if not comparison["comparable"]:
        sentence = f"Not shown: the evaluations differ in more than was declared: {named}."
        if changes.keys() & gate.OTHER_DATA:
            return sentence
        names = dict.fromkeys([*comparison["allowed_differences"], *changes])
        return (
            f"{sentence} Where that is meant, the recipe says so: allowed_differences: "
            f"[{', '.join(names)}] (medrm compare: --allowed_differences {' '.join(names)})."
        )
    counts = f"{difference['n']} cases in {difference['clusters']} clusters"
    sentence = (
        f"{comparison['verdict']} on {dimension}: "
        f"{100 * difference['before']:.1f} % -> {100 * difference['after']:.1f} %, "
        f"{_tested_words(difference)}; {counts})."
    )
    rule = comparison["best_rule"]
    if comparison["verdict"] == "Improved" and rule is not None and not _is_gain(rule):
        sentence += (
            " It is not shown that the model is better than the best rule without a model "
            f"({RULES[rule['rule']]}: {100 * rule['before']:.1f} %)."
        )
    if failed := _failed_checks(comparison):
        sentence += f" Failed guardrails: {', '.join(failed)}."
    return sentence + (f" Declared difference besides the weights: {named}." if named else "")


def _brief(value: Any) -> Any:
    """A list by its length, a digest by its first characters."""
    if isinstance(value, list):
        return len(value)
    return value[:12] if isinstance(value, str) and len(value) == DIGEST_LENGTH else value


def _primary(requested: str | None, before: Evaluation, after: Evaluation) -> str:
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
    sentence = (
        f"The best rule without a model ({RULES[difference['rule']]}; chosen {difference['chosen']}"
        f") is right in {100 * difference['before']:.1f} % on {primary}; "
        f"{after.report['model']} is at {_tested_words(difference)})."
    )
    if not _is_gain(difference):
        sentence += " It is not shown that the model is better than that rule."
    shared = {"ceiling": after.report["ceiling"][primary], "sentence": sentence}
    return difference | shared


def _is_gain(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is shown to be above zero."""
    bounds = difference["ci95"]
    return bounds is not None and bounds[0] > 0 and difference["p"] < SIGNIFICANCE


def _tested_words(difference: Mapping[str, Any]) -> str:
    """A difference in points and, in brackets left open, its interval and its p-value."""
    bounds, p = difference["ci95"], difference["p"]
    interval = interval_words(bounds) if bounds else "no interval below two clusters"
    p_words = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{100 * difference['delta']:+.1f} points ({interval}, {p_words}"


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


def _verdict(comparison: Comparison) -> str:
    difference = comparison["primary"]
    if not comparison["comparable"] or difference["ci95"] is None:
        return "Not shown"
    if _is_gain(difference) and not _failed_checks(comparison):
        return "Improved"
    return "Regressed" if difference["ci95"][1] < 0 else "Not shown"


def _failed_checks(comparison: Comparison) -> list[str]:
    """The names of what got worse and must not."""
    checks = comparison["guardrails"].items()
    return [name for name, check in checks if check["state"] == "failed"]


def interval_words(bounds: Sequence[float], widest: float = 1.0) -> str:
    """Returns the interval of a difference in points, cut at the largest one for reading only."""
    low, high = max(-widest, bounds[0]), min(widest, bounds[1])
    return f"95 % CI {100 * low:+.1f} to {100 * high:+.1f}"


def image_use(primary: Mapping[str, Any], controls: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns `pictures` of `comparison.json`: how much of the accuracy needs the picture.

    None where no control takes the picture away, or there is no headline.

    Args:
        primary: the headline's difference.
        controls: name to the difference of the trained model from it.
    """
    without = {
        name: {"accuracy": control["before"]} | {k: control[k] for k in ("delta", "ci95", "p")}
        for name in WITHOUT_IMAGES
        if (control := controls.get(name)) is not None and control["delta"] is not None
    }
    if not without or primary["delta"] is None:
        return None
    losses = [_loss(control, WITHOUT_IMAGES[name]) for name, control in without.items()]
    listed = " and ".join(filter(None, (", ".join(losses[:-1]), losses[-1])))
    sentence = (
        f"The trained model's {100 * primary['after']:.1f} % on {primary['dimension']} become "
        f"{listed}."
    )
    if not any(control["ci95"] and control["ci95"][0] > 0 for control in without.values()):
        sentence += " It is not shown that the model needs the picture."
    stated = {key: primary[key] for key in ("dimension", "after")}
    return {**stated, "controls": without, "sentence": sentence}


def _loss(control: Mapping[str, Any], how: str) -> str:
    change = f"{-100 * control['delta']:+.1f} points"
    if control["ci95"] is not None:
        change += f", {interval_words([-bound for bound in reversed(control['ci95'])])}"
    return f"{100 * control['accuracy']:.1f} % {how} ({change})"


def notes_of(before: Evaluation, after: Evaluation, comparison: Mapping[str, Any]) -> list[str]:
    """Returns what qualifies the gain on the primary dimension."""
    primary = comparison["primary"]["dimension"]
    crossfit = after.report["crossfit"]
    notes = [] if crossfit is None else [conditional_on(crossfit["folds"])]
    reports = (before.report, after.report)
    weights, rounding = ([report[key] for report in reports] for key in ("weights", "rounding"))
    if weights[0] is not None and weights[0] == weights[1]:
        notes.append("Both evaluations are of the same weights.")
    stated = sorted(rounding[0].keys() & rounding[1].keys())
    words = {"deterministic": "choice of deterministic"}
    changes = (words.get(name, name) for name in stated if rounding[0][name] != rounding[1][name])
    if changed := " and ".join(changes):
        notes.append(f"Computed with another {changed}, which changes rounding alone.")
    if comparison["primary"]["delta"] is None:
        return notes
    # Of several votes the official protocol reads one, so that not only the format can differ.
    written = all(r["parsing"] is not None and r["readout"] != "votes" for r in reports)
    for key, countings, gain_words, loss_words in _EXCESSES:
        gain = (comparison[key] or {}).get(primary)
        if gain is None or (key == "official" and not written):
            continue
        lost = _excess(before, after, primary, countings)
        if lost is not None:
            notes.append(
                f"Part of the {gain_words}: of its {100 * gain['delta']:+.1f} points on "
                f"{primary}, {lost} vanish when {loss_words}."
            )
    return notes + _averaged_notes(comparison)


_EXCESSES = (
    (
        *("official", ("official", "forward"), "official gain is output format"),
        "the same replies are read by the strict parser",
    ),
    (
        *("forward_only", ("forward", "robust"), "gain in the stored order is position"),
        "both orders count",
    ),
)
"""Of a gain that another counting of the same replies may lessen: its key in `comparison.json`, how
it and the other are counted, and in words what it is and when it vanishes."""


def _averaged_notes(comparison: Mapping[str, Any]) -> list[str]:
    """What is left of the gain where the base judges better once its orders are averaged."""
    base = comparison["primary"]["before"]
    notes = []
    for name in AVERAGED:
        control = comparison["controls"].get(name)
        if control is None or control["delta"] is None or control["before"] <= base:
            continue
        bounds, gain = control["ci95"], f"{100 * control['delta']:+.1f} points"
        clear = bounds is not None and bounds[0] > 0
        notes.append(
            f"{'Part of the gain is' if clear else 'It is not shown that the gain is more than'} "
            "the base's position bias: with the probabilities of both orders averaged it is right "
            f"in {100 * control['before']:.1f} % on {control['dimension']}, not in "
            f"{100 * base:.1f} %; against that the trained model is at "
            f"{gain if bounds is None else f'{gain} ({interval_words(bounds)})'}."
        )
    return notes


def conditional_on(folds: int) -> str:
    """Returns what the intervals of a cross-fitted evaluation leave out."""
    return (
        f"Conditional on these k = {folds} models: the intervals say how the cases vary, not how "
        "the models of another cut or seed would."
    )


def _excess(
    before: Evaluation, after: Evaluation, dimension: str, countings: tuple[str, str]
) -> str | None:
    """By how much a gain exceeds another on the same cases, where that is clear of zero.

    None where it is not, or where nothing was gained.

    Args:
        before: evaluation before training.
        after: of the trained model.
        dimension: of both gains.
        countings: how the scores of the gain and those of the other gain are counted.
    """
    gain, other = (pairing.pair(before, after, counting) for counting in countings)
    changes = [p.differences[:, p.names.index(dimension)] for p in (other, gain)]
    difference = pairing.paired_entry(changes[0], changes[1], gain.clusters, widest=2.0)
    bounds = difference["ci95"]
    if bounds is None or bounds[0] <= 0 or difference["after"] <= 0:
        return None
    return f"{100 * difference['delta']:.1f} ({interval_words(bounds, widest=2.0)})"
