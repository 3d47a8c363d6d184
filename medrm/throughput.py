"""`medrm throughput`: how fast a model trains and scores with shared prefixes, and without.

`throughput.json` holds what was measured on what, whether it is complete (the file is written anew
with each finished task and number of answers, so that an interrupt keeps the others), and a row for
each task, number of answers (K) and variant:

- separate: a padded row for each answer, with an image of its own; the tower runs for each.
- shared_prefix: what the answers of a case share stands once.

Both use sdpa and no LM head. Training is LoRA on the decoder with its loss, backward and optimiser
step (at a learning rate of 0, so that every step computes the same), the vision tower frozen;
batches are made, and moved to the device, before the clock runs.

- cases_per_s, unique_tokens_per_s: of the median round. Unique tokens are those of the shared form.
- ratio_to_separate: the time of separate rows divided by that of the variant, in each round.
- ideal_ratio: that ratio if a token cost the same wherever it stands (as in separate rows), with
  the vision tower as it is computed.
- flops, share_of_bound: operations of one step as counted, and their share of what the device could
  do in the row's time at its best measured rate of matrix products.
- peak_memory_bytes: on a GPU the most bytes of tensors at any moment of a step, the model included.
  On a CPU by how much the resident set of a child process grew at most while it made the model and
  the batches of both variants and ran one step; its malloc gives freed tensors back at once.
- padded_share: of the positions in the batch. All answers are equally long, so that what sharing
  gains is not mixed with what the absence of padding gains.

On a CPU a ratio may exceed the ideal one: glibc gives large blocks back, and the kernel clears them
anew at each allocation, which costs most where tensors are largest. With MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=2147483647 in the environment it keeps them, as GPU allocators do.

`--quick` measures a quarter of the tokens, training with the fewest answers and scoring with the
most; the report's shape says so, and its numbers are for a first look.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import BatchFeature

from medrm.errors import ConfigError
from medrm.evaluation.report import json_bytes
from medrm.evaluation.tables.table import Table, plain, table_of, to_markdown, to_terminal
from medrm.files import is_stream, output_problem, write_output
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.pipeline.requests import ThroughputOptions
from medrm.pipeline.stop_signals import end_with_parent
from medrm.progress_bar import progress_bar
from medrm.throughput_model import Subject, count_flops, device_rate, facts, make_subject

SEPARATE, SHARED = "separate", "shared_prefix"

_ROUNDINGS = {torch.float32: 1000, torch.bfloat16: 16}
"""By how many roundings a reward may differ between variants, relative to the largest (or 1)."""

_WORDS = (0, 1, 2)
"""The columns of the table that are no numbers."""

Row = dict[str, Any]


class VariantsDifferError(RuntimeError):
    """The variants give different rewards, so that their times mean nothing."""


@dataclass
class Variant:
    """One way to compute the same rewards.

    Attributes:
        name: as reported.
        batch: what its step reads.
        tokens: in the batch, padding left out.
        flops: of a step.
        tower_flops: those of them in the vision tower.
        peak_bytes: `peak_memory_bytes` of the report.
        seconds: of each round.
    """

    name: str
    batch: BatchFeature
    tokens: int
    flops: int = 0
    tower_flops: int = 0
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)


class Measurement:
    """One task at one number of answers.

    Args:
        subject: what runs.
        task: "train" or "score".
        answers: K.
    """

    def __init__(self, subject: Subject, task: str, answers: int) -> None:
        self.subject, self.task, self.answers = subject, task, answers
        self.cases = subject.options.cases
        separate, shared = subject.batches(self.cases, answers)
        layout = shared[SHARED_PREFIX]
        self.unique_tokens = sum(layout.prefix_lengths) + sum(map(sum, layout.branch_lengths))
        self.row_tokens = int(separate["attention_mask"].sum())
        self.variants = [
            Variant(SEPARATE, separate, self.row_tokens),
            Variant(SHARED, shared, self.unique_tokens),
        ]
        trained = [weight for weight in subject.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=0.0)
        if task == "train":  # the optimiser's moments lie there before any variant's step
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def inputs(self, variant: Variant) -> dict[str, Any]:
        """Returns a variant's batch on the model's device."""
        return dict(BatchFeature({**variant.batch}).to(self.subject.base.device))

    def step(self, inputs: Mapping[str, Any]) -> Tensor:
        """Runs one step and returns the rewards, [B x K, 1].

        The loss of training is Bradley-Terry's, the first answer preferred to each other one.
        """
        base, train = self.subject.base, self.task == "train"
        low = base.dtype == torch.bfloat16  # recipes compute in the precision of the weights
        self.subject.model.train(train)
        with (
            torch.set_grad_enabled(train),
            torch.autocast(base.device.type, torch.bfloat16, enabled=low),
        ):
            rewards: Tensor = self.subject.model(**inputs).rewards
        if train:
            by_case = rewards.view(self.cases, self.answers)
            loss = -logsigmoid(by_case[:, :1] - by_case[:, 1:]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return rewards.detach()

    def prepare(self) -> Iterator[str]:
        """Warms up, compares the rewards, counts operations and memory; yields what it does next.

        Raises:
            VariantsDifferError: a variant's rewards are others than those of separate rows.
        """
        on_gpu = self.subject.base.device.type == "cuda"
        expected: Tensor | None = None
        for variant in self.variants:
            yield variant.name
            inputs = self.inputs(variant)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            rewards = self.step(inputs)
            expected = rewards if expected is None else expected
            self._compare(variant.name, expected, rewards)
            if on_gpu:
                variant.peak_bytes = torch.cuda.max_memory_allocated()
            else:
                variant.peak_bytes = resident_bytes_of_step(self, variant.name)
            # In a step of its own: counting holds tensors that checkpointing would have freed.
            step = functools.partial(self.step, inputs)
            variant.flops, variant.tower_flops = count_flops(step, self.subject.vision)

    def _compare(self, variant: str, expected: Tensor, rewards: Tensor) -> None:
        worst = float((expected - rewards).abs().max())
        dtype = self.subject.base.dtype
        limit = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(1.0, float(expected.abs().max()))
        if not worst <= limit:
            raise VariantsDifferError(
                f"{self.task} with {self.answers} answers: the rewards of {variant} differ "
                f"from those of separate rows by {worst:.2g}, where rounding explains {limit:.2g}. "
                "Its times are not reported. Measure another model; the rows of this one cannot "
                "share their prefix."
            )

    def round(self) -> Iterator[str]:
        """Runs each variant once, in turns; yields its name before it does."""
        for variant in self.variants:
            yield variant.name
            inputs = self.inputs(variant)
            synchronise()
            start = time.perf_counter()
            self.step(inputs)
            synchronise()
            variant.seconds.append(time.perf_counter() - start)

    def row(self, variant: Variant, rate: float) -> Row:
        """Returns the report's row of a variant.

        Args:
            variant: measured in all rounds.
            rate: operations per second of the device.
        """
        separate, seconds = self.variants[0], statistics.median(variant.seconds)
        times = zip(separate.seconds, variant.seconds, strict=True)
        ratios = [baseline / shared for baseline, shared in times]
        decoder_flops = separate.flops - separate.tower_flops
        ideal_flops = decoder_flops * variant.tokens / self.row_tokens + variant.tower_flops
        return {
            "task": self.task,
            "variant": variant.name,
            "answers": self.answers,
            "cases": self.cases,
            "cases_per_s": self.cases / seconds,
            "unique_tokens_per_s": self.unique_tokens / seconds,
            "padded_share": 1 - variant.tokens / int(variant.batch["input_ids"].numel()),
            "peak_memory_bytes": variant.peak_bytes,
            "ratio_to_separate": {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            },
            "ideal_ratio": separate.flops / ideal_flops,
            "flops": variant.flops,
            "share_of_bound": variant.flops / rate / seconds,
        }


def synchronise() -> None:
    """Waits until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_bytes_of_step(measurement: Measurement, variant: str) -> int:
    """Returns by how much a child process's resident set grows while it makes a model and a step.

    The child is forked from a server that has imported this module and done nothing else.
    """
    # By default glibc keeps large blocks, or not, by what was freed before: peaks would vary.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    arguments = (measurement.subject.options, measurement.task, measurement.answers, variant)
    with ProcessPoolExecutor(1, context) as executor:
        return executor.submit(_resident_growth, *arguments).result()


def _resident_growth(options: ThroughputOptions, task: str, answers: int, variant: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends the child without a traceback
    end_with_parent()
    warnings.simplefilter("ignore")
    # A first step loads what the libraries load late.
    first = ThroughputOptions(shape="tiny", image_tokens=1, question_tokens=24, answer_tokens=9)
    peaks = []
    for each, answer_count in ((first, 2), (options, answers)):
        measurement = Measurement(make_subject(each), task, answer_count)
        batch = next(each for each in measurement.variants if each.name == variant)
        measurement.step(measurement.inputs(batch))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return (peaks[1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024)


def run_throughput(options: ThroughputOptions) -> dict[str, Any]:
    """Measures what the options ask for, prints the table and returns throughput.json.

    A file is written anew with each finished task and number of answers, a pipe once at the end.
    What stops the command earlier, an interrupt too, leaves what was measured until then,
    `complete` being false. So it is where one does not fit on a GPU; the others are measured.

    Raises:
        ConfigError: the options ask for what cannot be had; nothing is measured then.
        VariantsDifferError: sharing changes the rewards.
    """
    output = None if options.output is None else Path(options.output)
    if output is not None:
        _check_writable(output)
    subject, console = make_subject(options), Console(stderr=True)
    rows: list[Row] = []
    report = {**facts(subject), "complete": False, "rows": rows}
    plan = ", ".join(f"{task} with {answers} answers" for task, answers in options.plan)
    console.print(f"Measuring, {options.rounds} rounds each: {plan} ...", highlight=False)
    try:
        # The bar's thread takes time from what is measured.
        with progress_bar(TimeRemainingColumn(), console=console, refreshes_per_second=1) as bar:
            for task, answers in options.plan:
                name = f"{task}, {answers} answers"
                try:
                    measured = _rows(Measurement(subject, task, answers), name, bar)
                except torch.OutOfMemoryError:
                    subject.model.zero_grad(set_to_none=True)
                    advice = "give fewer cases or gradient_checkpointing"
                    console.print(f"{name}: does not fit on the GPU; {advice}", highlight=False)
                    continue
                ratio = measured[1]["ratio_to_separate"]["median"]
                console.print(f"{name}: {SHARED} {ratio:.2f}x", highlight=False)
                rows += measured
                report["complete"] = len(rows) == len(measured) * len(options.plan)
                if output is not None and not is_stream(output):
                    _write(output, report)
    finally:
        if rows:
            print_rows(report)
            if output is not None and is_stream(output):
                _write(output, report)
    return report


def _check_writable(output: Path) -> None:
    """Tries to write beside a file, so that a path that is wrong costs no measurement."""
    problem = output_problem(output, folder=False)
    try:
        if problem is None and not is_stream(output):
            with tempfile.TemporaryFile(dir=Path(os.path.realpath(output)).parent):
                pass
    except OSError as error:
        problem = str(error.strerror)
    if problem is not None:
        raise ConfigError(
            f"--output {output} cannot be written ({problem}). It takes the path of a file in an "
            "existing folder."
        )


def _rows(measurement: Measurement, name: str, bar: Progress) -> list[Row]:
    rounds, base = measurement.subject.options.rounds, measurement.subject.base
    task = bar.add_task(name, total=len(measurement.variants) * (1 + rounds))
    try:
        for variant in measurement.prepare():
            bar.update(task, advance=1, description=f"{name}: warm-up, {variant}")
        rate = device_rate(base, measurement.row_tokens)
        for number in range(1, rounds + 1):
            for variant in measurement.round():
                bar.update(task, advance=1, description=f"{name}: round {number}, {variant}")
        rate = max(rate, device_rate(base, measurement.row_tokens))
        return [measurement.row(variant, rate) for variant in measurement.variants]
    finally:
        bar.remove_task(task)


def _write(output: Path, report: Mapping[str, Any]) -> None:
    """Writes throughput.json, or the table of a path that ends in `.md`."""
    is_table = output.suffix == ".md"
    text = to_markdown(report_table(report), _WORDS).encode() if is_table else json_bytes(report)
    write_output(output, [text])


def report_table(report: Mapping[str, Any]) -> Table:
    """Returns the rows of a throughput.json, under what was measured on what."""
    shape = report["shape"]
    cells = [
        {
            "task": row["task"],
            "K": str(row["answers"]),
            "variant": row["variant"],
            "cases/s": f"{row['cases_per_s']:.3g}",
            "ratio": "{median:.2f}".format(**row["ratio_to_separate"]),
            "spread": "{min:.2f}-{max:.2f}".format(**row["ratio_to_separate"]),
            "ideal": f"{row['ideal_ratio']:.2f}",
            "bound": f"{row['share_of_bound']:.0%}",
            "MiB": f"{row['peak_memory_bytes'] / 2**20:,.0f}",
        }
        for row in report["rows"]
    ]
    recomputed = ", activations computed twice" if shape["gradient_checkpointing"] else ""
    caption = (
        f"{shape['name']}: decoder of {shape['decoder_parameters'] / 1e6:,.1f} M "
        f"parameters, {shape['prefix_tokens']} shared tokens and {shape['answer_tokens']} of "
        f"each answer; {report['device']}, {report['dtype']}, {report['threads']} "
        f"threads{recomputed}."
    )
    return table_of(caption, cells)


def print_rows(report: Mapping[str, Any]) -> None:
    """Prints the rows of a throughput.json."""
    table = report_table(report)
    padded = max(row["padded_share"] for row in report["rows"])
    Console().print(
        plain(table.caption),
        to_terminal(replace(table, caption=""), left=_WORDS),
        "ratio: to separate rows, round by round. ideal: if time went by tokens alone.\n"
        "bound: how much a step reaches of the device's rate in bare matrix products.\n"
        "MiB: most memory at once, the model included.",
        *([] if report["complete"] else ["Not all was measured."]),
        *([f"Up to {padded:.1%} of the separate rows is padding."] if padded > 0 else []),
        sep="\n",
        highlight=False,
    )
