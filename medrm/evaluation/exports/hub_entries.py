"""A report's numbers in the two forms the hub reads: model-index and `.eval_results`."""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from medrm.assets import asset, asset_names
from medrm.evaluation.report import Report, robust_of

_TASK = "image-text-to-text"


def benchmark_results(report: Report) -> list[EvalResult]:
    """Returns a report's accuracies for the `model-index` of a model card.

    The robust ones carry their interval; the official ones are means over cases.
    """
    dataset = report["benchmark"]
    official = report["protocols"].get("official", {}).get("micro", {})
    metrics: list[tuple[str, float | None, dict[str, Any] | None]] = [
        (f"robust accuracy ({name})", of["accuracy"], {"n": of["n"], "ci95": of["ci95"]})
        for name, of in _scored(report).items()
    ]
    metrics += [(f"official accuracy ({name})", value, None) for name, value in official.items()]
    return [
        EvalResult(
            task_type=_TASK,
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


def eval_results(report: Report) -> str:
    """Returns the entries for a model repository's `.eval_results/<benchmark>.yaml`.

    The hub shows them for data sets that are registered as benchmarks; their task's id is the
    dimension.
    """
    benchmark = report["benchmark"]
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id(benchmark["name"]),
            task_id=name,
            value=measures["accuracy"],
            dataset_revision=benchmark["revision"],
            notes=_notes(report, measures),
        )
        for name, measures in _scored(report).items()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _notes(report: Report, measures: dict[str, Any]) -> str:
    """How the number was taken."""
    orders = "one order" if measures["consistency"] is None else "both orders"
    interval = ""
    if measures["ci95"] is not None:
        low, high = measures["ci95"]
        interval = f", 95 % interval {low:.4f} to {high:.4f}"
    return (
        f"accuracy, robust protocol, {orders}, unread is wrong, readout {report['readout']}, "
        f"{measures['n']} cases in {measures['clusters']} clusters{interval}"
    )


def dataset_id(benchmark: str) -> str:
    """Returns the hub's id of a shipped benchmark's data; the benchmark's own name for others."""
    if benchmark not in asset_names("data", "*"):
        return benchmark
    described = asset(f"data/{benchmark}") / "dataset.yaml"
    if not described.is_file():
        return benchmark
    source = yaml.safe_load(described.read_text(encoding="utf-8")).get("source")
    return str(source or benchmark)
