"""`medrm score`: the rewards of any number of answers to each row of a file.

    rows -> windows, as many rows as are computed together -> part files -> the output, in order

A window is computed by one process and written as one line of a part file, so that a start that was
stopped goes on at the next window, with any number of processes, and every row has the rewards of a
straight start to the bit: what is computed together stays together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from medrm.data.batched import batched
from medrm.data.readers.unlabelled import (
    STANDARD_INPUT,
    UnlabelledRow,
    count_rows,
    files_digest,
    input_files,
    read_rows,
)
from medrm.errors import ConfigError, DataError, nearest, printable
from medrm.evaluation.report import read_json, write_json
from medrm.files import check_outputs, is_stream, partial_file, write_output
from medrm.pipeline.processes import launched
from medrm.pipeline.requests import ScoreRequest
from medrm.pipeline.score_parts import Line, ScoreParts, windows_of
from medrm.schema import Case, Response
from medrm.scorer import Scorer
from medrm.scorer.caller_cases import row_case, unscored_reason
from medrm.scorer.open import ScorerOptions, identity_of, open_scorer
from medrm.scorer.readouts.answer_rewards import SavedScorer
from medrm.statistics.calibration import win_probabilities

logger = logging.getLogger(__name__)

_FORMS = (".jsonl", ".parquet")
"""What an output can be, by its name."""

_LINES_AT_ONCE = 4096

_NAMED_PROBLEMS = 5
"""How many rows without a reward are named; the output says why of each."""


class _Plan(NamedTuple):
    """How the rewards of a row become its line.

    Attributes:
        scorer: the reward model.
        dimension: by which the best answer is chosen; None: none is.
        statistics: of the development cases, by dimension; None: rewards are not normalised.
    """

    scorer: SavedScorer
    dimension: str | None
    statistics: dict[str, dict[str, float]] | None


def score_file(request: ScoreRequest) -> None:
    """Writes the rewards of every row of an input.

    Raises:
        ConfigError: the model gives no rewards, lacks a dimension or its statistics, or the output
            cannot be written or is another one's.
        DataError: the input cannot be read, or none of its rows can be scored.
    """
    state = launched()
    files = input_files(request.input)
    streams = request.output == STANDARD_INPUT or is_stream(Path(request.output))
    if (not files or streams) and state.num_processes > 1:
        raise ConfigError("The standard input and output are one process's; give files.")
    options = ScorerOptions(
        revision=request.revision,
        base=request.base,
        device=state.device,
        batch_rows=request.evaluation_batch_rows,
        deterministic=request.deterministic,
        most_images=1,
    )
    if request.output != STANDARD_INPUT:
        check_outputs({"--output": request.output}, folders=False)
        _check_apart(request)
    scorer = open_scorer(request.model, request.readout, options=options)
    plan = _plan(scorer, request)
    rows = read_rows(files, request.image_root)
    if streams or not files:
        lines = (line for window in windows_of(scorer, rows) for line in _score(plan, window))
        counts = _write(request.output, plan, lines)
    else:
        weights = identity_of(request.model, "transformers", options)
        address = _address(weights, plan, request, files_digest(files))
        if _is_finished(Path(request.output), address, request):
            logger.info("%s is finished: the same rows, by the same model.", request.output)
            return
        parts = ScoreParts(Path(request.output), address)
        with parts.owned():
            windows = parts.fill(windows_of(scorer, rows), partial(_score, plan), count_rows(files))
            if not state.is_main_process:
                return
            counts = _write(request.output, plan, parts.lines(windows))
            told = {"address": address, "model": request.model, "weights": weights}
            settings = {"settings": dict(scorer.settings)}
            write_json(_record_of(Path(request.output)), {**told, "rows": counts, **settings})
            parts.remove()
    _tell(request.output, counts)


def _check_apart(request: ScoreRequest) -> None:
    """Refuses an output that another start would read as rows.

    Raises:
        ConfigError: it lies in the folder that is read, or is the file that is read; or it is of no
            known form.
    """
    if not is_stream(Path(request.output)) and Path(request.output).suffix not in _FORMS:
        raise ConfigError(
            f"--output {request.output} is of no known form; accepted are "
            f"{', '.join(_FORMS)}, and -."
        )
    source, output = Path(request.input).resolve(), Path(request.output).resolve()
    if output == source or (source.is_dir() and output.parent == source):
        raise ConfigError(
            f"--output {request.output} lies where the rows are read from; give another place."
        )


def _plan(scorer: Scorer, request: ScoreRequest) -> _Plan:
    """Returns how rows are scored.

    Raises:
        ConfigError: see `score_file`.
    """
    if not isinstance(scorer, SavedScorer):
        raise ConfigError(
            f"{request.model} gives no rewards: it is a judge or a base. Give a reward model; "
            "medrm evaluate and medrm.load(...).compare read judges."
        )
    names, dimension = scorer.dimensions, None
    if request.best_of_n:
        dimension = request.dimension or ("overall" if "overall" in names else None)
        dimension = names[0] if dimension is None and len(names) == 1 else dimension
        if dimension not in names:
            hint = "" if dimension is None else nearest(dimension, names)
            raise ConfigError(
                f"--best_of_n chooses by one dimension (given: {dimension}); the model has "
                f"{', '.join(names)}. Give --dimension.{hint}"
            )
    elif request.dimension is not None:
        raise ConfigError("--dimension says by which the best answer is chosen: give --best_of_n.")
    statistics = scorer.contract.score_statistics
    if request.normalise and not statistics:
        raise ConfigError(
            "--normalise needs the mean and the spread of rewards on development cases, which "
            f"{request.model} does not have; a training run of this version writes them."
        )
    untold = [name for name, about in statistics.items() if "temperature" not in about]
    if request.normalise and untold:
        logger.warning(
            "No win probability on %s: the development cases told no temperature there.",
            ", ".join(untold),
        )
    return _Plan(scorer, dimension, cast(Any, statistics) if request.normalise else None)


def _address(weights: str, plan: _Plan, request: ScoreRequest, rows: str) -> str:
    """Returns what tells whether lines that are there are those that are asked for."""
    settings = dict(plan.scorer.settings)
    asked = [weights, settings, plan.scorer.lookahead, plan.dimension, request.normalise, rows]
    root = str(request.image_root)
    return hashlib.sha256(json.dumps([*asked, root], default=str).encode()).hexdigest()


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.run.json")


def _is_finished(output: Path, address: str, request: ScoreRequest) -> bool:
    """Whether the output is there already.

    Raises:
        ConfigError: another one is.
    """
    if not output.is_file() or request.overwrite_output:
        return False
    record = read_json(_record_of(output)) if _record_of(output).is_file() else {}
    if record and not record.get("rows", {}).get("ok"):
        return False  # nothing is lost
    if record.get("address") == address:
        return True
    raise ConfigError(
        f"--output {output} exists, and holds other rows or rewards. Give another --output, or "
        "--overwrite_output to replace it."
    )


def _score(plan: _Plan, window: Sequence[UnlabelledRow]) -> list[Line]:
    """Returns the lines of rows that are computed together."""
    cases, problems = dict[int, Case](), dict[int, str]()
    for number, row, problem, folder in window:
        try:
            if row is None:
                raise DataError(str(problem))
            case = row_case(row, number, folder)
            if not case.answers:
                raise DataError("it has no answer")
            cases[number] = case
        except DataError as error:
            problems[number] = str(error)
    responses = dict(zip(cases, plan.scorer.respond(cases.values()), strict=True))
    return [
        _line(plan, number, cases[number], responses[number])
        if number in cases
        else {"row": number, "case_id": None, "state": "bad_row", "reason": problems[number]}
        | _rewards(plan, None, None)
        for number, *_ in window
    ]


def _line(plan: _Plan, number: int, case: Case, response: Response) -> Line:
    known = {"row": number, "case_id": case.case_id, "state": response.state}
    reason = unscored_reason(case, response.state, plan.scorer.contract.max_length)
    return known | {"reason": reason or response.reason} | _rewards(plan, case, response)


def _rewards(plan: _Plan, case: Case | None, response: Response | None) -> Line:
    """Returns the columns of a row's rewards, null where it has none."""
    rewards = None if response is None else response.rewards
    line: Line = {"rewards": rewards}
    if plan.statistics is not None:
        line |= dict.fromkeys(("normalised", "win_probability"))
        if rewards is not None:
            line["normalised"] = {
                name: [(value - about["mean"]) / (about["std"] or 1) for value in rewards[name]]
                for name, about in plan.statistics.items()
            }
            line["win_probability"] = {
                name: win_probabilities(rewards[name], about["temperature"])
                if "temperature" in about
                else None
                for name, about in plan.statistics.items()
            }
    if plan.dimension is not None:
        line |= dict.fromkeys(("best", "best_answer"))
        if rewards is not None and case is not None:
            values = rewards[plan.dimension]
            line["best"] = max(range(len(values)), key=values.__getitem__)
            line["best_answer"] = case.answers[line["best"]]
    return line


def _write(output: str, plan: _Plan, lines: Iterable[Line]) -> dict[str, int]:
    """Writes the lines; returns how many rows have which state, the first problems logged."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Line]:
        for line in lines:
            counts[line["state"]] += 1
            if line["state"] != "ok" and counts.total() - counts["ok"] <= _NAMED_PROBLEMS:
                told = printable(f"{line['case_id'] or ''} {line['reason'] or ''}".strip())
                logger.warning("row %d has no reward: %s", line["row"], told)
            yield line

    if output.endswith(".parquet"):
        _write_parquet(Path(output), plan, counted())
    elif output == STANDARD_INPUT:
        for line in counted():
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    else:
        write_output(Path(output), (json.dumps(line).encode() + b"\n" for line in counted()))
    return dict(counts)


def _write_parquet(output: Path, plan: _Plan, lines: Iterable[Line]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_dimension = pa.struct([(name, pa.list_(pa.float64())) for name in plan.scorer.dimensions])
    names = ("case_id", "state", "reason")
    columns = [("row", pa.int64()), *((name, pa.string()) for name in names)]
    columns.append(("rewards", by_dimension))
    if plan.statistics is not None:
        columns += [("normalised", by_dimension), ("win_probability", by_dimension)]
    if plan.dimension is not None:
        columns += [("best", pa.int64()), ("best_answer", pa.string())]
    schema = pa.schema(columns)
    target = Path(os.path.realpath(output))
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(target) as partial, pq.ParquetWriter(partial, schema) as writer:
        for some in batched(lines, _LINES_AT_ONCE):
            writer.write_table(pa.Table.from_pylist(some, schema))


def _tell(output: str, counts: dict[str, int]) -> None:
    """Says what was written.

    Raises:
        DataError: no row has a reward.
    """
    others = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "ok")
    total = sum(counts.values())
    if counts.get("bad_image"):
        others += "; paths of images are relative to the input's folder, or to --image_root"
    if not counts.get("ok"):
        raise DataError(
            f"None of {total} rows has a reward ({others or 'the input is empty'}); {output} says "
            "why of each."
        )
    left_out = f" ({others})" if others else ""
    logger.info("%d of %d rows scored%s: %s", counts["ok"], total, left_out, output)
