"""A run as it may be shown outside: numbers, and no word of the data; imports no torch.

What stays: numbers, the names of dimensions and models, what medrm itself calls things, and digests
of whole sets. What goes: everything about single cases (ids, clusters, questions, answers, prompts,
replies, pictures and their digests), names of files and folders, and whatever people wrote into the
columns of a set. A group's member (an organ, a department, a modality) keeps its name where it is
one of medrm's own, and is otherwise numbered, in the order of the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from medrm.data.organs import ORGANS
from medrm.data.phantom.pictures import MODALITIES
from medrm.data.sources import description_names
from medrm.evaluation.benchmark_loading import benchmark_names
from medrm.evaluation.measures.accuracy import NOT_STATED
from medrm.evaluation.report import Report, RunFiles
from medrm.schema import Verdict

KNOWN_MEMBERS = frozenset({*ORGANS, *MODALITIES, NOT_STATED})

OWN_DATA = "data of its own"
"""In place of a set's name, which is that of a file or folder."""

_MANIFEST = ("seed", "device", "processes", "sharding", "versions", "git_commit")

_WORDS = frozenset(
    {
        *("objective", "lr_scheduler_type", "optim", "save_strategy", "eval_strategy", "loss_type"),
        *("dtype", "attn_implementation", "reward_template", "shared_prefix", "head", "pair_loss"),
        *(
            "judge_readout",
            "stages",
            "controls",
            "dimensions",
            "aggregation",
            "vote_ties",
            "vote_strength",
        ),
    }
)
"""Options whose words are medrm's or transformers' own."""

_PROMPT_FILE = " 0"
"""The version of a prompt that is a user's file, behind its name."""


class SharedNames:
    """The names under which the members of groups may be shown.

    Attributes:
        by_group: group to member to its name.
    """

    def __init__(self, run: RunFiles) -> None:
        members: dict[str, set[str]] = {}
        for report in run.sides.values():
            protocols = report["protocols"]
            groups = {**protocols.get("robust", {}).get("groups", {})}
            groups["organ"] = {
                **groups.get("organ", {}), **protocols.get("official", {}).get("organs", {})
            }  # fmt: skip
            for group, measured in groups.items():
                members.setdefault(group, set()).update(measured)
        for group, cells in ({} if run.comparison is None else run.comparison["cells"]).items():
            members.setdefault(group, set()).update(cell["member"] for cell in cells)
        self.by_group = {group: _numbered(group, names) for group, names in members.items()}

    def verdict(self, row: Verdict) -> Verdict:
        """Returns a verdict whose groups have the names that may be shown."""
        groups = {
            group: self.by_group[group].get(member, OWN_DATA)
            for group, member in row.groups.items()
            if group in self.by_group
        }
        return replace(row, groups=groups)

    def run(self, run: RunFiles) -> RunFiles:
        """Returns the reports and the comparison of a run as they may be shown."""
        before = None if run.before is None else self._report(run.before)
        comparison = None if run.comparison is None else self._comparison(run.comparison)
        return replace(run, before=before, after=self._report(run.after), comparison=comparison)

    def _report(self, report: Report) -> Report:
        protocols = {name: dict(measured) for name, measured in report["protocols"].items()}
        if "robust" in protocols:
            protocols["robust"]["groups"] = {
                group: _renamed(members, self.by_group[group])
                for group, members in protocols["robust"]["groups"].items()
            }
        if "official" in protocols:
            organs = _renamed(protocols["official"]["organs"], self.by_group["organ"])
            protocols["official"]["organs"] = organs
        settings = dict(report["settings"])
        if str(settings.get("prompt", "")).endswith(_PROMPT_FILE):
            settings["prompt"] = "a file"
            if "official" in protocols:
                protocols["official"]["label"] = "official scorer, prompt file"
        return {
            **report,
            "weights": (report.get("weights") or "").partition(" at ")[0] or None,  # which host
            "benchmark": shared_set(report["benchmark"]),
            "protocols": protocols,
            "settings": settings,
            "metrics": _renamed_within(report.get("metrics", {}), self.by_group),
        }

    def _comparison(self, comparison: Mapping[str, Any]) -> dict[str, Any]:
        cells = {
            group: [{**cell, "member": self.by_group[group][cell["member"]]} for cell in of_group]
            for group, of_group in comparison["cells"].items()
        }
        benchmark = shared_set(comparison["benchmark"])
        return {**comparison, "benchmark": benchmark, "cells": cells}


def _numbered(group: str, members: set[str]) -> dict[str, str]:
    """Returns the name of each member that may be shown."""
    foreign = sorted(members - KNOWN_MEMBERS)
    numbers = {name: f"{group} {number}" for number, name in enumerate(foreign, start=1)}
    return {name: numbers.get(name, name) for name in members}


def _renamed(by_member: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[member]: value for member, value in by_member.items()}


def _renamed_within(numbers: Any, by_group: Mapping[str, Mapping[str, str]]) -> Any:
    """Returns nested numbers in which members are keys at any depth."""
    if not isinstance(numbers, Mapping):
        return numbers
    names = dict(chain.from_iterable(of_group.items() for of_group in by_group.values()))
    return {names.get(key, key): _renamed_within(value, by_group) for key, value in numbers.items()}


def shared_set(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is said of a benchmark or a set, under a name that may be shown.

    That is one of medrm's own, or a hub id: no file or folder has a slash in its name.
    """
    name = identity["name"]
    known = "/" in name or name in (*benchmark_names(), *description_names())
    return {**identity, "name": name if known else OWN_DATA}


def shared_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of run.json what may be shown: versions, numbers, and options in words of ours."""
    config = {
        name: value
        for name, value in manifest.get("config", {}).items()
        if isinstance(value, int | float) or name in _WORDS
    }
    data = manifest.get("data", {})
    cases = {
        part: data[part]["cases"] for part in ("train", "development", "benchmark") if part in data
    }
    kept = {name: manifest[name] for name in _MANIFEST if name in manifest}
    return {"config": config, **kept, "cases": cases, "excluded": len(data.get("excluded", ()))}
