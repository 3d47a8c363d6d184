"""`medrm throughput`: measures, shows and writes throughput.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from medrm.errors import ConfigError
from medrm.pipeline.manifest import git_commit, versions
from medrm.throughput.flops import matmul_rate
from medrm.throughput.measure import Measurement, Row
from medrm.throughput.memory import keep_freed_memory
from medrm.throughput.options import ThroughputOptions
from medrm.throughput.subject import Subject, make_subject
from medrm.throughput.table import print_rows

_QUICK_ROUNDS = 2


def run_throughput(options: ThroughputOptions) -> dict[str, Any]:
    """Measures what the options ask for, prints the table and returns throughput.json.

    Raises:
        ConfigError: the options ask for what cannot be had; nothing is measured then.
        VariantsDifferError: sharing changes the rewards.
    """
    output = Path(options.output) if options.output else None
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise ConfigError(f"--output {output}: give the path of a file in an existing folder")
    keep_freed_memory()
    subject = make_subject(options)
    if options.gradient_checkpointing:
        subject.model.gradient_checkpointing_enable({"use_reentrant": False})
    report = {**_facts(subject, options), "rows": _measure(subject, options)}
    if output is not None:
        partial = output.with_name(output.name + ".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(output)
    print_rows(report)
    return report


def _measure(subject: Subject, options: ThroughputOptions) -> list[Row]:
    rounds = min(options.rounds, _QUICK_ROUNDS) if options.quick else options.rounds
    rows: list[Row] = []
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        for task, answers in options.plan:
            name = f"{task}, {answers} answers"
            shown = bar.add_task(name, total=3 + rounds)
            measurement = Measurement(
                subject,
                task,
                options.cases,
                answers,
                options.image_feature_memory_mb * 2**20,
            )
            for doing in measurement.prepare():
                bar.update(shown, advance=1, description=f"{name}: {doing}, warm-up")
            rate = _rate(subject, measurement.batches.row_tokens)
            for number in range(rounds):
                bar.update(shown, advance=1, description=f"{name}: round {number + 1}")
                measurement.round()
            own = measurement.rows(max(rate, _rate(subject, measurement.batches.row_tokens)))
            ratios = [f"{row['variant']} {row['ratio_to_separate']['median']:.2f}x" for row in own]
            console.print(f"{name}: {', '.join(ratios[1:])}", highlight=False)
            rows += own
            bar.remove_task(shown)
    return rows


def _rate(subject: Subject, tokens: int) -> float:
    text = subject.base.config.get_text_config()
    widths = (int(text.hidden_size), int(text.intermediate_size))
    return matmul_rate(tokens, widths, subject.dtype, subject.device)


def _facts(subject: Subject, options: ThroughputOptions) -> dict[str, Any]:
    """Returns what was measured on what."""
    fork = subject.batches(1, 2).fork
    device = subject.device
    return {
        "shape": {
            "name": subject.name,
            "family": subject.family.name,
            "decoder_parameters": subject.decoder_parameters(),
            "prefix_tokens": fork.prefixes[0],
            "answer_tokens": fork.branches[0][0],
            "gradient_checkpointing": options.gradient_checkpointing,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(subject.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
