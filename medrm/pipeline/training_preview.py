"""`--dry_run`: all that can be said of a run before it is queued; no weights are loaded.

It runs as one process on the CPU whatever was launched, makes every check that the run makes before
it loads a model, but for what other processes and GPUs there are, and writes nothing but what the
data's cache keeps anyway.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.integrations import deepspeed

from medrm.config.parse import Run
from medrm.data.store.indexed_cases import tokens_of
from medrm.errors import FOREIGN_ERRORS, ConfigError, MedrmError, refuse
from medrm.evaluation.tables.table import DASH, Table, plain, table_of, to_terminal, whole_console
from medrm.files import RUN_FILE
from medrm.models.footprint import amount, size_text
from medrm.objectives import load_objective
from medrm.objectives.objective import visible_gpu_problems
from medrm.objectives.step_preview import StepPreview
from medrm.pipeline.context import RunContext
from medrm.pipeline.data_splits import mixture_rows
from medrm.pipeline.evaluation_preview import evaluations_table
from medrm.pipeline.launch_settings import LaunchSettings, as_the_file_asks
from medrm.pipeline.manifest import inputs_of, sharding
from medrm.pipeline.memory_plan import RehearsedRun, device_memory, named_error, rehearse_run
from medrm.pipeline.option_checks import check_options
from medrm.pipeline.prepare_data import prepare_data, prepare_folds
from medrm.pipeline.processes import launch_file_problems
from medrm.pipeline.run_folder import FOLDS, check_output, plan_start
from medrm.pipeline.run_needs import check_needs
from medrm.pipeline.run_seeds import check_seeds, run_of_seed
from medrm.pipeline.seen_images import refuse_seen_init_adapter
from medrm.pipeline.train import fold_context, start_of

MEASURED_ERROR = 0.10
"""By how much, at most, estimated and measured peaks on a CPU were apart: of training steps and of
evaluations."""

MOST_ABOVE_IN_GRPO = 0.35
"""By how much the estimate of GRPO, what it samples included, may lie above the measured peak."""

_SHOWN_CASES = 5

_CARDS = (16, 24, 40, 48, 80, 96, 141, 192)
"""GiB of memory of common GPUs."""


def preview_run(run: Run, environment: Mapping[str, str], *, on_cpu: bool) -> None:
    """Prints what a run would do; with several seeds, that of the first.

    Args:
        run: parsed with `use_cpu`, so that no GPU is looked for.
        environment: variables of the process as it was launched, which is one on the CPU now.
        on_cpu: whether the run would train on CPUs.

    Raises:
        MedrmError: the run would be refused.
    """
    launch, seeds = LaunchSettings.read(environment), run.job.seeds
    if seeds is not None:
        check_seeds(run, Path(run.training.output_dir), launch.processes)
        run = run_of_seed(run, seeds[0])
    output = Path(run.training.output_dir)
    with as_the_file_asks(environment), _zero3(launch):
        problems = _missing(run)
        refuse(launch_file_problems(run))
        check_options(run, load_objective(run.objective))
        check_output(output, run)
        contexts = _contexts(run, output)
    context = contexts[0]
    starts = [_check_start(fold, launch, on_cpu=on_cpu) for fold in contexts]
    state = "goes on with the run that lies there" if any(starts) else "a new run"
    gpus = 0 if on_cpu or launch.processes > 1 else torch.cuda.device_count()
    problems += visible_gpu_problems(gpus)
    rehearsed = _rehearsed(context, launch, problems, on_cpu=on_cpu)
    device = "on the CPU" if on_cpu else "with a GPU each" if launch.processes > 1 else "on a GPU"
    console = whole_console()
    console.print(plain(f"Dry run, {launch}, {device}; {state}; nothing is written to {output}."))
    for line in _several(seeds or (), run.data.crossfit):
        console.print(plain(line))
    shown = [configuration_table(run), *_data_tables(context)]
    if rehearsed is not None:
        shown += [trained_table(rehearsed), steps_table(run, rehearsed.steps, launch)]
    shown.append(lengths_table(context))
    if rehearsed is not None:
        shown.append(memory_table(rehearsed, launch, on_cpu=on_cpu))
    shown.append(evaluations_table(context))
    for table in shown:
        words = (0, 1) if table in (shown[0], shown[-1]) else (0,)
        console.print(to_terminal(table, left=words, wrapped=(1,) if table is shown[0] else ()))
        if table.note:
            console.print(plain(table.note))
    if not problems:
        console.print(plain("Nothing that the run needs is missing here."))
    refuse(problems, "This run would be refused.")


def _several(seeds: Sequence[int], folds: int) -> Iterator[str]:
    """Yields of which of several runs and models the rest is."""
    if len(seeds) > 1:
        names = ", ".join(map(str, seeds))
        yield f"{len(seeds)} runs, one for each seed ({names}); what follows is of seed {seeds[0]}."
    if folds:
        yield f"{folds} models, one for each fold; what follows is of the first."


def _missing(run: Run) -> list[str]:
    """Returns what the machine lacks, which is told once all else was said."""
    try:
        check_needs(run)
    except ConfigError as error:
        return [str(error)]
    return []


def _rehearsed(
    context: RunContext, launch: LaunchSettings, problems: list[str], *, on_cpu: bool
) -> RehearsedRun | None:
    """Returns the rehearsal of a run, where its model can be built; adds what it found missing."""
    try:
        rehearsed = rehearse_run(context, launch, on_cpu=on_cpu)
    except MedrmError:
        raise
    except (*FOREIGN_ERRORS, ImportError) as error:
        problems.append(f"the model or its trainer cannot be built here: {named_error(error)}")
        return None
    problems += rehearsed.missing
    return rehearsed


def _contexts(run: Run, output: Path) -> list[RunContext]:
    """Returns the context of the run, or of each fold."""
    if run.data.crossfit:
        benchmark, splits_of_folds = prepare_folds(run)
        refuse_seen_init_adapter(run, benchmark, benchmark.source)
        return [
            fold_context(run, splits, output / FOLDS / str(number))
            for number, splits in enumerate(splits_of_folds, start=1)
        ]
    splits = prepare_data(run)
    refuse_seen_init_adapter(run, splits.benchmark, splits.source)
    return [RunContext.prepare(run, splits, output)]


def _check_start(context: RunContext, launch: LaunchSettings, *, on_cpu: bool) -> bool:
    """Returns whether a run in its folder would go on.

    Raises:
        ConfigError: another run lies there, or a stage is missing.
    """
    if not (context.output / RUN_FILE).exists():
        return plan_start(context.output, {}, context.run, context.epoch_rows).goes_on
    where = {
        "device": "cpu" if on_cpu else "cuda",
        "processes": launch.processes,
        "sharding": sharding(launch),
    }
    return start_of(context, inputs_of(context.run, context.processor), where).goes_on


class _Zero3:
    """Stands in for DeepSpeed's settings, which need DeepSpeed; transformers asks it this alone."""

    def is_zero3(self) -> bool:
        """Whether weights are split."""
        return True


@contextmanager
def _zero3(launch: LaunchSettings) -> Iterator[None]:
    """Lets options be checked as under ZeRO-3, where it was launched so."""
    switch: Any = deepspeed
    stand_in = _Zero3()
    if launch.zero_stage == 3:
        switch.set_hf_deepspeed_config(stand_in)
    try:
        yield
    finally:
        switch.unset_hf_deepspeed_config()


def configuration_table(run: Run) -> Table:
    """Returns the options that have not their defaults, as they were resolved."""
    arguments = run.training
    groups = (run.data, run.model, run.adapter, run.evaluation, run.judge, run.job)
    defaults = type(arguments)(output_dir=arguments.output_dir, use_cpu=True).to_dict()
    for group in groups:
        for field in dataclasses.fields(group):
            factory: Any = field.default_factory
            made = factory is not dataclasses.MISSING
            defaults[field.name] = factory() if made else field.default
    unsaid = ("dry_run", "use_cpu", *_DERIVED)
    resolved = {name: value for name, value in run.resolved().items() if name not in unsaid}
    rows = [
        {"option": name, "value": ", ".join(map(str, value)) if _is_list(value) else str(value)}
        for name, value in {**resolved, "output_dir": arguments.output_dir}.items()
        if name not in defaults or value != defaults[name] or name == "output_dir"
    ]
    note = f"{len(resolved) - len(rows)} further options have their defaults (--help)."
    return table_of("Configuration", rows, note)


_DERIVED = ("activation_checkpointing", "activation_checkpointing_kwargs", "greater_is_better")
"""Options that follow from others."""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _data_tables(context: RunContext) -> Iterator[Table]:
    splits = context.splits
    sets = {
        "training": splits.train,
        "development": splits.development,
        f"benchmark {splits.benchmark.name}": splits.benchmark.cases,
    }
    rows = [{"cases": name, "number": f"{len(cases):,}"} for name, cases in sets.items()]
    rows.append({"cases": "set aside", "number": f"{len(splits.excluded):,}"})
    names = ", ".join(splits.dimensions)
    yield table_of("Data", rows, f"Dimensions: {names}; the headline is {splits.primary}.")
    if mixture := mixture_rows(splits.source, splits.parts):
        written = [{name: str(content) for name, content in row.items()} for row in mixture]
        yield table_of("Sets that are trained on", written)


def trained_table(rehearsed: RehearsedRun) -> Table:
    """Returns what learns, by module, with numbers of parameters."""
    rows = [
        {"module": module, "learns": amount(learned) if learned else "", "of": amount(total)}
        for module, (learned, total) in rehearsed.trained.items()
    ]
    totals = [sum(counts) for counts in zip(*rehearsed.trained.values(), strict=True)]
    share = 100 * totals[0] / totals[1]
    rows.append({"module": "all", "learns": amount(totals[0]), "of": amount(totals[1])})
    note = f"{totals[0]:,} parameters learn, {share:.2f} % of all."
    return table_of("What is trained", rows, note, {len(rows) - 1: "sum"})


def steps_table(run: Run, steps: StepPreview, launch: LaunchSettings) -> Table:
    """Returns how many steps there are, and what a step is."""
    args = run.training
    total = args.max_steps
    if total <= 0:
        total = math.ceil(args.num_train_epochs * steps.epoch_steps)
    numbers = {
        f"{steps.unit} to learn from in an epoch": steps.count,
        f"{steps.unit} of a step": steps.step_size,
        "steps of an epoch": steps.epoch_steps,
        "steps": total,
        "of them warm-up": args.get_warmup_steps(total),
        "micro-batches of a step, on each device": steps.micro_batches,
        "tokens of a step, about": steps.step_tokens,
        "tokens that a device computes at once, at most": steps.largest,
    }
    rows = [{"steps": name, "number": f"{count:,}"} for name, count in numbers.items()]
    return table_of(f"Steps ({launch})", rows)


def lengths_table(context: RunContext) -> Table:
    """Returns how long the rows of cases are, and names those that are too long."""
    splits, limit = context.splits, context.longest_row
    rows = []
    for name, cases in (("training", splits.train), ("development", splits.development)):
        tokens = tokens_of(cases, context.lengths)
        shares = np.quantile(tokens, (0, 0.5, 0.95, 1), method="nearest").tolist()
        names = ("shortest", "median", "95 %", "longest")
        row = {"cases": name}
        rows.append(row | {n: f"{int(t):,}" for n, t in zip(names, shares, strict=True)})
    long = [case for case in splits.excluded if case.reason.startswith("too long")]
    named = ", ".join(case.case_id for case in long[:_SHOWN_CASES])
    more = ", ..." if len(long) > _SHOWN_CASES else ""
    stated = limit == context.run.model.max_length
    reason = "max_length" if stated else "max_length is not given, the base's positions are"
    note = f"{reason} {limit}: {len(long)} cases are longer and set aside"
    note = f"{note} ({named}{more})." if long else f"{note}."
    if limit is None:
        note = "max_length is not given: no case is too long."
    return table_of("Tokens of a case's longest row", rows, note)


def memory_table(rehearsed: RehearsedRun, launch: LaunchSettings, *, on_cpu: bool) -> Table:
    """Returns the memory of each device by part, in training and in an evaluation."""
    parts = device_memory(rehearsed, launch, on_cpu=on_cpu)
    totals = [sum(sizes) for sizes in zip(*parts.values(), strict=True)]
    named = {**parts, "together": tuple(totals)}
    rows = [
        {"part": name, "training": _text(sizes[0]), "evaluation": _text(sizes[1])}
        for name, sizes in named.items()
    ]
    notes = []
    if rehearsed.problem is not None:
        notes.append(f"Activations are not counted, for they are not known: {rehearsed.problem}.")
    if rehearsed.training.offloaded:
        waiting = size_text(rehearsed.training.offloaded)
        notes.append(f"{waiting} of activations wait in main memory.")
    notes.append(
        f"Estimated peaks of trainings and evaluations were within {MEASURED_ERROR:.0%} of those "
        f"measured on a CPU, GRPO's up to {MOST_ABOVE_IN_GRPO:.0%} above "
        "(accelerate_configs/README.md has the table). On a GPU nothing was "
        "measured, nor with several: leave a tenth free for blocks that the allocator cannot use."
    )
    fits = [size for size in _CARDS if 1.1 * max(totals) <= size * 2**30]
    if fits and not on_cpu:
        notes.append(f"With a tenth left free it fits into {fits[0]} GiB.")
    caption = f"Memory of each device ({launch})"
    return table_of(caption, rows, " ".join(notes), {len(rows) - 1: "sum"})


def _text(size: int) -> str:
    return size_text(size) if size else DASH
