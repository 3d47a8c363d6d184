"""`medrm rescore`: derives an evaluation anew from its responses; needs neither model nor torch.

The order of the lines in `responses.jsonl` plays no part, and nothing changes twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medrm.errors import DataError, report
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.folder import (
    Setup,
    check_protocol,
    conclude,
    read_setup,
    verdicts_under,
    write_setup,
)
from medrm.evaluation.measures.accuracy import NOT_STATED
from medrm.evaluation.records.jsonl import (
    RESPONSES_FILE,
    VERDICTS_FILE,
    by_case,
    covers,
    is_complete,
    read_responses,
    write_lines,
)
from medrm.evaluation.report import Report
from medrm.parsers import PARSER_VERSION
from medrm.readouts import writes_rewards, writes_text
from medrm.schema import DIMENSIONS, Case, Response
from medrm.scorer.verdict_rules import EVALUATE_AGAIN, label_of

OFFICIAL_FOLDER = "official"


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
    responses = _responses(folder, setup)
    _check_complete(folder, responses, setup, benchmark)
    verdicts = [
        verdict
        for case in benchmark.cases
        for verdict in verdicts_under(setup, case, responses[case.case_id], benchmark.dimensions)
    ]
    write_setup(folder, setup, benchmark)
    result = conclude(setup, benchmark, responses, verdicts, folder)
    if writes_text(setup.readout) and "official" in result["protocols"]:
        write_official(folder / OFFICIAL_FOLDER, benchmark.cases, responses)
    return result


def _responses(folder: Path, setup: Setup) -> dict[str, tuple[Response, ...]]:
    path = folder / RESPONSES_FILE
    if not path.is_file() and (folder / VERDICTS_FILE).is_file():
        raise DataError(
            f"{folder} has no {RESPONSES_FILE}: version 0.1 kept none of reward models, so it "
            "cannot be scored again. `medrm compare` and `medrm report` take it as it is; to score "
            "it again, start the same `medrm evaluate` again, which asks the model anew."
        )
    responses = list(read_responses(path))
    for response in responses:
        if response.dimension not in (None, *setup.dimensions):
            raise DataError(
                f"{path}: case {response.case_id!r} was asked about {response.dimension!r}, the "
                f"evaluation is about {', '.join(setup.dimensions)}. {EVALUATE_AGAIN}"
            )
    return by_case(responses, setup.dimensions)


def _check_complete(
    folder: Path,
    responses: Mapping[str, Sequence[Response]],
    setup: Setup,
    benchmark: Benchmark,
) -> None:
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
            and not (is_complete(calls) and covers(calls, judged, answers[case_id]))
        ),
    ]
    if problems:
        raise DataError(report(f"{folder} holds no whole evaluation. {EVALUATE_AGAIN}", problems))


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
    organs: dict[str, list[Case]] = {}
    for case in cases:
        if len(case.answers) == 2:
            organs.setdefault(case.groups.get("organ", NOT_STATED), []).append(case)
    for name in ("responses", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for organ, group in organs.items():
        file = re.sub(r"[^\w.-]+", "_", organ) + ".jsonl"
        write_lines(
            folder / "responses" / file,
            (
                {
                    "question_id": case.case_id,
                    "modality_type": organ,
                    "chosen_answer": responses[case.case_id][0].text or "",
                }
                for case in group
            ),
        )
        write_lines(
            folder / "labels" / file,
            (
                {
                    "question_id": case.case_id,
                    "human_answer": {
                        name: label_of(case.labels.get(name), 2)[0] or "none" for name in DIMENSIONS
                    },
                }
                for case in group
            ),
        )
