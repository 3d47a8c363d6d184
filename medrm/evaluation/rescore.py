"""`medrm rescore`: reads and scores again what a model has said; neither a model nor torch.

A judge's replies are parsed anew from `responses.jsonl`; a scalar model's scores are those that its
verdicts repeat. The order of the lines plays no part, and nothing changes twice.
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
    rows_of,
    write_setup,
)
from medrm.evaluation.measures.accuracy import NOT_STATED
from medrm.evaluation.records.journal import (
    RESPONSES_FILE,
    VERDICTS_FILE,
    calls_of,
    scores_of,
)
from medrm.evaluation.records.jsonl import AGAIN, write_lines
from medrm.evaluation.records.responses import read_responses
from medrm.evaluation.records.scoring import Said
from medrm.evaluation.records.verdicts import label_of, read_rows
from medrm.evaluation.report import Report
from medrm.parsers import PARSER_VERSION
from medrm.readouts import writes_text
from medrm.schema import DIMENSIONS, Case

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
    said = _said(folder, setup)
    _check_whole(folder, said, setup, benchmark)
    rows = [
        row
        for case in benchmark.cases
        for row in rows_of(said[case.case_id], case, setup, benchmark.dimensions)
    ]
    write_setup(folder, setup, benchmark)
    result = conclude(setup, benchmark, said, rows, folder)
    if writes_text(setup.readout) and "official" in result["protocols"]:
        write_official(folder / OFFICIAL_FOLDER, benchmark.cases, said)
    return result


def _said(folder: Path, setup: Setup) -> dict[str, Said]:
    path = folder / RESPONSES_FILE
    if not path.is_file():
        return scores_of(read_rows(folder / VERDICTS_FILE))
    responses = list(read_responses(path))
    for response in responses:
        if response.dimension not in (None, *setup.dimensions):
            raise DataError(
                f"{path}: case {response.case_id!r} was asked about {response.dimension!r}, the "
                f"evaluation is about {', '.join(setup.dimensions)}. {AGAIN}"
            )
    return calls_of(responses, setup.dimensions)


def _check_whole(
    folder: Path, said: Mapping[str, Said], setup: Setup, benchmark: Benchmark
) -> None:
    judged = set(setup.dimensions) & set(benchmark.dimensions)
    known = {case.case_id: len(case.answers) for case in benchmark.cases}
    problems = [
        *(f"{name}: nothing was said about it" for name in sorted(known.keys() - said.keys())),
        *(f"{name}: is no case of the evaluation" for name in sorted(said.keys() - known.keys())),
        *(
            f"{name}: {'calls' if one.responses else 'scores'} are missing or doubled"
            for name, one in said.items()
            if name in known and not (one.whole and one.covers(judged, known[name]))
        ),
    ]
    if problems:
        raise DataError(report(f"{folder} holds no whole evaluation. {AGAIN}", problems))


def write_official(folder: Path, cases: Sequence[Case], said: Mapping[str, Said]) -> None:
    """Writes what the released scorer's second half reads, by organ.

    `responses/<organ>.jsonl`: the raw replies of the stored order, with the fields `question_id`,
    `modality_type` and `chosen_answer`. `labels/<organ>.jsonl`: `question_id` and `human_answer`
    on all six dimensions; "none", which no reply equals, stands where the experts have no majority.
    Source: github.com/meidandz/Med-RewardBench at commit 9b9d806, vlm/00_benchmark_full_pipeline.py
    (`process_jsonl_file`, `evaluate_accuracy`).

    Args:
        folder: to write.
        cases: all of the benchmark.
        said: by a judge that wrote about all dimensions in one reply.
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
                    "chosen_answer": said[case.case_id].responses[0].text or "",
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
