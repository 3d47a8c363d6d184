"""What a leaderboard names and would ask: `medrm leaderboard --list` and `--dry_run`.

No model is loaded, and nothing is downloaded or written.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.config.options import JudgeOptions
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.leaderboard.standings import (
    ListedModel,
    chosen_entries,
    leaderboard_names,
    read_leaderboard,
)
from medrm.evaluation.report import read_json
from medrm.evaluation.tables.table import (
    DASH,
    Row,
    plain,
    table_of,
    to_terminal,
    whole_console,
)
from medrm.pipeline.requests import EvalRequest, LeaderboardRequest
from medrm.scorer.engines import ENGINES
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.specs import files_at_hand

JUDGE_OPTIONS = ("judge_prompt", "votes", "judge_temperature", "max_new_tokens")
"""How a judge is asked, which an entry may change."""

INPUT_OPTIONS = (
    *("min_pixels", "max_pixels", "max_length", "dtype", "deterministic", "shared_prefix"),
)
"""How every model of a list is read, which may change its results."""


def skip_reasons(candidate: ListedModel, *, trust_remote_code: bool) -> list[str]:
    """Returns why an entry cannot be evaluated here; nothing where it can be tried."""
    missing = _missing(candidate)
    if trust_remote_code:
        missing.pop(_CODE, None)
    return list(missing.values())


_CODE = "--trust_remote_code"


def _missing(candidate: ListedModel) -> dict[str, str]:
    """Returns what an entry cannot be evaluated without, and what to say of it."""
    if candidate.model is None:
        return {"a checkpoint": candidate.note or "it has no published checkpoint"}
    missing = {}
    if candidate.remote_code:
        missing[_CODE] = "needs the code of its checkpoint; --trust_remote_code allows it"
    if candidate.proprietary and not os.environ.get("OPENAI_API_KEY"):
        missing["OPENAI_API_KEY"] = "proprietary, and no OPENAI_API_KEY in the environment"
    if candidate.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        reason = 'runs on vLLM, which is not installed (pip install "medrm[vllm]")'
        missing["package vllm"] = reason
    return missing


def print_lists(leaderboard: str | None, only: Sequence[str]) -> None:
    """Prints the models of a leaderboard, or of all, with their engines and what is missing here.

    Args:
        leaderboard: a name or a YAML file; None: all that are shipped.
        only: names of models; empty: all.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in leaderboard_names() if leaderboard is None else [leaderboard]:
        board = read_leaderboard(name)
        rows: list[Row] = [
            {
                "name": candidate.name,
                "engine": candidate.engine,
                "model": candidate.model or DASH,
                "missing": ", ".join(
                    [*_missing(candidate), *(["weights"] if _lacks_weights(candidate) else [])]
                ),
            }
            for candidate in chosen_entries(board, only)
        ]
        table = table_of(f"{board.name}, on {board.benchmark}", rows)
        console = whole_console()
        console.print(to_terminal(table, left=range(4), wrapped=(0, 2, 3)))
        console.print(plain(_MISSING_EXPLAINED))


_MISSING_EXPLAINED = (
    "missing, here and now: the code of a checkpoint (--trust_remote_code allows it), a key in the "
    "environment, a package, a published checkpoint; weights that are not in the cache are "
    "downloaded."
)


def _lacks_weights(candidate: ListedModel) -> bool:
    """Returns whether an entry's weights would have to be downloaded."""
    if candidate.model is None or candidate.model.startswith(PREFIX):
        return False
    if ENGINES[candidate.engine].holds_weights:
        return False
    folder = files_at_hand(candidate.model, candidate.revision)
    return folder is None or not _holds_weights(folder)


def _holds_weights(folder: Path) -> bool:
    """Returns whether a folder holds weights, all of them where an index names the files."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    files = set(read_json(index).get("weight_map", {}).values())
    return all((folder / name).is_file() for name in files)


def print_estimates(
    candidates: Sequence[ListedModel],
    options: Mapping[str, Mapping[str, Any]],
    request: LeaderboardRequest,
    benchmark: Benchmark,
) -> None:
    """Prints what the entries would ask, and what is missing here.

    Args:
        candidates: entries of the list.
        options: name of each to how its judge is asked.
        request: of the whole list.
        benchmark: what they would be asked about.
    """
    from medrm.pipeline.dry_run import estimate  # loads torch

    rows: list[Row] = []
    totals = []
    for candidate in candidates:
        row: dict[str, Any] = {"model": candidate.name, "calls": DASH}
        reasons = skip_reasons(candidate, trust_remote_code=request.trust_remote_code)
        if candidate.model is not None:
            asked_for = _as_evaluation(candidate, options[candidate.name], request)
            counts = estimate(asked_for, benchmark)
            cost = counts.cost(asked_for.prices)
            mark = "" if counts.exact else "~"
            totals += [] if cost is None else [cost]
            row |= {
                "calls": f"{counts.calls:,}",
                "prompt tokens": f"{mark}{counts.prompt_tokens:,}",
                "reply tokens, at most": f"{counts.reply_tokens:,}",
                "cost, at most": DASH if cost is None else f"{mark}{cost:,.2f}",
            }
            if counts.uncounted_images:
                reasons.append(f"{counts.uncounted_images:,} images are not counted")
        rows.append({**row, "note": "; ".join(reasons)})
    console = whole_console()
    table = table_of(f"{benchmark.name}: {len(benchmark.cases):,} cases (dry run)", rows)
    columns = [name for name in _ESTIMATED if name in table.columns]
    last = len(columns) - 1
    console.print(to_terminal(table.pick(columns), left=(0, last), wrapped=(0, last)))
    console.print(plain(_ESTIMATES_EXPLAINED))
    if totals:
        console.print(plain(f"Cost of all with a price: about {sum(totals):,.2f}."))


_ESTIMATED = (
    *("model", "calls", "prompt tokens", "reply tokens, at most", "cost, at most", "note"),
)
_ESTIMATES_EXPLAINED = (
    "Prompt tokens are counted by the model's own processor, images included; ~ marks those of "
    "models whose processor is not here: about 4 characters a token, without images."
)


def _as_evaluation(
    candidate: ListedModel, options: Mapping[str, Any], request: LeaderboardRequest
) -> EvalRequest:
    """Returns the dry run of one entry."""
    judged: dict[str, Any] = {name: options[name] for name in JUDGE_OPTIONS}
    judged |= {"judge_readout": "votes"} if options.get("readout") == "votes" else {}
    price_names = ("price_per_million_prompt_tokens", "price_per_million_completion_tokens")
    prices = {name: getattr(candidate, name) for name in price_names}
    return EvalRequest(
        str(candidate.model),
        "",
        engine=candidate.engine,
        revision=candidate.revision,
        readout=options.get("readout"),
        dry_run=True,
        judge=JudgeOptions(**judged, prompt_file=request.judge.prompt_file),
        **{
            option_name: getattr(request, option_name) if price is None else price
            for option_name, price in prices.items()
        },
    )
