"""How much of the trained model's accuracy needs the picture; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHOUT = {
    "blank_images": "with blank images",
    "shuffled_images": "with another case's images",
    "text_only": "without images",
}
"""The controls that take the picture away, in words."""


def pictures(primary: Mapping[str, Any], controls: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns `pictures` of `comparison.json`; None where no such control was run, or no headline.

    Args:
        primary: the headline's entry.
        controls: name to the entry of the trained model against it.
    """
    found = {
        name: {
            "accuracy": controls[name]["before"],
            **{key: controls[name][key] for key in ("delta", "ci95", "p")},
        }
        for name in WITHOUT
        if name in controls and controls[name]["delta"] is not None
    }
    if not found or primary["delta"] is None:
        return None
    parts = [_became(entry, WITHOUT[name]) for name, entry in found.items()]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    sentence = (
        f"The trained model's {100 * primary['after']:.1f} % on {primary['dimension']} become "
        f"{listed}."
    )
    if not any(entry["ci95"] and entry["ci95"][0] > 0 for entry in found.values()):
        sentence += " It is not shown that the model needs the picture."
    return {
        "dimension": primary["dimension"],
        "after": primary["after"],
        "controls": found,
        "sentence": sentence,
    }


def _became(entry: Mapping[str, Any], how: str) -> str:
    change = f"{-100 * entry['delta']:+.1f} points"
    if entry["ci95"] is not None:
        low, high = entry["ci95"]
        change += f", 95 % CI {-100 * high:+.1f} to {-100 * low:+.1f}"
    return f"{100 * entry['accuracy']:.1f} % {how} ({change})"
