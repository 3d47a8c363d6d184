"""What the commands that run models are asked to do, as their options; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from medrm.config.option import as_in, option
from medrm.config.options import DataOptions, EvaluationOptions, JudgeOptions, ModelOptions
from medrm.errors import ConfigError, refuse
from medrm.files import check_outputs
from medrm.models.model_name import check_model_name
from medrm.readouts import BASE_READOUTS, OPTION_READOUTS
from medrm.schema import DIMENSIONS
from medrm.scorer.engines import ENGINES
from medrm.scorer.mock_judges import PREFIX

TASKS = ("train", "score")

_LEAST = {"question_tokens": 3}
"""The least value of an option, where it is not 1; two tokens start and end the image."""


class Prices(NamedTuple):
    """Prices of a million tokens; None: not given."""

    prompt: float | None
    completion: float | None


def check_output(output_dir: Path | None, *, is_needed: bool) -> None:
    """Raises ConfigError where a folder to write is needed and not given, or cannot be written."""
    if is_needed and output_dir is None:
        raise ConfigError("--output_dir is missing; give the folder to write, or --dry_run.")
    if is_needed:
        check_outputs({"--output_dir": output_dir})


@dataclass(frozen=True)
class EvalRequest:
    """What one `medrm evaluate` is asked to do; `judge` says how a judge is asked."""

    model: str = option(
        MISSING,
        "adapter folder, hub repo, base model such as phantom-base, a service's model, a mapping "
        "file of another's reward model, or mock:NAME",
    )
    benchmark: str = option(
        MISSING,
        "a name in evaluation/benchmarks/, or a set of your own: a file or folder, a name in "
        "data/, or a hub data set id",
    )
    output_dir: Path | None = option(
        None,
        "evaluation folder to write; a part of the same evaluation in it is continued (needed but "
        "for --dry_run)",
    )
    revision: str | None = option(None, "branch, tag or commit of a hub repo")
    base: str | None = option(
        None,
        "where the base of a saved model lies now: a folder or ORG/NAME[@REVISION] (default: it is "
        "looked for); its weights must be those that were trained on",
    )
    data_root: str | None = option(None, "where the benchmark's files lie")
    image_root: str | None = as_in(DataOptions, "image_root")
    image_conversion: str | None = option(
        None, "how DICOM and NIfTI images become pictures (default: as trained, else as set says)"
    )
    benchmark_name: str | None = as_in(DataOptions, "benchmark_name")
    protocol: Literal["official", "robust", "both"] = option("both", "how verdicts are counted")
    department_map: str | None = option(None, "YAML or JSON file: organ to department")
    aggregation: Literal["shares", "dawid_skene", "mace"] = as_in(DataOptions, "aggregation")
    vote_ties: Literal["keep", "split", "drop"] = as_in(DataOptions, "vote_ties")
    vote_strength: Literal["share", "weight", "ignore"] = as_in(DataOptions, "vote_strength")
    min_vote_seconds: float = as_in(DataOptions, "min_vote_seconds")
    annotator_weights: str | None = as_in(DataOptions, "annotator_weights")
    readout: str | None = option(
        None,
        "how a judge or a base model is read (default: as it was saved; a base: generate)",
        OPTION_READOUTS,
    )
    engine: str = option(
        "transformers", "what runs the model (openai: OPENAI_BASE_URL, OPENAI_API_KEY)", ENGINES
    )
    shared_prefix: Literal["on", "off"] = as_in(ModelOptions, "shared_prefix")
    deterministic: bool = as_in(EvaluationOptions, "deterministic")
    evaluation_batch_rows: int | None = option(
        None,
        "rows (case and answer, or case and order) scored at once (default: 32); fewer take less "
        "memory, and may change a score by rounding",
    )
    trust_remote_code: bool = option(False, "run the model's own code")
    like: str | None = option(
        None,
        "saved model whose base this is: it is read as the saved model is (sizes of images, chat "
        "template, precision, quantisation, dimensions; max_length and a judge's prompt where they "
        "apply), so that the two can be compared",
    )
    min_pixels: int | None = option(
        None, "fewest pixels of an image (default: the processor's own); see max_pixels"
    )
    max_pixels: int | None = option(
        None,
        "most pixels of an image (default: the processor's own). A saved model keeps what it was "
        "trained with: other values are refused, because on other inputs it is another model",
    )
    max_length: int | None = option(
        None,
        "most tokens of a row that is read (default: what the model can); a reward model keeps its "
        "own",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "precision of the weights (default: as trained; a base: its own on a GPU, float32 on a "
        "CPU). It is recorded: a comparison names it where it differs",
    )
    name: str | None = option(
        None,
        "under which a set of your own is reported, as benchmark_name; where the benchmark has a "
        "name in evaluation/benchmarks/, or benchmark_name is given too, that of the model",
    )
    model_name: str | None = option(None, "under which the model is reported (default: its own)")
    no_images: bool = option(
        False, "keep no small copies of the images, for data that may not be shared"
    )
    no_remote_images: bool = option(
        False,
        "refuse to send images to a service (--engine openai), whichever host it runs on; "
        "--no_images is about copies that are kept",
    )
    overwrite_output_dir: bool = option(
        False, "replace another evaluation in output_dir instead of refusing to start"
    )
    dry_run: bool = option(
        False,
        "count calls, tokens and, with prices, cost; no model is loaded or asked, nothing written",
    )
    price_per_million_prompt_tokens: float | None = option(
        None, "for the cost of --dry_run, in any currency"
    )
    price_per_million_completion_tokens: float | None = option(
        None, "for the cost of --dry_run: of the replies, counted at their longest"
    )
    judge: JudgeOptions = field(default_factory=JudgeOptions)

    def __post_init__(self) -> None:
        check_output(self.output_dir, is_needed=not self.dry_run)
        wrong = [price for price in self.prices if price is not None and not 0 <= price < math.inf]
        _check_rows(self.evaluation_batch_rows)
        refuse([f"a price per million tokens is {price}; give 0 or more" for price in wrong])

    @property
    def prices(self) -> Prices:
        """The prices for the cost of a dry run."""
        return Prices(
            self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        )

    def asked_about(self, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        """Returns what a model that was not trained is asked about.

        A judge is asked about all of Med-RewardBench's dimensions where the benchmark labels one of
        them: the released scorer drops a reply that lacks any.

        Args:
            dimensions: that the benchmark labels.
        """
        readout = self.readout or self.judge.judge_readout
        judges = self.model.startswith(PREFIX) or readout not in BASE_READOUTS
        return DIMENSIONS if judges and {*dimensions} <= {*DIMENSIONS} else dimensions


def _check_rows(rows: int | None) -> None:
    if rows is not None and rows < 1:
        raise ConfigError(f"evaluation_batch_rows is {rows}; give 1 or more")


@dataclass(frozen=True)
class CheckRequest:
    """What one `medrm check` is asked to do.

    Attributes:
        model: a base model or a saved one, by name or folder.
    """

    model: str
    readout: str | None = option(
        None,
        "the readout whose prompt is shown (default: as it was saved; a base: reward)",
        ("reward", *OPTION_READOUTS),
    )
    revision: str | None = as_in(EvalRequest, "revision")
    base: str | None = as_in(EvalRequest, "base")
    dtype: Literal["auto", "float32", "bfloat16"] = as_in(ModelOptions, "dtype")
    min_pixels: int | None = as_in(ModelOptions, "min_pixels")
    max_pixels: int | None = as_in(ModelOptions, "max_pixels")
    max_length: int | None = as_in(ModelOptions, "max_length")
    trust_remote_code: bool = as_in(EvalRequest, "trust_remote_code")
    json: bool = option(False, "print one JSON object instead of lines")

    def __post_init__(self) -> None:
        if not self.model.startswith(PREFIX):
            check_model_name(self.model)


@dataclass(frozen=True)
class MergeRequest:
    """What one `medrm merge` is asked to do.

    Attributes:
        model: a saved model, by folder or hub repository.
    """

    model: str
    output: Path = option(MISSING, "folder to write; it appears complete or not at all")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "precision of the weights that are written (default: as trained)"
    )
    revision: str | None = as_in(EvalRequest, "revision")
    base: str | None = as_in(EvalRequest, "base")
    overwrite_output_dir: bool = option(
        False, "replace what an earlier merge or export has left in output"
    )

    def __post_init__(self) -> None:
        check_model_name(self.model)


@dataclass(frozen=True, kw_only=True)
class ExportRequest(MergeRequest):
    """What one `medrm export` is asked to do."""

    to: Literal["vllm", "peft", "seq_cls"] = option(
        MISSING,
        "vllm: an adapter with its own linear head, merged where vLLM takes none; peft: a folder "
        "that PEFT loads, the head beside it; seq_cls: a merged checkpoint with a linear head as "
        "sequence classifiers have it",
    )


@dataclass(frozen=True)
class LeaderboardRequest:
    """What one `medrm leaderboard` is asked to do.

    Attributes:
        leaderboard: a name in evaluation/leaderboards/, or a YAML file of that form; the command
            line may lack it.
        evaluate: the words that start `medrm evaluate` in a new process.
        judge: how the judges are asked; an entry's own options come before it.
    """

    leaderboard: str | None
    evaluate: Sequence[str]
    output_dir: Path | None = option(
        None, "folder for the models and the table (needed but for --list and --dry_run)"
    )
    benchmark: str | None = option(None, "in place of the one that the leaderboard names")
    data_root: str | None = as_in(EvalRequest, "data_root")
    only: list[str] = option([], "names of the models to evaluate")
    primary_dimension: str | None = option(
        None, "dimension to rank by (default: overall, else the first)"
    )
    trust_remote_code: bool = option(
        False, "run the code of the checkpoints that the list marks so"
    )
    no_remote_images: bool = as_in(EvalRequest, "no_remote_images")
    readout: str | None = as_in(EvalRequest, "readout")
    shared_prefix: Literal["on", "off"] = as_in(EvalRequest, "shared_prefix")
    deterministic: bool = as_in(EvalRequest, "deterministic")
    evaluation_batch_rows: int | None = as_in(EvalRequest, "evaluation_batch_rows")
    min_pixels: int | None = as_in(EvalRequest, "min_pixels")
    max_pixels: int | None = as_in(EvalRequest, "max_pixels")
    max_length: int | None = as_in(EvalRequest, "max_length")
    dtype: Literal["auto", "float32", "bfloat16"] = as_in(EvalRequest, "dtype")
    dry_run: bool = as_in(EvalRequest, "dry_run")
    price_per_million_prompt_tokens: float | None = option(
        None, "for the cost of --dry_run; an entry's own price comes before it"
    )
    price_per_million_completion_tokens: float | None = option(
        None, "likewise, of the replies, counted at their longest"
    )
    judge: JudgeOptions = field(default_factory=JudgeOptions)

    def __post_init__(self) -> None:
        if self.leaderboard is None:
            raise ConfigError(
                "No leaderboard is named; give a name in evaluation/leaderboards/ or a YAML file, "
                "or --list to see all."
            )
        check_output(self.output_dir, is_needed=not self.dry_run)
        _check_rows(self.evaluation_batch_rows)


@dataclass(frozen=True)
class ThroughputOptions:
    """What one `medrm throughput` measures, and how long."""

    model: str | None = option(
        None, "Base model to measure: hub id, folder, or phantom-base. None: a shape."
    )
    shape: Literal["tiny", "small", "qwen2_5_vl_7b"] = option(
        "small",
        "Qwen2.5-VL shape with random weights: small (a decoder of 25 M parameters), "
        "qwen2_5_vl_7b (the true one, for a GPU), tiny (to try the command).",
    )
    image_tokens: int = option(
        1024, "Image tokens of a case; a checkpoint's processor may take the nearest it can."
    )
    question_tokens: int = option(
        64, "Text tokens before the answers; a checkpoint's template comes on top."
    )
    answer_tokens: int = option(160, "Tokens of each answer; likewise.")
    tasks: list[str] = option(list(TASKS), "Of train, score.")
    answers: list[int] = option([2, 4, 8], "Answers of a case (K).")
    cases: int = option(1, "Cases of a step; a GPU needs more to be busy.")
    rounds: int = option(3, "Rounds; in each, every variant runs one step.")
    quick: bool = option(
        False, "A quarter of the tokens; training with the fewest answers, scoring with the most."
    )
    gradient_checkpointing: bool = option(False, "Compute the decoder's activations twice.")
    device: str | None = option(None, "cpu or cuda. None: the GPU if there is one.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Weights' precision; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    output: str | None = option(
        None, "JSON file to write; with the ending .md the table alone, in Markdown."
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; give {_LEAST.get(name, 1)} or more"
            for name, value in vars(self).items()
            if type(value) is int and value < _LEAST.get(name, 1)
        ]
        if not self.answers or min(self.answers) < 2 or max(self.answers) > 8:
            problems.append(f"answers is {self.answers}; give numbers from 2 to 8")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            problems.append(f"tasks is {self.tasks}; give train, score or both")
        refuse(problems)

    @property
    def plan(self) -> list[tuple[str, int]]:
        """The (task, K) to measure."""
        numbers = sorted(set(self.answers))
        chosen = {"train": numbers[:1], "score": numbers[-1:]} if self.quick else {}
        return [
            (task, answers)
            for task in TASKS
            if task in self.tasks
            for answers in chosen.get(task, numbers)
        ]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens to measure with: of the image, the question and each answer."""
        return tuple(
            max(_LEAST.get(name, 1), vars(self)[name] // (4 if self.quick else 1))
            for name in ("image_tokens", "question_tokens", "answer_tokens")
        )
