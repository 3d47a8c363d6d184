"""Asks a model about a benchmark and writes an evaluation folder; every case stays in it.

    cases -> scorer.respond -> responses.jsonl (after every case) -> verdicts -> report

Cases are cut into batches first, and the batches are dealt to the processes (`together`): how many
there are changes no byte, and an evaluation may go on with others.

Started again, an evaluation of the same weights, settings and cases (`Setup.address`) keeps the
cases that are complete on the disk (`_ask`) and asks for the others; cases that were computed
together are kept or asked together, so that no rounding changes.

`rescore` (`medrm rescore`) derives an evaluation anew from its responses; it needs neither model
nor torch. The order of the lines in `responses.jsonl` plays no part, and nothing changes twice.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape

from medrm.data.batched import batched
from medrm.errors import ConfigError, DataError, printable, refuse
from medrm.evaluation.benchmark import Benchmark, Setup
from medrm.evaluation.folder import (
    check_protocol,
    conclude,
    locked,
    prepare,
    read_setup,
    seal_evaluation,
    verdicts_under,
    write_setup,
)
from medrm.evaluation.gathering import gather, opened_by_first
from medrm.evaluation.leak_check import LeakCheck
from medrm.evaluation.measures.accuracy import member_of
from medrm.evaluation.measures.rounding import (
    MEASURED_CASES,
    Noise,
    largest_noise,
    measure_noise,
)
from medrm.evaluation.records import jsonl
from medrm.evaluation.records.jsonl import RESPONSES_FILE, VERDICTS_FILE, Journal
from medrm.evaluation.records.prompt_record import write_prompts
from medrm.evaluation.report import Report
from medrm.integrity import is_sealed
from medrm.parsers import PARSER_VERSION
from medrm.progress_bar import progress
from medrm.readouts import writes_rewards, writes_text
from medrm.schema import DIMENSIONS, Case, Response, Verdict
from medrm.scorer import AsksInPairs, Scorer
from medrm.scorer.verdict_rules import EVALUATE_AGAIN, label_of

_BATCHES = 16
"""As many batches are there to deal to processes, where there are cases enough."""

_LEAST_TOGETHER = 16
"""Fewer cases than these, or than a quarter of the lookahead, are not computed together."""

Responses = tuple[Response, ...]
"""All responses to one case, in the order of their lines."""

_log = logging.getLogger(__name__)


class NamedModel(NamedTuple):
    """A model by the name under which it is reported, and what is known of it.

    Attributes:
        name: under which it is reported.
        weights: which ones it has; None: nothing says whether they are those of an earlier start.
        leaks: whether it was trained on images of the benchmark; None: not looked for.
    """

    name: str
    weights: str | None = None
    leaks: LeakCheck | None = None


def evaluate(
    scorer: Scorer,
    benchmark: Benchmark,
    output_dir: Path,
    model: str | NamedModel,
    protocol: str = "both",
    settings: Mapping[str, Any] | None = None,
    *,
    images: bool = False,
    overwrite: bool = False,
) -> Report:
    """Asks about all cases, writes the evaluation folder and returns its report.

    Under several processes each asks about a share of the cases; the first one writes. A folder
    that holds a part of the same evaluation is continued.

    Args:
        scorer: the model and its readout.
        benchmark: what is judged.
        output_dir: the folder to write.
        model: the name under which it is reported, and which weights it has. Where nothing says
            so, nothing is continued.
        protocol: `official`, `robust` or `both`.
        settings: what besides the weights could change a number; `compare` checks it.
        images: whether small copies of the images are kept.
        overwrite: whether another evaluation that lies in the folder is replaced.

    Raises:
        ConfigError: an unknown protocol, a model that scores none of the dimensions, or a folder
            that holds another evaluation or in which one is being written.
        DataError: the benchmark is empty.
    """
    _check(scorer, benchmark, protocol)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name, weights, leaks = NamedModel(model) if isinstance(model, str) else model
    reading = (scorer.readout, tuple(scorer.dimensions), benchmark.asked_with(settings), protocol)
    window = together(scorer.lookahead, len(benchmark.cases))
    check = asdict(leaks) if leaks else None
    setup = Setup(name, weights, *reading, window, processes, leak_check=check)

    def open_folder(stack: ExitStack) -> Setup:
        stack.enter_context(locked(output_dir))
        noise = prepare(output_dir, setup, benchmark, images=images, overwrite=overwrite)
        if isinstance(scorer, AsksInPairs):
            write_prompts(output_dir, scorer, benchmark.cases)
        return replace(setup, noise=noise)

    with opened_by_first(open_folder) as opened:
        return _continue(scorer, opened, benchmark, output_dir, rank)


def _continue(
    scorer: Scorer, setup: Setup, benchmark: Benchmark, folder: Path, rank: int
) -> Report:
    """Asks for what is not there yet, and writes what is derived from all responses."""
    processes = setup.processes
    journal = Journal(folder, setup.address(benchmark.cases), setup.dimensions, rank, processes)
    gather([rank])  # nobody writes what another one has not read
    batches = [*batched(benchmark.cases, setup.window or 1)][rank::processes]
    responses, verdicts = _ask(scorer, batches, journal, setup, benchmark)
    written = processes == 1 and list(responses) == [case.case_id for case in benchmark.cases]
    responses, verdicts = dict(gather(list(responses.items()))), gather(verdicts)
    missing = [case.case_id for case in benchmark.cases if case.case_id not in responses]
    if missing:
        raise RuntimeError(
            f"The scorer passed over {len(missing)} cases, such as {min(missing)!r}."
        )
    setup = replace(setup, noise=_noise(scorer, setup, benchmark, responses, rank))
    if rank == 0:
        write_setup(folder, setup, benchmark)
    if rank == 0 and not written:
        ordered = (call for case in benchmark.cases for call in responses[case.case_id])
        jsonl.write_rows(folder / RESPONSES_FILE, ordered)
    report = conclude(setup, benchmark, responses, verdicts, folder if rank == 0 else None)
    gather([rank])  # nobody reads the folder before it is written
    journal.remove()
    return report


def _noise(
    scorer: Scorer,
    setup: Setup,
    benchmark: Benchmark,
    responses: Mapping[str, Responses],
    rank: int,
) -> Noise | None:
    """Returns how far margins move by rounding, unless it is known; None of what has no margins."""
    if setup.noise is not None:
        return setup.noise
    if setup.settings.get("deterministic") and not writes_text(setup.readout):
        return dict.fromkeys(setup.dimensions, 0.0)
    if scorer.lookahead is None or not getattr(scorer, "measures_noise", False):
        return None
    cases = benchmark.cases[:MEASURED_CASES][rank :: setup.processes]
    measured: list[Noise] = [
        measure_noise(
            responses[case.case_id],
            jsonl.in_written_order(list(scorer.respond([case])), scorer.dimensions),
        )
        for case in cases
    ]
    return largest_noise(gather(measured))


def _check(scorer: Scorer, benchmark: Benchmark, protocol: str) -> None:
    check_protocol(protocol)
    if not benchmark.cases:
        raise DataError(
            f"Benchmark {benchmark.name!r} has no case. Give a set with labelled cases."
        )
    if protocol == "official" and any(len(case.answers) != 2 for case in benchmark.cases):
        raise ConfigError(
            f"The official protocol judges pairs; benchmark {benchmark.name!r} has cases of more "
            "than two answers. Give --protocol robust or both."
        )
    if not set(scorer.dimensions) & set(benchmark.dimensions):
        raise ConfigError(
            f"The model scores {', '.join(scorer.dimensions)}; benchmark {benchmark.name!r} labels "
            f"{', '.join(benchmark.dimensions) or 'nothing'}. Give a benchmark that labels one of "
            "the model's dimensions."
        )


def together(lookahead: int | None, case_count: int) -> int | None:
    """Returns how many cases are computed together; None: each by itself.

    Fewer than the scorer's lookahead where that would leave few batches to deal to processes. Their
    number plays no part: rounding depends on the batch composition.

    >>> together(256, 300), together(256, 2000), together(256, 100_000)
    (64, 128, 256)
    """
    if lookahead is None:
        return None
    least = max(lookahead // 4, min(lookahead, _LEAST_TOGETHER))
    return min(lookahead, least * math.ceil(case_count / (_BATCHES * least)))


def _ask(
    scorer: Scorer,
    dealt: Sequence[Sequence[Case]],
    journal: Journal,
    setup: Setup,
    benchmark: Benchmark,
) -> tuple[dict[str, Responses], list[Verdict]]:
    """Returns the responses to the cases, in the order of the journal, and their verdicts.

    Args:
        scorer: is asked.
        dealt: batches of this process, whose cases are kept together or asked about together.
        journal: of this process.
        setup: of the evaluation.
        benchmark: of which they are.
    """
    judged = set(setup.dimensions) & set(benchmark.dimensions)
    by_id = {case.case_id: case for batch in dealt for case in batch}
    reusable = {
        case_id: earlier
        for case_id, case in by_id.items()
        if (earlier := journal.responses.get(case_id)) is not None
        and all(call.state != "error" for call in earlier)  # a retry may fix it
        and all(call.readout == setup.readout for call in earlier)
        and jsonl.covers(earlier, judged, len(case.answers))
    }
    reused: dict[str, Responses] = {}
    batches: list[Sequence[Case]] = []
    for batch in dealt:
        if all(case.case_id in reusable for case in batch):
            reused |= {case.case_id: reusable[case.case_id] for case in batch}
        else:
            batches.append(batch)
    if setup.window is None and batches:
        batches = [list(chain.from_iterable(batches))]
    if reused:
        _log.info("%d of %d cases are there already.", len(reused), len(by_id))
    journal.start(reused.values())
    responses: dict[str, Responses] = {}
    verdicts: list[Verdict] = []
    progress = (benchmark.name, len(by_id), len(reused))
    try:
        for calls in chain(reused.values(), _respond(scorer, batches, *progress)):
            case = by_id[calls[0].case_id]
            verdicts += verdicts_under(setup, case, calls, benchmark.dimensions)
            if case.case_id not in reused:
                journal.append(calls)
            responses[case.case_id] = calls
    finally:
        journal.close()
    return responses, verdicts


def _respond(
    scorer: Scorer, batches: Iterable[Sequence[Case]], name: str, total: int, done: int
) -> Iterator[Responses]:
    """Yields the responses to each case as soon as it is complete; with its progress."""
    label = escape(printable(f"{name} ({scorer.readout})"))
    shown = os.environ.get("RANK", "0") == "0"
    with progress(label, total, done=done, show=shown) as advance:
        for cases in batches:
            calls: list[Response] = []
            for response in scorer.respond(cases):
                calls.append(response)
                if jsonl.is_complete(calls):
                    yield jsonl.in_written_order(calls, scorer.dimensions)
                    calls = []
                    advance(1)


def rescore(folder: Path, protocol: str | None = None) -> Report:
    """Writes `verdicts.jsonl`, `report.json` and `official.csv` anew and returns the report.

    Of a judge that can be scored by the released scorer, `official/` gets what that scorer reads.

    Args:
        folder: of a finished evaluation.
        protocol: `official`, `robust` or `both`; None: as it was evaluated.

    Raises:
        ConfigError: the protocol is unknown, or cannot read this judge.
        DataError: a file is missing, is not one of ours, or lacks cases.
    """
    setup, benchmark = read_setup(folder)
    if protocol is not None:
        check_protocol(protocol)
        setup = replace(setup, protocol=protocol)
    if "parser" in setup.settings:
        setup = replace(setup, settings={**setup.settings, "parser": PARSER_VERSION})
    dimensions = benchmark.dimensions
    with locked(folder):
        responses = _complete_responses(folder, setup, benchmark)
        verdicts = [
            verdict
            for case in benchmark.cases
            for verdict in verdicts_under(setup, case, responses[case.case_id], dimensions)
        ]
        write_setup(folder, setup, benchmark)
        result = conclude(setup, benchmark, responses, verdicts, folder)
        if writes_text(setup.readout) and "official" in result["protocols"]:
            write_official(folder / "official", benchmark.cases, responses)
        if is_sealed(folder):
            seal_evaluation(folder)
    return result


def _complete_responses(folder: Path, setup: Setup, benchmark: Benchmark) -> dict[str, Responses]:
    """Returns the responses to each case; refuses what is not all of this evaluation's."""
    path = folder / RESPONSES_FILE
    if not path.is_file() and (folder / VERDICTS_FILE).is_file() and writes_rewards(setup.readout):
        raise DataError(
            f"{folder} has no {RESPONSES_FILE}: version 0.1 kept none of reward models, so it "
            "cannot be scored again. `medrm compare` and `medrm report` take it as it is; to score "
            "it again, start the same `medrm evaluate` again, which asks the model anew."
        )
    lines = list(jsonl.read_responses(path))
    dimensions = ", ".join(setup.dimensions)
    for call in lines:
        problem = ""
        if call.readout != setup.readout:
            problem = f"was read by {call.readout!r}, the evaluation by {setup.readout!r}"
        elif call.dimension not in (None, *setup.dimensions):
            problem = f"was asked about {call.dimension!r}, the evaluation is about {dimensions}"
        if problem:
            raise DataError(f"{path}: case {call.case_id!r} {problem}. {EVALUATE_AGAIN}")
    responses = jsonl.by_case(lines, setup.dimensions)
    judged = set(setup.dimensions) & set(benchmark.dimensions)
    answers = {case.case_id: len(case.answers) for case in benchmark.cases}
    missing, foreign = answers.keys() - responses.keys(), responses.keys() - answers.keys()
    problems = [
        *(f"{case_id}: nothing was said about it" for case_id in sorted(missing)),
        *(f"{case_id}: is no case of the evaluation" for case_id in sorted(foreign)),
        *(
            f"{case_id}: {'scores' if writes_rewards(setup.readout) else 'calls'} are missing or "
            "doubled"
            for case_id, calls in responses.items()
            if case_id in answers
            and not (jsonl.is_complete(calls) and jsonl.covers(calls, judged, answers[case_id]))
        ),
    ]
    refuse(problems, f"{folder} holds no whole evaluation. {EVALUATE_AGAIN}", DataError)
    return responses


def write_official(
    folder: Path, cases: Sequence[Case], responses: Mapping[str, Sequence[Response]]
) -> None:
    """Writes what the released scorer's second half reads, by organ.

    `responses/<organ>.jsonl`: the raw replies of the stored order, with the fields `question_id`,
    `modality_type` and `chosen_answer`. `labels/<organ>.jsonl`: `question_id` and `human_answer`
    on all six dimensions; "none", which no reply equals, stands where the experts have no majority.
    Source: github.com/meidandz/Med-RewardBench at commit 9b9d806, vlm/00_benchmark_full_pipeline.py
    (`process_jsonl_file`, `evaluate_accuracy`).

    Args:
        folder: to write.
        cases: all of the benchmark.
        responses: to each case, of a judge that wrote about all dimensions in one reply.
    """
    pairs = (case for case in cases if len(case.answers) == 2)
    for organ, group in jsonl.grouped(pairs, lambda case: member_of(case, "organ")).items():
        lines: dict[str, list[dict[str, Any]]] = {"responses": [], "labels": []}
        for case in group:
            reply = {"modality_type": organ, "chosen_answer": responses[case.case_id][0].text or ""}
            labels = {n: label_of(case.labels.get(n), 2)[0] or "none" for n in DIMENSIONS}
            lines["responses"].append({"question_id": case.case_id, **reply})
            lines["labels"].append({"question_id": case.case_id, "human_answer": labels})
        for name, records in lines.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            jsonl.write_lines(folder / name / (re.sub(r"[^\w.-]+", "_", organ) + ".jsonl"), records)
