"""Files of a run or of one evaluation for other programs and for papers; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from medrm.data.case_set import named_description
from medrm.data.parquet_files import parquet_writer
from medrm.data.sources import description_names
from medrm.evaluation.compare import Comparison
from medrm.evaluation.figures import write_plots
from medrm.evaluation.measures.accuracy import case_scores, member_of, verdicts_by_dimension
from medrm.evaluation.measures.biases import consistent, named_first
from medrm.evaluation.records.jsonl import read_verdicts, verdicts_by_case
from medrm.evaluation.report import Report, RunFiles, read_run, robust_of
from medrm.evaluation.shared_run import SharedNames
from medrm.evaluation.tables.comparison_tables import comparison_table, group_table
from medrm.evaluation.tables.report_tables import accuracy_table, official_table
from medrm.evaluation.tables.table import Table, to_csv, write_tables
from medrm.schema import UNREAD, Expected, Verdict

FOLDER = "exports"

VERDICTS = "verdicts.parquet"

_LABELS = ("side", "protocol", "measure", "dimension", "group", "member")
_COUNTS = ("value", "numerator", "denominator")
_TESTS = ("p", "p_adjusted", "clusters")
"""Columns of summary.csv, empty where a number has no such part; the interval stands before these.

`value` is numerator / denominator, as it stands in report.json or comparison.json.
"""

Rate = dict[str, Any]
"""A row of summary.csv by column, its interval as `ci95`."""


def write_exports(folder: Path, texts: bool = True) -> Path:
    """Writes all exports that a folder has numbers for and returns `<folder>/exports`.

    Every number is one of report.json, comparison.json and verdicts.jsonl.

    Args:
        folder: of a run, or of a single evaluation.
        texts: whether single cases and names of data are in them, as in `report_page.write_page`.

    Raises:
        DataError: a file is missing or is none of ours.
    """
    run = read_run(folder)
    target = folder / FOLDER
    verdicts = {
        "after" if side == "model" else side: read_verdicts(where / "verdicts.jsonl")
        for side, where in run.evaluation_folders(folder).items()
    }
    if not texts:
        names = SharedNames(run)
        run = names.run(run)
        verdicts = {side: list(map(names.verdict, rows)) for side, rows in verdicts.items()}
    columns = (*_LABELS, *_COUNTS, "ci95_low", "ci95_high", *_TESTS)
    files = {
        "summary.csv": to_csv(columns, map(_summary_row, _rates(run, verdicts))),
        "model_index.yaml": model_index(run.after),
        "eval_results.yaml": eval_results(run.after),
    }
    tables = {
        "dimensions": _dimension_table(run),
        "organs": _organ_table(run),
        "official": official_table(run.sides),
    }
    write_tables(target, tables, files)
    if texts:
        _write_verdicts(target / VERDICTS, verdicts)
    else:
        (target / VERDICTS).unlink(missing_ok=True)
    write_plots(run, target / "plots")
    return target


def _summary_row(rate: Rate) -> list[Any]:
    interval = rate.get("ci95") or (None, None)
    return [*map(rate.get, (*_LABELS, *_COUNTS)), *interval, *map(rate.get, _TESTS)]


def _rates(run: RunFiles, verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[Rate]:
    """Yields the rates of each side, then those of their differences."""
    for (side, rows), report in zip(verdicts.items(), run.sides.values(), strict=True):
        yield from _evaluation_rates(side, report, rows)
    if run.comparison is not None:
        yield from _comparison_rates(run.comparison)


def _evaluation_rates(side: str, report: Report, rows: Sequence[Verdict]) -> Iterator[Rate]:
    """Yields the rates of one evaluation under each protocol, then how its replies were read."""
    protocols = report["protocols"]
    robust, official = verdicts_by_dimension(rows, report["ceiling"])
    for protocol, judged in (("robust", robust), ("official", official)):
        if protocol in protocols:
            for rate in _protocol_rates(protocols[protocol], judged):
                yield {"side": side, "protocol": protocol, **rate}
    for parser in ("strict", "official"):
        stages = ((report["parsing"] or {}).get(parser) or {}).get("stages", {})
        total = sum(stages.values())
        for stage, count in stages.items():
            share = _rate(f"replies read by rule: {stage}", count / total, count, total)
            yield {"side": side, "protocol": f"{parser} parser", **share}


def _protocol_rates(
    measured: Mapping[str, Any], judged: Mapping[str, Sequence[Verdict]]
) -> Iterator[Rate]:
    """Yields the rates of each dimension and of each member of a group.

    The official protocol has means over cases and of organs, and nothing beside the accuracy.
    """
    robust = "dimensions" in measured
    of_dimension = measured["dimensions" if robust else "micro"]
    for name, verdicts in judged.items():
        yield {"dimension": name, **_accuracy(of_dimension[name], verdicts)}
        for share in _shares(of_dimension[name], verdicts) if robust else ():
            yield {"dimension": name, **share}
    groups = measured["groups"] if robust else {"organ": measured["organs"]}
    for group, members in groups.items():
        for member, cells in members.items():
            for name, verdicts in judged.items():
                of_member = [row for row in verdicts if member_of(row, group) == member]
                labels = {"dimension": name, "group": group, "member": member}
                yield {**labels, **_accuracy(cells[name], of_member)}


def _accuracy(measures: Mapping[str, Any] | float | None, rows: Sequence[Verdict]) -> Rate:
    """The accuracy over the labelled cases of some rows, with their sum and number."""
    if not isinstance(measures, Mapping):  # the official protocol has no interval
        measures = {"accuracy": measures}
    scores = case_scores(rows)
    rate = _rate("accuracy", measures["accuracy"], sum(scores.values()), len(scores))
    return rate | {key: measures.get(key) for key in ("ci95", "clusters")}


def _shares(measures: Mapping[str, Any], rows: Sequence[Verdict]) -> Iterator[Rate]:
    """The shares of a dimension under the robust protocol, those that it has."""
    cases = list(verdicts_by_case(rows).values())
    read = sum(row.outcome != UNREAD for row in rows)
    counts: dict[str, tuple[float, float]] = {"coverage": (read, len(rows))}
    for measure, count in (("consistency", consistent), ("first_rate", named_first)):
        sums = count(cases)
        counts[measure] = (float(sums.numerator.sum()), float(sums.denominator.sum()))
    for measure in ("both_correct", "net_correct"):
        counts[measure] = (round((measures[measure] or 0) * measures["n"]), measures["n"])
    for measure, (numerator, denominator) in counts.items():
        if measures[measure] is not None:
            yield _rate(measure, measures[measure], numerator, denominator)


def _comparison_rates(comparison: Comparison) -> Iterator[Rate]:
    """Yields the differences of a comparison, and the shares of cases behind them."""
    side = {"side": "difference"}
    for name, difference in comparison["dimensions"].items():
        if difference["n"]:
            tests = {"p": difference["p_unadjusted"], "p_adjusted": difference["p"]}
            yield _difference(difference) | side | tests
            for outcome in ("both_right", "fixed", "broken", "both_wrong"):
                count, n = difference[outcome], difference["n"]
                share = _rate(outcome, count / n, count, n)
                yield {**side, "protocol": "robust", "dimension": name, **share}
    for group, cells in comparison["cells"].items():
        for cell in cells:
            if cell["delta"] is not None:
                yield _difference(cell) | side | {"group": group, "p_adjusted": cell["p_bh"]}
    for name, control in comparison["controls"].items():
        if control["delta"] is not None:
            yield _difference(control) | {"side": f"after minus {name}"}


def _difference(difference: Mapping[str, Any]) -> Rate:
    """A paired difference in accuracy with its interval and its p value."""
    delta, n = difference["delta"], difference["n"]
    keys = ("dimension", "member", "ci95", "p", "clusters")
    rate = {"protocol": "robust", **_rate("accuracy", delta, delta * n, n)}
    return rate | {key: difference.get(key) for key in keys}


def _rate(measure: str, value: float | None, numerator: float, denominator: float) -> Rate:
    """The columns of a rate with its counts."""
    counts = {"numerator": numerator, "denominator": denominator}
    return {"measure": measure, "value": value, **counts}


_COMPARED = (
    *("dimension", "before", "after", "difference (95 % CI)", "p"),
    *("fixed / broken", "n", "ceiling"),
)
_ALONE = ("dimension", "accuracy (95 % CI)", "official", "read", "same verdict", "n")


def _dimension_table(run: RunFiles) -> Table:
    """Every dimension's accuracy in percent: both sides, or that of one evaluation."""
    benchmark = run.after["benchmark"]
    caption = (
        f"Accuracy in percent on {benchmark['name']}: {benchmark['cases']} cases in "
        f"{benchmark['clusters']} clusters."
    )
    if run.comparison is None:
        headings = {"same verdict": "same in both orders"}
        return accuracy_table(run.after).pick(_ALONE, f"{run.after['model']}. {caption}", headings)
    table = comparison_table(run.comparison, official=list(run.after["ceiling"]))
    return table.pick(_COMPARED, caption, {"p": "p (adjusted)"})


def _organ_table(run: RunFiles) -> Table | None:
    """Each organ's accuracy on the primary dimension; None without organs."""
    table = group_table(run.after, run.comparison, "organ", run.primary)
    if table is None:
        return None
    left_out = ("drawn", "clusters") if run.comparison is None else ("drawn",)
    headings = {"member": "organ", "p (BH)": "p (BH over all cells)"}
    return table.without(*left_out, headings=headings)


_NUMBERS = pa.list_(pa.float64())

_VERDICT_TYPES = {
    **dict.fromkeys(("side", "case_id", "dimension", "protocol", "order"), pa.string()),
    **dict.fromkeys(("outcome", "reason", "label"), pa.string()),
    "label_shares": _NUMBERS,
    **dict.fromkeys(("correct", "probability_a", "score_a", "score_b"), pa.float64()),
    "scores": _NUMBERS,
    "cluster": pa.string(),
}
"""Columns of verdicts.parquet."""


def _write_verdicts(path: Path, sides: Mapping[str, Sequence[Verdict]]) -> None:
    """Writes verdicts.parquet: one row for each verdict.

    `side` says of which evaluation; each group has a column `group_<name>`. Outcomes and labels are
    text, in JSON where a label names several answers.

    Args:
        path: to write.
        sides: such as before and after, to their verdicts.
    """
    rows = [
        {
            **vars(row),
            "side": side,
            "outcome": _answer(row.outcome),
            "label": _answer(row.label),
            "correct": row.correct,
            **{f"group_{group}": member for group, member in row.groups.items()},
        }
        for side, of_side in sides.items()
        for row in of_side
    ]
    groups = sorted({name for row in rows for name in row if name.startswith("group_")})
    schema = pa.schema([*_VERDICT_TYPES.items(), *((_valid(name), pa.string()) for name in groups)])
    texts = [{_valid(name): _valid(value) for name, value in row.items()} for row in rows]
    with parquet_writer(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist(texts, schema))


def _answer(answer: Expected | None) -> str | None:
    """An outcome or a label as text."""
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)


def _valid(value: Any) -> Any:
    """Text as UTF-8 can hold it: half a surrogate pair becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def benchmark_results(report: Report) -> list[EvalResult]:
    """Returns a report's accuracies for the `model-index` of a model card.

    The robust ones carry their interval; the official ones are means over cases. There are none on
    a set that has a benchmark's layout alone, for it is no set of the hub.
    """
    dataset = report["benchmark"]
    if "layout" in dataset:
        return []
    official = report["protocols"].get("official", {}).get("micro", {})
    metrics: list[tuple[str, float | None, dict[str, Any] | None]] = [
        (f"robust accuracy ({name})", of["accuracy"], {"n": of["n"], "ci95": of["ci95"]})
        for name, of in _scored(report).items()
    ]
    metrics += [(f"official accuracy ({name})", value, None) for name, value in official.items()]
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=dataset_id(dataset["name"]),
            dataset_name=dataset["name"],
            dataset_revision=dataset["revision"],
            metric_type="accuracy",
            metric_name=name,
            metric_value=value,
            metric_args=details,
            verified=False,
        )
        for name, value, details in metrics
        if value is not None
    ]


def _scored(report: Report) -> dict[str, Any]:
    """The robust measures of the dimensions that have an accuracy."""
    robust = robust_of(report).items()
    return {name: of for name, of in robust if of is not None and of["accuracy"] is not None}


def model_index(report: Report) -> str:
    """Returns the `model-index` block of a model card in YAML; empty where nothing was scored."""
    results = benchmark_results(report)
    if not results:
        return ""
    return ModelCardData(model_name=report["model"], eval_results=results).to_yaml() + "\n"


def eval_results(report: Report, source_url: str | None = None) -> str:
    """Returns the entries for a model repository's `.eval_results/<benchmark>.yaml`, in percent.

    The hub shows them for data sets that are registered as benchmarks; their task's id is the
    dimension. Empty for a set that has a benchmark's layout alone.

    Args:
        report: of the evaluation.
        source_url: where the numbers are explained.
    """
    benchmark = report["benchmark"]
    if "layout" in benchmark:
        return ""
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id(benchmark["name"]),
            task_id=name,
            value=round(100 * measures["accuracy"], 4),
            dataset_revision=benchmark["revision"],
            source_url=source_url,
            source_name="medrm report" if source_url else None,
            notes=_notes(report, measures),
        )
        for name, measures in _scored(report).items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _notes(report: Report, measures: dict[str, Any]) -> str:
    """How the number was taken."""
    orders = "one order" if measures["consistency"] is None else "both orders"
    low, high = measures["ci95"] or (None, None)
    interval = "" if low is None else f", 95 % interval {low:.4f} to {high:.4f}"
    return (
        f"accuracy, robust protocol, {orders}, unread is wrong, readout {report['readout']}, "
        f"{measures['n']} cases in {measures['clusters']} clusters{interval}"
    )


def dataset_id(benchmark: str) -> str:
    """Returns the hub's id of a shipped benchmark's data; the benchmark's own name for others."""
    is_shipped = benchmark in description_names()
    return (named_description(benchmark).source if is_shipped else None) or benchmark
