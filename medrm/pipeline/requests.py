"""What the commands that score models are asked to do, as their options; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from medrm.config.options import JudgeOptions, ModelOptions, option
from medrm.readouts import OPTION_READOUTS
from medrm.scorer.engines import ENGINES


def _as_in(group: type, name: str) -> Any:
    """Returns an option that another dataclass declares."""
    declared = next(field for field in fields(group) if field.name == name)
    return field(default=declared.default, metadata=declared.metadata)


@dataclass(frozen=True)
class EvalRequest:
    """What one `medrm evaluate` is asked to do; `judge` says how a judge is asked."""

    model: str = option(
        MISSING,
        "adapter folder, hub repo, base model such as phantom-base, a service's model, or "
        "mock:NAME",
    )
    benchmark: str = option(MISSING, "a name in evaluation/benchmarks/")
    output_dir: Path = option(
        MISSING, "evaluation folder to write; a part of the same evaluation in it is continued"
    )
    revision: str | None = option(None, "branch, tag or commit of a hub repo")
    data_root: str | None = option(None, "where the benchmark's files lie")
    protocol: Literal["official", "robust", "both"] = option("both", "how verdicts are counted")
    department_map: str | None = option(None, "YAML or JSON file: organ to department")
    readout: str | None = option(
        None,
        "how a judge or a base model is read (default: as it was saved; a base: generate)",
        OPTION_READOUTS,
    )
    engine: str = option(
        "transformers", "what runs the model (openai: OPENAI_BASE_URL, OPENAI_API_KEY)", ENGINES
    )
    shared_prefix: Literal["on", "off"] = _as_in(ModelOptions, "shared_prefix")
    trust_remote_code: bool = option(False, "run the model's own code")
    name: str | None = option(None, "under which the model is reported (default: its own)")
    no_images: bool = option(
        False, "keep no small copies of the images, for data that may not be shared"
    )
    overwrite_output_dir: bool = option(
        False, "replace another evaluation in output_dir instead of refusing to start"
    )
    judge: JudgeOptions = field(default_factory=JudgeOptions)


@dataclass(frozen=True)
class LeaderboardRequest:
    """What one `medrm leaderboard` is asked to do.

    Attributes:
        leaderboard: a name in evaluation/leaderboards/, or a YAML file of that form.
        evaluate: the words that start `medrm evaluate` in a new process.
        judge: how the judges are asked; an entry's own options come before it.
    """

    leaderboard: str
    evaluate: Sequence[str]
    output_dir: Path = option(MISSING, "folder for the models and the table")
    benchmark: str | None = option(None, "in place of the one that the leaderboard names")
    data_root: str | None = _as_in(EvalRequest, "data_root")
    only: list[str] = option([], "names of the models to evaluate")
    primary_dimension: str | None = option(
        None, "dimension to rank by (default: overall, else the first)"
    )
    trust_remote_code: bool = option(
        False, "run the code of the checkpoints that the list marks so"
    )
    readout: str | None = _as_in(EvalRequest, "readout")
    judge: JudgeOptions = field(default_factory=JudgeOptions)
