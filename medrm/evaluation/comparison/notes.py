"""Sentences that a reader of the headline must know, from the numbers alone; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medrm.evaluation.comparison.evaluations import Evaluation, Scores
from medrm.evaluation.comparison.pairing import pair, paired_entry

AVERAGED = ("zero_shot_averaged", "base_averaged")
"""The controls that average a base's verdict over both orders."""


def notes_of(before: Evaluation, after: Evaluation, comparison: Mapping[str, Any]) -> list[str]:
    """Returns what qualifies the gain on the primary dimension."""
    primary = comparison["primary"]["dimension"]
    crossfit = after.report["crossfit"]
    notes = [] if crossfit is None else [conditional_on(crossfit["folds"])]
    if before.report["weights"] is not None and (
        before.report["weights"] == after.report["weights"]
    ):
        notes.append("Both evaluations are of the same weights.")
    early, late = before.report["rounding"], after.report["rounding"]
    other = sorted(name for name in early.keys() & late.keys() if early[name] != late[name])
    if other:
        notes.append(f"Computed with another {' and '.join(other)}, which changes rounding alone.")
    if comparison["primary"]["delta"] is None:
        return notes
    sides = (before.report, after.report)
    # Of several votes the official protocol reads one, so that not only the format can differ.
    written = all(one["parsing"] is not None and one["readout"] != "votes" for one in sides)
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
    return notes + _averaged(comparison)


def _averaged(comparison: Mapping[str, Any]) -> list[str]:
    """What is left of the gain where the base judges better once its orders are averaged."""
    old = comparison["primary"]["before"]
    controls = (comparison["controls"].get(name) for name in AVERAGED)
    return [
        f"{_share(one)} the base's position bias: with the probabilities of both orders averaged "
        f"it is right in {100 * one['before']:.1f} % on {one['dimension']}, not in "
        f"{100 * old:.1f} %; against that the trained model is at {_points(one)}."
        for one in controls
        if one is not None and one["delta"] is not None and one["before"] > old
    ]


def _share(entry: Mapping[str, Any]) -> str:
    """Whether the trained model is clearly better than the base without its position bias."""
    clear = entry["ci95"] is not None and entry["ci95"][0] > 0
    return "Part of the gain is" if clear else "It is not shown that the gain is more than"


def _points(entry: Mapping[str, Any]) -> str:
    points = f"{100 * entry['delta']:+.1f} points"
    if entry["ci95"] is None:
        return points
    low, high = entry["ci95"]
    return f"{points} (95 % CI {100 * low:+.1f} to {100 * high:+.1f})"


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
    """By how much one gain exceeds another on the same cases, where that is clear of zero.

    None where it is not, or where nothing was gained.

    Args:
        before: evaluation before training.
        after: of the trained model.
        dimension: of both gains.
        scores: for before and after, the scores of the gain and those of the other one.
    """
    (old, old_other), (new, new_other) = (
        tuple({dimension: of[dimension]} for of in side) for side in scores
    )
    gain, other = pair(before, after, old, new), pair(before, after, old_other, new_other)
    entry = paired_entry(other.differences[:, 0], gain.differences[:, 0], gain.clusters, widest=2.0)
    if entry["ci95"] is None or entry["ci95"][0] <= 0 or entry["after"] <= 0:
        return None
    low, high = entry["ci95"]
    return f"{100 * entry['delta']:.1f} (95 % CI {100 * low:+.1f} to {100 * high:+.1f})"
