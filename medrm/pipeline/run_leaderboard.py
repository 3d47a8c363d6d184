"""`medrm leaderboard`: every model of a list, each in a process of its own, and one table.

A fresh process frees the memory of the model before, and the list goes on when one crashes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medrm.chat import load_prompt
from medrm.config.options import JudgeOptions
from medrm.data.store.indexed_cases import column
from medrm.errors import ConfigError, DataError, printable, refuse
from medrm.evaluation.benchmark_loading import load_benchmark
from medrm.evaluation.leaderboard.leaderboard_tables import print_leaderboard, write_leaderboard
from medrm.evaluation.leaderboard.standings import (
    ListedModel,
    ModelResult,
    chosen_entries,
    primary_dimension,
    read_judged,
    read_leaderboard,
    standings,
)
from medrm.evaluation.report import read_json, read_report, write_json
from medrm.pipeline.leaderboard_preview import (
    INPUT_OPTIONS,
    JUDGE_OPTIONS,
    print_estimates,
    skip_reasons,
)
from medrm.pipeline.requests import EvalRequest, LeaderboardRequest
from medrm.pipeline.stop_signals import STARTED_BY
from medrm.scorer.engines import ENGINES

REQUEST_FILE = "request.json"
"""What an entry was asked for, written when its evaluation is complete."""

LOG_FILE = "log.txt"
_LAST_LINES = 5

logger = logging.getLogger(__name__)

EntryRequest = dict[str, Any]


def run_leaderboard(request: LeaderboardRequest) -> bool:
    """Evaluates the entries that have no result yet, and leaves one table.

    Returns:
        Whether no entry failed.

    Raises:
        MedrmError: the list, the options or the benchmark are not as they should be.
    """
    board = read_leaderboard(str(request.leaderboard))
    chosen = chosen_entries(board, request.only)
    requests = _entry_requests(board.entries, request)
    asked = request.benchmark or board.benchmark
    benchmark = load_benchmark(asked, request.data_root)
    identity = {"name": benchmark.name, "digest": benchmark.source.digest}
    if benchmark.name != asked:  # files at data_root may be another set, of another name
        identity["asked"] = asked
    primary = primary_dimension(benchmark, request.primary_dimension)
    output_dir = request.output_dir
    if request.dry_run or output_dir is None:  # which a dry run alone may leave out
        options = {name: each["options"] for name, each in requests.items()}
        print_estimates(chosen, options, request, benchmark)
        return True
    images = int(column(benchmark.cases, "image_count").sum())
    outcomes: dict[str, ModelResult] = {}

    def write() -> dict[str, Any]:
        table = standings(board.name, benchmark, primary, list(outcomes.values()))
        write_leaderboard(output_dir, table)
        return table

    for candidate in board.entries:
        entry_request = {
            **requests[candidate.name],
            "benchmark": identity,
        }
        folder = output_dir / candidate.slug
        finished = _finished(candidate, folder, entry_request)
        if finished is not None:
            outcomes[candidate.name] = finished
            if candidate in chosen:
                logger.info("%s: evaluated before, not repeated (%s)", candidate.name, folder)
        elif candidate in chosen:
            outcomes[candidate.name] = _outcome(candidate, entry_request, folder, request, images)
            write()
    print_leaderboard(write())
    return all(outcome.state != "failed" for outcome in outcomes.values())


def _entry_requests(
    entries: Sequence[ListedModel], request: LeaderboardRequest
) -> dict[str, EntryRequest]:
    """Returns what, besides the benchmark, could change the result of each entry.

    An entry's own options come before those of the whole list.

    Raises:
        ConfigError: names the entries whose options do not go together.
    """
    names = JUDGE_OPTIONS
    common = {"readout": request.readout} | {name: getattr(request.judge, name) for name in names}
    reading = {name: getattr(request, name) for name in INPUT_OPTIONS}
    given = {
        name: choice
        for name, choice in reading.items()
        if choice != getattr(EvalRequest, name)  # what is not given plays no part
    }
    requests, problems = {}, []
    for candidate in entries:
        options = {**common, **candidate.options}
        readout = "votes" if options["readout"] == "votes" else "generate"
        try:
            JudgeOptions(**{name: options[name] for name in names}, judge_readout=readout)
            requests[candidate.name] = {
                **_named(candidate),
                "files": _fingerprint(candidate.model),
                "options": {
                    **{name: value for name, value in options.items() if value is not None},
                    **given,
                },
                "prompt": load_prompt(options["judge_prompt"], request.judge.prompt_file).digest,
            }
        except ConfigError as error:
            problems.append(f"{candidate.name}: {error}")
    refuse(problems, "The options of the list do not go together.")
    return requests


def _named(candidate: ListedModel) -> dict[str, Any]:
    return {key: getattr(candidate, key) for key in ("model", "name", "revision", "engine")}


def _fingerprint(model: str | None) -> str | None:
    """Returns a digest of the names, sizes and times of a local folder's files; None elsewhere."""
    if model is None or not Path(model).is_dir():
        return None
    files = [
        (path.relative_to(model).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(Path(model).rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _finished(
    candidate: ListedModel, folder: Path, entry_request: EntryRequest
) -> ModelResult | None:
    """Returns what an earlier evaluation found that was asked for the same."""
    with suppress(DataError, FileNotFoundError):
        if read_json(folder / REQUEST_FILE) == entry_request:
            finished = _done(candidate, folder)
            if read_report(folder)["benchmark"]["digest"] == entry_request["benchmark"]["digest"]:
                return finished
    return None


def _done(candidate: ListedModel, folder: Path) -> ModelResult:
    return ModelResult(candidate, "done", read_report(folder), judged=read_judged(folder))


def _outcome(
    candidate: ListedModel,
    entry_request: EntryRequest,
    folder: Path,
    request: LeaderboardRequest,
    images: int,
) -> ModelResult:
    """Skips or evaluates one entry; `images` are those of the benchmark."""
    reasons = skip_reasons(candidate, trust_remote_code=request.trust_remote_code)
    if request.no_remote_images and images and ENGINES[candidate.engine].holds_weights:
        reasons.append(f"{images:,} images would go to a service, and --no_remote_images is given")
    if reasons:
        logger.info("%s: skipped: %s", candidate.name, reasons[0])
        return ModelResult(candidate, "skipped", reason=reasons[0])
    logger.info("%s: evaluating (%s) ...", candidate.name, folder / LOG_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (REQUEST_FILE, "report.json"):
        (folder / name).unlink(missing_ok=True)
    with (folder / LOG_FILE).open("w", encoding="utf-8") as log:
        status = subprocess.run(
            evaluate_command(candidate, entry_request, folder, request),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, STARTED_BY: "leaderboard"},
            check=False,
        ).returncode
    reason = _failure(folder, status)
    if reason is not None:
        logger.error("%s: failed: %s", candidate.name, reason)
        return ModelResult(candidate, "failed", reason=reason)
    write_json(folder / REQUEST_FILE, entry_request)
    logger.info("%s: done", candidate.name)
    return _done(candidate, folder)


def evaluate_command(
    candidate: ListedModel, entry_request: EntryRequest, folder: Path, request: LeaderboardRequest
) -> list[str]:
    """Returns the words of `medrm evaluate`: no shell reads them, no name can pose as an option."""
    options = {
        "model": candidate.model,
        "model_name": candidate.name,
        "revision": candidate.revision,
        "engine": candidate.engine,
        "base": candidate.base,
        "benchmark": entry_request["benchmark"].get("asked", entry_request["benchmark"]["name"]),
        "data_root": request.data_root,
        "prompt_file": request.judge.prompt_file,
        "output_dir": folder,
        "evaluation_batch_rows": request.evaluation_batch_rows,
        **entry_request["options"],
    }
    command = [*request.evaluate]
    command += [
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in options.items()
        if value is not None
    ]
    command.append("--overwrite_output_dir")  # of an entry that was asked otherwise before
    if candidate.remote_code and request.trust_remote_code:
        command.append("--trust_remote_code")
    if request.no_remote_images:
        command.append("--no_remote_images")
    return command


def _failure(folder: Path, status: int) -> str | None:
    """Returns why an evaluation failed: its log's end, or why no call was answered; else None."""
    if status:
        return _why(folder / LOG_FILE, status)
    parsing = read_report(folder)["parsing"]
    if parsing is None or "error" not in parsing["states"] or "ok" in parsing["states"]:
        return None
    with (folder / "responses.jsonl").open(encoding="utf-8") as lines:
        first = json.loads(next(lines, "{}"))
    return f"no call was answered: {first.get('reason') or 'see responses.jsonl'}"


def _why(log: Path, status: int) -> str:
    """Returns the end of a failed evaluation's log: its message, else its last lines."""
    text = printable(log.read_text(encoding="utf-8", errors="replace"))
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Error")]
    tail = lines[starts[-1] :] if starts and status == 2 else lines[-_LAST_LINES:]
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return "\n".join([*tail[:20], f"({ended})"])
