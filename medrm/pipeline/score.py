"""`medrm score`: the rewards of any number of answers to each row of a file.

    rows -> windows, as many rows as are computed together -> part files -> the output, in order

A window is computed by one process and written as one line of a part file, so that a start that was
stopped goes on at the next window, with any number of processes, and every row has the rewards of a
straight start to the bit: what is computed together stays together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState

from medrm.config.options import JudgeOptions
from medrm.data.medical.conversions import agreed_conversion
from medrm.data.readers.unlabelled import (
    STANDARD_INPUT,
    UnlabelledRow,
    count_rows,
    files_digest,
    input_files,
    read_rows,
)
from medrm.errors import ConfigError, DataError, nearest
from medrm.evaluation.gathering import opened_by_first
from medrm.evaluation.report import read_json, write_json
from medrm.files import is_stream
from medrm.pipeline.processes import launched
from medrm.pipeline.score_lines import ScorePlan, line_of, report_counts, write_lines
from medrm.pipeline.score_parts import (
    Line,
    RowCase,
    ScoreParts,
    digest_of,
    digest_of_images,
    row_cases,
    windows_of,
)
from medrm.pipeline.score_request import ScoreRequest
from medrm.progress_bar import progress
from medrm.readouts import writes_rewards
from medrm.schema import DIMENSIONS
from medrm.scorer import Scorer
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.open import ScorerOptions, identity_of, open_scorer
from medrm.scorer.readouts.answer_rewards import SavedScorer
from medrm.scorer.specs import plan_scorer, saved_folder

logger = logging.getLogger(__name__)


def score_file(request: ScoreRequest) -> None:
    """Writes the rewards of every row of an input.

    What can be known to be wrong without the model's weights is refused before they are loaded.

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
    plan, total = _plan(request), count_rows(files) if files else None
    if total == 0:
        raise DataError(f"{request.input} has no row to score; nothing was written.")
    continues = bool(files) and not streams
    asked = _asked(request, plan, options, files) if continues else ""
    if continues:
        _check_same(request, asked)
    scorer: Any = open_scorer(request.model, request.readout, options=options)
    windows = partial(_windows, scorer, files, request.image_root)
    if continues:
        counts = _completed(request, plan, scorer, asked, windows, total)
    else:
        with progress("rows", total) as advance:
            counts = write_lines(request.output, plan, _scored(plan, scorer, windows(), advance))
    if counts is not None:
        report_counts(request.output, counts)


def _windows(
    scorer: Scorer, files: Sequence[Path], image_root: Path | None
) -> Iterator[list[UnlabelledRow]]:
    return windows_of(scorer, read_rows(files, image_root))


def _scored(
    plan: ScorePlan,
    scorer: SavedScorer,
    windows: Iterable[Sequence[UnlabelledRow]],
    advance: Callable[[int], None],
) -> Iterator[Line]:
    for window in windows:
        yield from _score(plan, scorer, row_cases(window, plan.conversion))
        advance(len(window))


def _completed(
    request: ScoreRequest,
    plan: ScorePlan,
    scorer: SavedScorer,
    asked: str,
    windows: Callable[[], Iterator[list[UnlabelledRow]]],
    total: int | None,
) -> dict[str, int] | None:
    """Writes an output that can be continued; returns how many rows have which state.

    None: it is there already, or another process writes it.
    """
    output = Path(request.output)
    settings = {**scorer.settings, "lookahead": scorer.lookahead}
    parts = ScoreParts(output, digest_of([asked, settings]), plan.conversion)
    with opened_by_first(lambda _: _is_finished(request, parts, windows)) as finished:
        if finished:
            logger.info("%s is finished: the same rows, by the same model.", output)
            return None
    with parts.owned():
        count = parts.fill(windows(), partial(_score, plan, scorer), total)
        if not PartialState().is_main_process:
            return None
        windows_done = parts.complete(count)
        lines = chain.from_iterable(window.lines() for window in windows_done)
        counts = write_lines(request.output, plan, lines)
        record = {
            "asked": asked,
            "address": parts.address,
            "images": digest_of([window.images for window in windows_done]),
            "model": request.model,
            "rows": counts,
            "settings": dict(scorer.settings),
        }
        write_json(_record_of(output), record)
        parts.remove()
    return counts


def _plan(request: ScoreRequest) -> ScorePlan:
    """Returns how rows are scored, from the model's contract.

    Raises:
        ConfigError: see `score_file`.
    """
    planned = plan_scorer(
        request.model,
        request.readout,
        "transformers",
        dimensions=DIMENSIONS,
        judge=JudgeOptions(),
        revision=request.revision,
    )
    if planned.contract is None and not request.model.startswith(PREFIX):
        saved_folder(request.model, request.revision)  # says why there is none
    if planned.contract is None or not writes_rewards(planned.readout):
        raise ConfigError(
            f"{request.model} gives no rewards: it is a judge. Give a reward model; "
            "medrm evaluate and medrm.load(...).compare read judges."
        )
    names, dimension = planned.dimensions, None
    if request.best_of_n:
        dimension = request.dimension or ("overall" if "overall" in names else None)
        dimension = names[0] if dimension is None and len(names) == 1 else dimension
        if dimension not in names:
            hint = "" if dimension is None else nearest(dimension, names)
            raise ConfigError(
                f"--best_of_n chooses by one dimension (given: {dimension}); the model has "
                f"{', '.join(names)}. Give --dimension.{hint}"
            )
    statistics = planned.contract.score_statistics
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
    normalised_by = cast(Any, statistics) if request.normalise else None
    trained = planned.contract.image_conversion
    conversion = agreed_conversion(request.image_conversion, trained, request.model)
    return ScorePlan(planned.contract, dimension, normalised_by, conversion)


def _asked(
    request: ScoreRequest, plan: ScorePlan, options: ScorerOptions, files: Sequence[Path]
) -> str:
    """Returns the digest of what is asked for: rows, weights and options."""
    rows, weights = files_digest(files), identity_of(request.model, "transformers", options)
    settings = [request.readout, request.deterministic, request.evaluation_batch_rows]
    wanted = [plan.dimension, request.normalise, str(request.image_root)]
    converted = [] if plan.conversion is None else [str(plan.conversion)]
    return digest_of([rows, weights, *settings, *wanted, *converted])


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.run.json")


def _finished_record(request: ScoreRequest) -> dict[str, Any] | None:
    """Returns what is known of an output that would be replaced; None: nothing is lost."""
    output = Path(request.output)
    if not output.is_file() or request.overwrite_output:
        return None
    record = read_json(_record_of(output)) if _record_of(output).is_file() else {}
    return None if record and not record.get("rows", {}).get("ok") else record


def _check_same(request: ScoreRequest, asked: str) -> None:
    """Refuses to replace an output of something else.

    Raises:
        ConfigError: one is there.
    """
    record = _finished_record(request)
    if record is not None and record.get("asked") != asked:
        raise ConfigError(_another(request, "other rows or rewards"))


def _is_finished(
    request: ScoreRequest,
    parts: ScoreParts,
    windows: Callable[[], Iterator[list[UnlabelledRow]]],
) -> bool:
    """Returns whether the output is there already.

    Raises:
        ConfigError: another one is.
    """
    record = _finished_record(request)
    if record is None:
        return False
    if record.get("address") != parts.address:
        raise ConfigError(_another(request, "rewards that were computed otherwise"))
    cases_of_windows = (row_cases(window, parts.conversion) for window in windows())
    images = digest_of(list(map(digest_of_images, cases_of_windows)))
    if record.get("images") != images:
        raise ConfigError(_another(request, "the rewards of other images under the same paths"))
    return True


def _another(request: ScoreRequest, held: str) -> str:
    return (
        f"--output {request.output} exists, and holds {held}. Give another --output, or "
        "--overwrite_output to replace it."
    )


def _score(plan: ScorePlan, scorer: SavedScorer, window: Sequence[RowCase]) -> list[Line]:
    """Returns the lines of rows that are computed together."""
    responses = scorer.respond(row.case for row in window if row.case is not None)
    return [
        line_of(plan, row, None if row.case is None else next(responses), scorer.longest_row)
        for row in window
    ]
