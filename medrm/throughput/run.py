"""`medrm throughput`: measures, shows and writes throughput.json."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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
from medrm.evaluation.report import write_json
from medrm.pipeline.manifest import git_commit, versions
from medrm.throughput.flops import matmul_rate
from medrm.throughput.measure import Measurement, Row
from medrm.throughput.memory import keep_freed_memory
from medrm.throughput.options import ThroughputOptions
from medrm.throughput.subject import Subject, make_subject
from medrm.throughput.table import print_rows


def run_throughput(options: ThroughputOptions) -> dict[str, Any]:
    """Measures what the options ask for, prints the table and returns throughput.json.

    The file is written anew with each finished task and number of answers. What stops the command
    earlier, an interrupt too, leaves what was measured until then, `complete` being false. So it is
    where one does not fit on a GPU; the others are measured.

    Raises:
        ConfigError: the options ask for what cannot be had; nothing is measured then.
        VariantsDifferError: sharing changes the rewards.
    """
    output = None if options.output is None else Path(options.output)
    if output is not None:
        _check_writable(output)
    keep_freed_memory()
    subject = make_subject(options)
    if options.gradient_checkpointing:
        subject.model.gradient_checkpointing_enable({"use_reentrant": False})
    rows: list[Row] = []
    report = {**_facts(subject, options), "complete": False, "rows": rows}
    try:
        for left, own in _measured(subject, options):
            rows += own
            report["complete"] = not left
            if output is not None:
                write_json(output, report)
    finally:
        if rows:
            print_rows(report)
    return report


def _check_writable(output: Path) -> None:
    """Tries to write beside a file, so that a path that is wrong costs no measurement."""
    try:
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside = output.with_name(output.name + ".partial")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise ConfigError(
            f"--output {output} cannot be written ({error.strerror}). Give the path of a file in "
            "an existing folder."
        ) from error


def _measured(subject: Subject, options: ThroughputOptions) -> Iterator[tuple[int, list[Row]]]:
    """Yields the rows of each task and number of answers, behind how many of these lack."""
    console = Console(stderr=True)
    lacking = len(options.plan)
    plan = ", ".join(f"{task} with {answers} answers" for task, answers in options.plan)
    console.print(f"Measuring, {options.rounds} rounds each: {plan} ...", highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=1,  # the bar's thread takes time from what is measured
    ) as bar:
        for task, answers in options.plan:
            name = f"{task}, {answers} answers"
            try:
                rows = _rows(subject, options, task, answers, bar)
            except torch.OutOfMemoryError:
                subject.model.zero_grad(set_to_none=True)
                console.print(
                    f"{name}: does not fit on the GPU; give fewer cases or gradient_checkpointing",
                    highlight=False,
                )
                continue
            lacking -= 1
            ratios = [f"{row['variant']} {row['ratio_to_separate']['median']:.2f}x" for row in rows]
            console.print(f"{name}: {', '.join(ratios[1:])}", highlight=False)
            yield lacking, rows


def _rows(
    subject: Subject, options: ThroughputOptions, task: str, answers: int, bar: Progress
) -> list[Row]:
    name = f"{task}, {answers} answers"
    measurement = Measurement(subject, task, options.cases, answers)
    shown = bar.add_task(name, total=len(measurement.variants) * (1 + options.rounds))
    try:
        for variant in measurement.prepare():
            bar.update(shown, advance=1, description=f"{name}: warm-up, {variant}")
        rate = _rate(subject, measurement.batches.row_tokens)
        for number in range(1, options.rounds + 1):
            for variant in measurement.round():
                bar.update(shown, advance=1, description=f"{name}: round {number}, {variant}")
        return measurement.rows(max(rate, _rate(subject, measurement.batches.row_tokens)))
    finally:
        bar.remove_task(shown)


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
            "prefix_tokens": fork.prefix_lengths[0],
            "answer_tokens": fork.branch_lengths[0][0],
            "gradient_checkpointing": options.gradient_checkpointing,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(subject.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": git_commit(),
        "rounds": options.rounds,
    }
