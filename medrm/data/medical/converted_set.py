"""What was converted in a set, how, and what of it may show who somebody is: counts and names."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from medrm.data.image_references import ConvertedFile
from medrm.data.medical.conversions import BURNED_IN
from medrm.errors import ConfigError
from medrm.schema import ImageRef

logger = logging.getLogger(__name__)

_NAMED = 3
"""Images that are named for each risk."""


class ConvertedTally:
    """Counts the medical images of a set, each once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._conversion = ""
        self._kinds: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._risks: Counter[str] = Counter()
        self._names: dict[str, list[str]] = defaultdict(list)
        self._private_tags = 0

    def add(self, images: Iterable[ImageRef]) -> None:
        """Counts the images of cases."""
        for ref in images:
            if (
                isinstance(ref.read, ConvertedFile)
                and ref.problem is None
                and not ref.read.position
            ):
                self._count(ref.name, ref.read)

    def _count(self, name: str, read: ConvertedFile) -> None:
        key = hash(read.path)
        if key in self._seen:
            return
        self._seen.add(key)
        about = read.about
        self._conversion = about["conversion"]
        self._kinds[about["kind"]] += 1
        self._made.update(about["made"])
        self._notes.update(about.get("notes", ()))
        self._private_tags += about.get("private_tags", 0)
        for risk in about.get("risks", ()):
            self._risks[risk] += 1
            if len(self._names[risk]) < _NAMED:
                self._names[risk].append(name.partition(", picture ")[0])

    def summary(self) -> dict[str, Any]:
        """Returns what was converted; empty: nothing was.

        `files` counts kinds of files, `pictures` how pictures were made, `risks` files that may
        show who somebody is, with a few names; of `private_tags` no value was read.
        """
        if not self._conversion:
            return {}
        return {
            "conversion": self._conversion,
            "files": dict(self._kinds),
            "pictures": dict(self._made),
            "notes": dict(self._notes),
            "risks": {risk: [count, self._names[risk]] for risk, count in self._risks.items()},
            "private_tags": self._private_tags,
        }


def joined_conversions(by_set: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what was converted in several sets together.

    Args:
        by_set: name of a set to the summary of its tally.

    Raises:
        ConfigError: pictures of two sets were made in different ways.
    """
    summaries = [summary for summary in by_set.values() if summary]
    if len({summary["conversion"] for summary in summaries}) > 1:
        made = (f"{name!r}: {of_set.get('conversion')}" for name, of_set in by_set.items())
        raise ConfigError(
            f"Medical images became pictures in different ways ({', '.join(made)}), so that they "
            "are no input of one model. Give --image_conversion, which holds for all sets."
        )
    if not summaries:
        return {}
    risks: dict[str, list[Any]] = {}
    for risk, (count, names) in chain.from_iterable(each["risks"].items() for each in summaries):
        counted = risks.setdefault(risk, [0, []])
        counted[:] = [counted[0] + count, [*counted[1], *names][:_NAMED]]
    return {
        "conversion": summaries[0]["conversion"],
        **{
            name: dict(sum((Counter(each[name]) for each in summaries), Counter()))
            for name in ("files", "pictures", "notes")
        },
        "risks": risks,
        "private_tags": sum(each["private_tags"] for each in summaries),
    }


def conversion_setting(converted: Mapping[str, Any]) -> dict[str, str]:
    """Returns by which conversion the medical images of a set became pictures, as a setting."""
    return {"image_conversion": converted["conversion"]} if converted else {}


def conversion_lines(converted: Mapping[str, Any]) -> list[str]:
    """Returns how medical images of a set became pictures; nothing where it has none."""
    if not converted:
        return []
    files = ", ".join(f"{count} {kind}" for kind, count in converted["files"].items())
    made = {**converted["pictures"], **converted["notes"]}
    pictures = ", ".join(f"{count} {how}" for how, count in made.items())
    lines = [f"medical images by {converted['conversion']}: {files}; pictures: {pictures}"]
    if converted["private_tags"]:
        lines.append(f"private tags in their files: {converted['private_tags']}, none was read")
    return lines


def identity_findings(converted: Mapping[str, Any]) -> list[str]:
    """Returns what in medical images may show who somebody is; no value of a tag was read."""
    return [
        f"{risk}: {count} file{'s' if count > 1 else ''}, such as {names[0]}"
        for risk, (count, names) in converted.get("risks", {}).items()
    ]


def warn_of_burned_in(source: str, converted: Mapping[str, Any]) -> None:
    """Warns of pictures of a set that somebody has written upon, as their files say."""
    count, names = converted.get("risks", {}).get(BURNED_IN, (0, ()))
    if count:
        logger.warning(
            "%s: %d images have annotations burned into their pixels, such as %s. They may name a "
            "patient; look at them before they are shown to anybody.", source, count, names[0],
        )  # fmt: skip
