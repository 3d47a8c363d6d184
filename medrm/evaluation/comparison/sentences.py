"""The sentences of a comparison: its headline, what the picture does, what qualifies the gain.

Only here do its numbers become words; terminal, page and exports show the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medrm.evaluation.benchmark import RULES
from medrm.evaluation.comparison import gate, pairing
from medrm.evaluation.comparison.pairing import Evaluation
from medrm.evaluation.leak_check import leak_line

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


def headline_sentence(comparison: Mapping[str, Any]) -> str:
    """Returns the comparison in words: numbers, interval, what differs, and the verdict.

    `seeds` of a comparison, where it has them, are those of the trained models.
    """
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
    seeds, spread = comparison.get("seeds", ()), ""
    if seeds:
        counts = f"over {len(seeds)} seeds and {counts}"
        spread = f" (SD over seeds {100 * difference['after_spread']['sd']:.1f})"
    sentence = (
        f"{comparison['verdict']} on {dimension}: "
        f"{100 * difference['before']:.1f} % -> {100 * difference['after']:.1f} %{spread}, "
        f"{tested_words(difference)}; {counts})."
    )
    rule = comparison["best_rule"]
    if comparison["verdict"] == "Improved" and rule is not None and not is_gain(rule):
        sentence += (
            " It is not shown that the model is better than the best rule without a model "
            f"({RULES[rule['rule']]}: {100 * rule['before']:.1f} %)."
        )
    if failed := failed_checks(comparison):
        sentence += f" Failed guardrails: {', '.join(failed)}."
    return sentence + (f" Declared difference besides the weights: {named}." if named else "")


def _brief(value: Any) -> Any:
    """A list by its length, a digest by its first characters."""
    if isinstance(value, list):
        return len(value)
    return value[:12] if isinstance(value, str) and len(value) == DIGEST_LENGTH else value


def is_gain(difference: Mapping[str, Any]) -> bool:
    """Whether a difference is shown to be above zero."""
    bounds = difference["ci95"]
    return bounds is not None and bounds[0] > 0 and difference["p"] < SIGNIFICANCE


def tested_words(difference: Mapping[str, Any]) -> str:
    """A difference in points and, in brackets left open, its interval and its p-value, if any."""
    bounds, p = difference["ci95"], difference["p"]
    interval = interval_words(bounds) if bounds else "no interval below two clusters"
    p_words = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return f"{100 * difference['delta']:+.1f} points ({interval}{p_words}"


def rule_sentence(difference: Mapping[str, Any], model: str) -> str:
    """Returns what the best rule without a model reaches, and a model's difference from it."""
    sentence = (
        f"The best rule without a model ({RULES[difference['rule']]}; chosen {difference['chosen']}"
        f") is right in {100 * difference['before']:.1f} % on {difference['dimension']}; "
        f"{model} is at {tested_words(difference)})."
    )
    if not is_gain(difference):
        sentence += " It is not shown that the model is better than that rule."
    return sentence


def failed_checks(comparison: Mapping[str, Any]) -> list[str]:
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
    if after.report.get("leak_check") == "not_possible":
        notes.append(f"Of the trained model, {leak_line(after.report)}")
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
