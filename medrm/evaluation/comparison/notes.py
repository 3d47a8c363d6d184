"""Sentences that a reader of the headline must know, from the numbers alone; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medrm.evaluation.comparison.evaluations import Evaluation, Scores
from medrm.evaluation.comparison.pairing import pair, paired_entry

AVERAGED = ("zero_shot_averaged", "base_averaged")
"""The controls that average a base's verdict over both orders."""

WITHOUT_IMAGES = {
    "blank_images": "with blank images",
    "shuffled_images": "with another case's images",
    "text_only": "without images",
}
"""The controls that take the picture away, in words."""


def interval_words(bounds: Sequence[float]) -> str:
    """Returns the interval of a difference in points."""
    return f"95 % CI {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"


def image_use(primary: Mapping[str, Any], controls: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns `pictures` of `comparison.json`: how much of the accuracy needs the picture.

    None where no control takes the picture away, or there is no headline.

    Args:
        primary: the headline's difference.
        controls: name to the difference of the trained model from it.
    """
    without = {
        name: {
            "accuracy": controls[name]["before"],
            **{key: controls[name][key] for key in ("delta", "ci95", "p")},
        }
        for name in WITHOUT_IMAGES
        if name in controls and controls[name]["delta"] is not None
    }
    if not without or primary["delta"] is None:
        return None
    losses = [_loss(control, WITHOUT_IMAGES[name]) for name, control in without.items()]
    listed = losses[0] if len(losses) == 1 else f"{', '.join(losses[:-1])} and {losses[-1]}"
    sentence = (
        f"The trained model's {100 * primary['after']:.1f} % on {primary['dimension']} become "
        f"{listed}."
    )
    if not any(control["ci95"] and control["ci95"][0] > 0 for control in without.values()):
        sentence += " It is not shown that the model needs the picture."
    return {
        "dimension": primary["dimension"],
        "after": primary["after"],
        "controls": without,
        "sentence": sentence,
    }


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
    stated = rounding[0].keys() & rounding[1].keys()
    changed = sorted(name for name in stated if rounding[0][name] != rounding[1][name])
    if changed:
        notes.append(
            f"Computed with another {' and '.join(changed)}, which changes rounding alone."
        )
    if comparison["primary"]["delta"] is None:
        return notes
    # Of several votes the official protocol reads one, so that not only the format can differ.
    written = all(r["parsing"] is not None and r["readout"] != "votes" for r in reports)
    if written and comparison["official"] is not None and primary in comparison["official"]:
        scores = [(side.official_scores, side.forward_scores) for side in (before, after)]
        lost = _excess(before, after, primary, scores)
        if lost is not None:
            notes.append(
                f"Part of the official gain is output format: of its "
                f"{100 * comparison['official'][primary]['delta']:+.1f} points on {primary}, "
                f"{lost} vanish when the same replies are read by the strict parser."
            )
    if comparison["forward_only"] is not None:
        scores = [(side.forward_scores, side.scores) for side in (before, after)]
        lost = _excess(before, after, primary, scores)
        if lost is not None:
            gain = comparison["forward_only"][primary]["delta"]
            notes.append(
                f"Part of the gain in the stored order is position: of its {100 * gain:+.1f} "
                f"points on {primary}, {lost} vanish when both orders count."
            )
    return notes + _averaged_notes(comparison)


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
    before: Evaluation,
    after: Evaluation,
    dimension: str,
    scores: list[tuple[Scores, Scores]],
) -> str | None:
    """By how much a gain exceeds another on the same cases, where that is clear of zero.

    None where it is not, or where nothing was gained.

    Args:
        before: evaluation before training.
        after: of the trained model.
        dimension: of both gains.
        scores: for before and after, the scores of the gain and those of the other gain.
    """
    gain, other = (
        pair(before, after, *({dimension: side[index][dimension]} for side in scores))
        for index in (0, 1)
    )
    difference = paired_entry(
        other.differences[:, 0], gain.differences[:, 0], gain.clusters, widest=2.0
    )
    bounds = difference["ci95"]
    if bounds is None or bounds[0] <= 0 or difference["after"] <= 0:
        return None
    return f"{100 * difference['delta']:.1f} ({interval_words(bounds)})"
