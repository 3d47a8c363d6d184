"""`report.json` and `official.csv` of one evaluation folder; imports no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.measures.accuracy import (
    baselines,
    group_measures,
    mean_measures,
    official_measures,
    robust_measures,
)
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.evaluation.measures.length import length_measures
from medrm.evaluation.measures.parse_funnel import kind_of, parsing_measures, verdict_mass
from medrm.evaluation.measures.structure import structure_measures
from medrm.evaluation.records.verdicts import verdicts_by_case
from medrm.files import write_atomically
from medrm.readouts import writes_text
from medrm.schema import UNREAD, Response, Verdict

Report = dict[str, Any]


def build_report(
    rows: Sequence[Verdict],
    responses: Sequence[Response],
    benchmark: Benchmark,
    model: str,
    readout: str,
    dimensions: Sequence[str],
    settings: Mapping[str, Any],
) -> Report:
    """Returns `report.json` (each of its keys is explained in evaluation/README.md).

    Args:
        rows: of all cases and scored dimensions, under one or both protocols.
        responses: to all cases.
        benchmark: what was judged.
        model: the name under which the model is reported.
        readout: how a verdict was read from it.
        dimensions: that it scores or is asked about.
        settings: what besides the weights could change a number, such as dtype or image limits.

    `weights` (their identity), `rounding` and `crossfit` are left to who knows them.
    """
    scored = {row.dimension for row in rows}
    judged = [name for name in benchmark.dimensions if name in scored]
    robust = [row for row in rows if row.protocol == "robust"]
    return {
        "benchmark": benchmark.identity(),
        "model": model,
        "weights": None,
        "rounding": {},
        "readout": readout,
        "crossfit": None,
        "dimensions": list(dimensions),
        "parsing": parsing_measures(responses, dimensions),
        "verdict_mass": verdict_mass(responses),
        "settings": dict(settings),
        "ceiling": {name: benchmark.source.ceiling.get(name) for name in benchmark.dimensions},
        "not_scored": [name for name in benchmark.dimensions if name not in scored],
        "unread": _unread(rows),
        "protocols": _protocols(rows, benchmark, official_label(readout, settings)),
        "metrics": benchmark_metrics(rows, benchmark),
        "structure": structure_measures(robust, judged) if robust else None,
        "length": _length(robust, benchmark),
        "baselines": baselines(benchmark.cases, benchmark.dimensions),
        "published": [
            {"model": number.model, "accuracy": number.accuracy, "source": number.source}
            for number in benchmark.published
        ],
    }


def official_label(readout: str, settings: Mapping[str, Any]) -> str:
    """Returns what the official number is: whose rules, and which prompt they were applied to.

    A prompt file has the version 0.
    """
    if not writes_text(readout):
        return f"official scorer's counting, {readout.replace('_', ' ')}"
    name, _, version = str(settings.get("prompt", "")).rpartition(" ")
    return f"official scorer, {f'prompt file {name}' if version == '0' else 'medrm prompt'}"


def _protocols(rows: Sequence[Verdict], benchmark: Benchmark, label: str) -> dict[str, Any]:
    """Returns the measures under each protocol that judged."""
    protocols: dict[str, Any] = {}
    official = [row for row in rows if row.protocol == "official"]
    if official:
        protocols["official"] = {
            "label": label,
            **official_measures(official, benchmark.dimensions),
        }
    robust = [row for row in rows if row.protocol == "robust"]
    if robust:
        of_dimension = {
            name: [row for row in robust if row.dimension == name] for name in benchmark.dimensions
        }
        groups = {
            group: group_measures(robust, group, benchmark.dimensions)
            for group in benchmark.groups
            if any(group in row.groups for row in robust)
        }
        judged = {name: chosen for name, chosen in of_dimension.items() if chosen}
        protocols["robust"] = {
            "dimensions": {
                name: robust_measures(chosen) if chosen else None
                for name, chosen in of_dimension.items()
            },
            "means": mean_measures(judged, groups),
            "groups": groups,
        }
    return protocols


def benchmark_metrics(rows: Sequence[Verdict], benchmark: Benchmark) -> dict[str, Any]:
    """Returns `metrics`: dimension -> metric of the benchmark's authors -> numbers.

    Each is averaged over the presented orders; rows of the robust protocol count where there are
    any.
    """
    robust = [row for row in rows if row.protocol == "robust"] or rows
    cases = {case.case_id: case for case in benchmark.cases} if benchmark.metrics else {}
    numbers: dict[str, Any] = {}
    for dimension in benchmark.dimensions if benchmark.metrics else ():
        judged = [row for row in robust if row.dimension == dimension]
        orders = [[row for row in judged if row.order == o] for o in ("forward", "reversed")]
        presented = [order for order in orders if order]
        if presented:
            numbers[dimension] = {
                name: _averaged([METRICS[name](o, cases, benchmark.groups) for o in presented])
                for name in benchmark.metrics
            }
    return numbers


def _averaged(orders: Sequence[Any]) -> Any:
    """Returns numbers of the same names averaged one by one; None where one of them is None."""
    if isinstance(orders[0], dict):
        return {name: _averaged([numbers[name] for numbers in orders]) for name in orders[0]}
    return None if None in orders else fmean(orders)


def _length(robust: Sequence[Verdict], benchmark: Benchmark) -> dict[str, Any]:
    """Returns `length`: dimension to what the answers' lengths have to do with the verdicts."""
    lengths = {case.case_id: tuple(map(len, case.answers)) for case in benchmark.cases}
    of_dimension: dict[str, list[Verdict]] = {name: [] for name in benchmark.dimensions}
    for row in robust:
        of_dimension[row.dimension].append(row)
    return {
        name: length_measures([presented for _, presented in verdicts_by_case(rows)], lengths)
        for name, rows in of_dimension.items()
        if rows
    }


def official_csv(report: Report) -> str:
    """Returns the released scorer's table: `modality`, `model`, `<dimension>_acc`, 4 decimals."""
    official = report["protocols"]["official"]
    dimensions = list(official["micro"])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["modality", "model", *(f"{name}_acc" for name in dimensions)])
    for organ, cells in official["organs"].items():
        values = [cells[name] for name in dimensions]
        table.writerow(
            [organ, report["model"], *("" if cell is None else f"{cell:.4f}" for cell in values)]
        )
    return text.getvalue()


def write_report(folder: Path, report: Report) -> None:
    """Writes `report.json` and, where the official protocol was run, `official.csv`."""
    write_json(folder / "report.json", report)
    if "official" in report["protocols"]:
        write_atomically(folder / "official.csv", [official_csv(report).encode()])


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
    text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, [text.encode(), b"\n"])


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


def _unread(rows: Sequence[Verdict]) -> dict[str, int]:
    """Cases with an unread presentation, counted by kind of reason; robust where that was run."""
    protocol = "robust" if any(row.protocol == "robust" for row in rows) else "official"
    unread = {
        (kind_of(row.reason), row.case_id)
        for row in rows
        if row.outcome == UNREAD and row.protocol == protocol
    }
    reasons = sorted(reason for reason, _ in unread)
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
