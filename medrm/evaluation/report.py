"""`report.json` and `official.csv` of one evaluation folder, and what a run's page is made from.

Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark, Setup, baselines
from medrm.evaluation.leak_check import leak_measures
from medrm.evaluation.measures import accuracy
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.evaluation.measures.biases import length_measures, structure_measures
from medrm.evaluation.measures.human_ceiling import human_ceiling
from medrm.evaluation.measures.rounding import noise_measures
from medrm.evaluation.records.jsonl import verdicts_by, verdicts_by_case
from medrm.files import write_atomically
from medrm.parsers import Parser, parse_verdict
from medrm.parsers.parsed import Parsed
from medrm.readouts import writes_rewards, writes_text
from medrm.schema import UNREAD, USAGE, Response, Verdict
from medrm.scorer.verdict_rules import is_official, unread_reason
from medrm.statistics.intervals import mean

Report = dict[str, Any]

ROUNDING = ("attn_implementation", "shared_prefix", "deterministic")
"""Settings that change rounding alone, like the size of a batch: named, and no bar to comparing.

A stopped evaluation goes on only with the same ones.
"""

NONE = "none"
"""The stage of a reply that no rule could read."""


def build_report(
    setup: Setup, benchmark: Benchmark, responses: Sequence[Response], rows: Sequence[Verdict]
) -> Report:
    """Returns `report.json` (each of its keys is explained in evaluation/README.md).

    Args:
        setup: what was asked of which model.
        benchmark: what was judged.
        responses: to all cases.
        rows: of all cases and scored dimensions, under one or both protocols.
    """
    robust, official = accuracy.verdicts_by_dimension(rows, benchmark.dimensions)
    judged = robust or official
    lengths = {case.case_id: tuple(map(len, case.answers)) for case in benchmark.cases}
    return {
        "benchmark": benchmark.identity(),
        "model": setup.model,
        "weights": setup.weights,
        "rounding": {k: value for k, value in setup.settings.items() if k in ROUNDING},
        "readout": setup.readout,
        "crossfit": setup.crossfit and accuracy.fold_measures(rows, **setup.crossfit),
        "dimensions": list(setup.dimensions),
        "parsing": parsing_measures(responses, setup.dimensions),
        "usage": total_usage(responses),
        "verdict_mass": verdict_mass(responses),
        "within_noise": noise_measures(setup.noise, responses),
        **leak_measures(setup.leak_check),
        "settings": {k: value for k, value in setup.settings.items() if k not in ROUNDING},
        "ceiling": {name: benchmark.source.ceiling.get(name) for name in benchmark.dimensions},
        "human_ceiling": human_ceiling(benchmark.cases, judged, benchmark.dimensions),
        "not_scored": [name for name in benchmark.dimensions if name not in judged],
        "unread": _unread(chain.from_iterable(judged.values())),
        "protocols": _protocols(robust, official, benchmark, official_label(setup)),
        "metrics": benchmark_metrics(rows, benchmark),
        "structure": structure_measures(chain.from_iterable(robust.values()), list(robust)),
        "length": {
            name: length_measures(verdicts_by_case(chosen).values(), lengths)
            for name, chosen in robust.items()
        },
        "baselines": baselines(benchmark.cases, benchmark.dimensions),
        "published": list(map(asdict, benchmark.published)),
    }


def official_label(setup: Setup) -> str:
    """Returns what the official number is: whose rules, and which prompt they were applied to.

    A prompt file has the version 0.
    """
    if not writes_text(setup.readout):
        return f"official scorer's counting, {setup.readout.replace('_', ' ')}"
    name, _, version = str(setup.settings.get("prompt", "")).rpartition(" ")
    return f"official scorer, {f'prompt file {name}' if version == '0' else 'medrm prompt'}"


def _protocols(
    robust: Mapping[str, Sequence[Verdict]],
    official: Mapping[str, Sequence[Verdict]],
    benchmark: Benchmark,
    label: str,
) -> dict[str, Any]:
    """Returns the measures under each protocol that judged, from the rows of each dimension."""
    protocols: dict[str, Any] = {}
    if official:
        measures = accuracy.official_measures(official, benchmark.dimensions)
        protocols["official"] = {"label": label, **measures}
    if robust:
        named = {name for rows in robust.values() for row in rows for name in row.groups}
        groups = {
            group: accuracy.group_measures(robust, group, benchmark.dimensions)
            for group in benchmark.groups
            if group in named
        }
        measured = {name: accuracy.robust_measures(rows) for name, rows in robust.items()}
        protocols["robust"] = {
            "dimensions": {name: measured.get(name) for name in benchmark.dimensions},
            "means": accuracy.mean_measures(robust, groups),
            "groups": groups,
        }
    return protocols


def benchmark_metrics(rows: Sequence[Verdict], benchmark: Benchmark) -> dict[str, Any]:
    """Returns `metrics`: dimension -> metric of the benchmark's authors -> numbers.

    Each is averaged over the presented orders; rows of the robust protocol count where there are
    any.
    """
    if not benchmark.metrics:
        return {}
    robust, official = accuracy.verdicts_by_dimension(rows, benchmark.dimensions)
    cases = {case.case_id: case for case in benchmark.cases}
    orders = {
        dimension: verdicts_by(chosen, attrgetter("order")).values()
        for dimension, chosen in (robust or official).items()
    }
    return {
        dimension: {
            name: _averaged([METRICS[name](order, cases, benchmark.groups) for order in presented])
            for name in benchmark.metrics
        }
        for dimension, presented in orders.items()
    }


def _averaged(orders: Sequence[Any]) -> Any:
    """Returns numbers of the same names averaged one by one; None where one of them is None."""
    if isinstance(orders[0], dict):
        return {name: _averaged([numbers[name] for numbers in orders]) for name in orders[0]}
    return None if None in orders else fmean(orders)


def parsing_measures(
    responses: Sequence[Response], dimensions: Sequence[str]
) -> dict[str, Any] | None:
    """Returns `parsing`: what became of a judge's calls; None for rewards.

    `official` counts the replies that the released scorer's rules read (first vote, forward order),
    `strict` all replies. Both are None where nothing was written, `official` also where less than
    the six dimensions were asked about at a time.

    Args:
        responses: all of an evaluation.
        dimensions: the judge's dimensions.
    """
    if not responses or writes_rewards(responses[0].readout):
        return None
    replies = [call for call in responses if writes_text(call.readout) and call.state == "ok"]
    first = [
        reply
        for reply in replies
        if reply.vote == 0 and reply.order == "forward" and is_official(reply, dimensions)
    ]
    return {
        "calls": len(responses),
        "states": _counts(response.state for response in responses),
        "finish_reasons": _counts(response.finish_reason or NONE for response in replies),
        "official": _official(first, dimensions) if first else None,
        "strict": _funnel(_parsed(replies, dimensions, "strict")) if replies else None,
    }


def total_usage(responses: Sequence[Response]) -> dict[str, int] | None:
    """Returns `usage`: the tokens of all calls whose tokens were counted, and how many these are.

    None where none was.
    """
    counted = [response.usage for response in responses if response.usage is not None]
    if not counted:
        return None
    return {
        "calls": len(counted),
        **{name: sum(usage[name] for usage in counted) for name in USAGE},
    }


def verdict_mass(responses: Sequence[Response]) -> float | None:
    """Returns the mean probability of naming one of the two answers; None where none is stated.

    Where it is small, the verdicts compare two things the model would hardly ever say.
    """
    stated = [response.probabilities.values() for response in responses if response.probabilities]
    return mean(mass for of_dimension in stated for _, _, mass in of_dimension)


def kind_of(reason: str | None) -> str:
    """Returns why something is unread, without the names and words that follow a colon."""
    return (reason or UNREAD).partition(":")[0]


def _official(replies: Sequence[Response], dimensions: Sequence[str]) -> dict[str, Any]:
    """The funnel, and the dropped replies of which the strict parser reads some dimension."""
    parsed_replies = _parsed(replies, dimensions, "official")
    dropped = (reply for reply, parsed in parsed_replies if parsed.stage is None)
    strict = _parsed(dropped, dimensions, "strict")
    readable = sum(any(parsed.outcomes.values()) for _, parsed in strict)
    return {**_funnel(parsed_replies), "voided_but_readable": readable}


def _parsed(
    replies: Iterable[Response], dimensions: Sequence[str], parser: Parser
) -> list[tuple[Response, Parsed]]:
    parsed_replies = []
    for reply in replies:
        names = [reply.dimension] if reply.dimension else dimensions
        parsed_replies.append((reply, parse_verdict(reply.text or "", parser, names)))
    return parsed_replies


def _funnel(parsed_replies: Sequence[tuple[Response, Parsed]]) -> dict[str, Any]:
    """Counts of replies: by the rule that read them, and by why not all of one was read."""
    return {
        "stages": _counts(parsed.stage or NONE for _, parsed in parsed_replies),
        "suspect": sum(parsed.suspect for _, parsed in parsed_replies),
        "unread": _counts(
            kind_of(unread_reason(reply, parsed.reason))
            for reply, parsed in parsed_replies
            if None in parsed.outcomes.values()
        ),
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first, then by name."""
    return dict(Counter(sorted(names)).most_common())


def official_csv(report: Report) -> str:
    """Returns the released scorer's table: `modality`, `model`, `<dimension>_acc`, 4 decimals."""
    official = report["protocols"]["official"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["modality", "model", *(f"{name}_acc" for name in official["micro"])])
    for organ, cells in official["organs"].items():
        rates = ("" if rate is None else f"{rate:.4f}" for rate in cells.values())
        table.writerow([organ, report["model"], *rates])
    return text.getvalue()


def write_report(folder: Path, report: Report) -> None:
    """Writes `official.csv` where the official protocol was run, and then `report.json`."""
    if "official" in report["protocols"]:
        write_atomically(folder / "official.csv", [official_csv(report).encode()])
    write_json(folder / "report.json", report)


def read_report(folder: Path) -> Report:
    """Returns the `report.json` of an evaluation folder.

    Raises:
        DataError: there is none, it is not JSON, or another version wrote it.
    """
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(
            f"{str(folder)!r} holds no report.json. Give a folder that `medrm evaluate` wrote."
        )
    contents = read_json(path)
    if "structure" not in contents:
        raise DataError(
            f"{path} was written by another version of medrm: it lacks 'structure'. Evaluate the "
            "model again."
        )
    return contents


def robust_of(report: Report) -> Mapping[str, Any]:
    """Returns a report's robust measures by dimension; empty where that protocol was not run."""
    measures: Mapping[str, Any] = report["protocols"].get("robust", {}).get("dimensions", {})
    return measures


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes one JSON object, whole or not at all."""
    write_atomically(path, [json_bytes(contents)])


def json_bytes(contents: Mapping[str, Any]) -> bytes:
    """Returns a JSON object as it is written into files."""
    text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        DataError: it is not one.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}. Run again what wrote it.") from error
    if not isinstance(contents, dict):
        raise DataError(f"{path} holds no JSON object. Run again what wrote it.")
    return contents


def _unread(rows: Iterable[Verdict]) -> dict[str, int]:
    """Cases with an unread presentation, counted by kind of reason, of one protocol."""
    unread = {(kind_of(row.reason), row.case_id) for row in rows if row.outcome == UNREAD}
    return dict(Counter(reason for reason, _ in sorted(unread)))


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder; of a single evaluation there is `after` alone.

    Attributes:
        before: report of the model before training.
        after: report of the trained model.
        comparison: of both.
        metrics: lines of `metrics.jsonl`.
    """

    before: Report | None
    after: Report
    comparison: dict[str, Any] | None = None
    metrics: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, Report]:
        """The reports by name: `before` and `after`, or `model` alone."""
        before, after = self.before, self.after
        return {"model": after} if before is None else {"before": before, "after": after}

    @property
    def primary(self) -> str:
        """The dimension of the headline: the comparison's, else overall, else the first."""
        if self.comparison is not None:
            return str(self.comparison["primary"]["dimension"])
        names = list(self.after["ceiling"])
        return "overall" if "overall" in names else names[0]

    def evaluation_folders(self, folder: Path) -> dict[str, Path]:
        """Returns the evaluation folder of each side in the folder that was read."""
        if self.before is None:
            return {"model": folder}
        return {side: folder / "evaluation" / side for side in self.sides}


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder, or a single evaluation folder.

    Raises:
        DataError: a report is missing, or a file is not JSON.
    """
    single = (folder / "report.json").is_file()  # where a comparison may lie beside it
    if single or not (folder / "comparison.json").is_file():
        return RunFiles(None, read_report(folder))
    metrics = folder / "metrics.jsonl"
    try:
        stored = metrics.read_bytes() if metrics.is_file() else b""
        lines = [json.loads(line) for line in stored.splitlines()]
    except ValueError as error:
        raise DataError(f"{metrics} is not what a run writes: {error}. Remove it.") from error
    before, after = (read_report(folder / "evaluation" / side) for side in ("before", "after"))
    return RunFiles(before, after, read_json(folder / "comparison.json"), lines)
