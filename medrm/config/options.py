"""The groups of options of one run: frozen, flat, without torch.

The training arguments are not here: they belong to the objective.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from medrm.errors import ConfigError, nearest

CONTROLS = (
    "zero_shot_verdict",
    "zero_shot_averaged",
    "zero_shot_likelihood",
    "untrained_head",
    "frozen_probe",
    "base_skeleton",
    "base_averaged",
    "skeleton",
    "init_adapter",
    "blank_images",
    "shuffled_images",
    "text_only",
)
"""Rows beside the headline; a run has those that apply to what it trains."""
READOUTS = ("generate", "skeleton", "votes", "verdict_probability", "likelihood")
"""How a judge or a base model can be asked to be read."""
DEFAULT_SHARES = (0.7, 0.1, 0.2)
FEWEST_FOLDS, MOST_FOLDS = 2, 20


def option(default: Any, text: str) -> Any:
    """Returns a dataclass field with its one description."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataOptions:
    """What is learned from and measured on."""

    train_data: str | None = option(
        None, "Training cases: a file or folder, a name in data/, or a hub data set id."
    )
    benchmark: str | None = option(
        None,
        "What is measured: a name in evaluation/benchmarks/. None: the training data's test part.",
    )
    data_root: str | None = option(None, "Where the benchmark's files lie.")
    dimensions: list[str] | None = option(
        None, "Dimensions to learn, comma separated. None: those that the training labels mention."
    )
    primary_dimension: list[str] | None = option(
        None,
        "The dimension of the headline; of several, comma separated, the first that is labelled, "
        "where `any` is the first of all. None: overall where labelled, else the first.",
    )
    split_by_cluster: str | None = option(
        None,
        "Shares of train, development and test when one set serves for all (default 0.7,0.1,0.2).",
    )
    development_share: float = option(
        0.1,
        "Share of the training clusters kept for choosing, with a benchmark of its own or folds.",
    )
    crossfit: int = option(
        0,
        "Folds of a cross-fitted run, 2 to 20, in which one set serves for all: a model is trained "
        "for each, on the other folds, and judges it. 0: one model, one test part.",
    )
    aggregation: Literal["shares", "dawid_skene"] = option(
        "shares", "How votes become label shares: as counted, or weighted by Dawid-Skene."
    )
    vote_ties: Literal["keep", "split", "drop"] = option(
        "keep", "Tie votes: kept as they are, half a vote for each answer, or not counted."
    )
    annotator_weights: str | None = option(
        None, 'Weight of every annotator\'s votes, such as {"senior": 2, "junior": 1}.'
    )
    department_map: str | None = option(None, "YAML or JSON file: organ to department.")
    max_excluded_share: float = option(
        0.01, "Largest share of training cases that may be set aside (bad images, over-long)."
    )

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.development_share < 1:
            problems.append(f"development_share is {self.development_share}; give 0 < share < 1")
        if not 0 <= self.max_excluded_share <= 1:
            problems.append(f"max_excluded_share is {self.max_excluded_share}; give 0 to 1")
        try:
            _ = self.shares
        except ConfigError as error:
            problems.append(str(error))
        try:
            _ = self.weights_by_annotator
        except ConfigError as error:
            problems.append(str(error))
        if self.data_root is not None and self.benchmark is None:
            problems.append("data_root needs --benchmark NAME: it is where that benchmark lies")
        if None not in (self.train_data, self.benchmark, self.split_by_cluster):
            problems.append(
                "split_by_cluster splits one set, but train_data and benchmark are two; leave it "
                "out, or give one of them (development_share splits the training data)"
            )
        problems += self._crossfit_problems()
        if self.train_data is None and self.benchmark is None:
            problems.append(
                "there is nothing to train on: give --train_data PATH_OR_NAME or --benchmark NAME"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    def _crossfit_problems(self) -> list[str]:
        problems = []
        if self.crossfit and not FEWEST_FOLDS <= self.crossfit <= MOST_FOLDS:
            problems.append(
                f"crossfit is {self.crossfit}; give {FEWEST_FOLDS} to {MOST_FOLDS} folds, or 0 for "
                "none"
            )
        if self.crossfit and None not in (self.train_data, self.benchmark):
            problems.append(
                "crossfit cuts one set into folds, but train_data and benchmark are two; leave one "
                "of them out (--benchmark null, where a recipe names it)"
            )
        if self.crossfit and self.split_by_cluster is not None:
            problems.append(
                "crossfit judges every case, so there is no test part; leave split_by_cluster out "
                "(development_share is what each model keeps of its training folds to choose by)"
            )
        return problems

    @property
    def weights_by_annotator(self) -> dict[str, float] | None:
        """The annotators' weights, None where none is given.

        Raises:
            ConfigError: not a mapping of names to positive numbers.
        """
        if self.annotator_weights is None:
            return None
        try:
            given = json.loads(self.annotator_weights)
            weights = {str(name): float(weight) for name, weight in given.items()}
        except (ValueError, TypeError, AttributeError):
            weights = {}
        if not weights or min(weights.values()) <= 0:
            raise ConfigError(
                f"annotator_weights is {self.annotator_weights!r}; give positive numbers by "
                'annotator, such as {"senior": 2}'
            )
        return weights

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of train, development and test.

        Raises:
            ConfigError: not three positive numbers that sum to 1.
        """
        if self.split_by_cluster is None:
            return DEFAULT_SHARES
        try:
            shares = tuple(float(part) for part in self.split_by_cluster.split(","))
        except ValueError:
            shares = ()
        if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"split_by_cluster is {self.split_by_cluster!r}; give three positive shares that "
                "sum to 1, such as 0.7,0.1,0.2"
            )
        return shares


@dataclass(frozen=True)
class ModelOptions:
    """The base model, how its inputs are made and where the reward is read."""

    model_name_or_path: str = option("phantom-base", "Base model: hub id, folder, or phantom-base.")
    model_revision: str = option("main", "Branch, tag or commit of the base model on the hub.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Weights' precision; auto: the checkpoint's own on a GPU, float32 on a CPU."
    )
    attn_implementation: str = option(
        "sdpa", "Attention of transformers; sdpa alone shares prefixes."
    )
    shared_prefix: Literal["on", "off"] = option(
        "on",
        "Read what the answers of a case share (images, question, template) once, in training and "
        "in scoring: exact, at the cost of the unique tokens. Models that cannot (see "
        "medrm/models/forks.py) run separate rows and say so. off: separate rows, for checking.",
    )
    trust_remote_code: bool = option(False, "Run code that the checkpoint ships.")
    load_in_4bit: bool = option(False, "QLoRA: load the base in 4 bits (NF4, bitsandbytes).")
    load_in_8bit: bool = option(False, "QLoRA: load the base in 8 bits (bitsandbytes).")
    min_pixels: int | None = option(None, "Fewest pixels of an image. None: the processor's own.")
    max_pixels: int | None = option(None, "Most pixels of an image. None: the processor's own.")
    max_length: int | None = option(
        None, "Most tokens of one row, image included. Longer cases are set aside, never cut."
    )
    image_feature_memory_mb: int = option(
        0,
        "Megabytes of main memory for what a frozen vision tower says of each image (Qwen2.5-VL-7B "
        "at 1,024 tokens: 7 MB), so that later epochs and orders skip it; 0: none.",
    )
    image_feature_dir: str | None = option(
        None, "Folder for the same, shared by processes and later runs; see recipes/README.md."
    )
    image_feature_dir_mb: int = option(20_000, "Megabytes there; the least recently used go first.")
    reward_template: Literal["turn_end", "generation_prompt"] = option(
        "generation_prompt",
        "What follows the answer before the score is read: the turn's end alone, or the generation "
        "prompt of the next turn as well.",
    )
    contextual_orders: int = option(
        0,
        "Let an answer see the answers before it (listwise scoring, as MR2-RM, arXiv 2604.10966): "
        "in how many orders of the answers a reward is read and averaged, 1 or an even number. 0: "
        "each answer is scored alone. Needs shared_prefix on.",
    )
    head: Literal["mlp", "linear"] = option(
        "mlp", "Reward head: two-layer SiLU MLP (BaseReward, arXiv 2509.16127) or linear."
    )
    head_hidden_size: int | None = option(
        None, "Width of the MLP head's middle layer. None: the model's hidden size."
    )

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("load_in_4bit and load_in_8bit exclude each other; choose one")
        count = self.contextual_orders
        if count < 0 or (count > 1 and count % 2):
            raise ConfigError(
                f"contextual_orders is {count}; give 0, 1 or an even number, so that every two "
                "answers stand both ways equally often"
            )
        if count and self.shared_prefix == "off":
            raise ConfigError("contextual_orders needs shared_prefix on: an answer's row is a fork")
        options = dataclasses.asdict(self)
        names = ("min_pixels", "max_pixels", "max_length", "head_hidden_size")
        if self.image_feature_memory_mb < 0:
            raise ConfigError("image_feature_memory_mb is negative; give 0 or more megabytes")
        for name in (*names, "image_feature_dir_mb"):
            if options[name] is not None and options[name] < 1:
                raise ConfigError(f"{name} is {options[name]}; give 1 or more, or leave it out")


@dataclass(frozen=True)
class AdapterOptions:
    """What is trained beside the head."""

    use_peft: bool = option(True, "Train a LoRA adapter; false: full fine-tuning.")
    lora_r: int = option(16, "LoRA rank.")
    lora_alpha: int = option(32, "LoRA alpha.")
    lora_dropout: float = option(0.0, "LoRA dropout.")
    use_rslora: bool = option(False, "Rank-stabilised LoRA: scale by alpha / sqrt(r).")
    use_dora: bool = option(False, "DoRA: weight-decomposed LoRA.")
    lora_vision: bool = option(False, "Adapt the vision tower's linear layers as well.")

    def __post_init__(self) -> None:
        if self.lora_r < 1 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                f"lora_r {self.lora_r}, lora_alpha {self.lora_alpha}, lora_dropout "
                f"{self.lora_dropout}: give r >= 1, alpha >= 1, 0 <= dropout < 1"
            )


@dataclass(frozen=True)
class EvaluationOptions:
    """How it is measured before and after."""

    controls: list[str] = option(
        list(CONTROLS), f"Rows beside the headline, comma separated, of {', '.join(CONTROLS)}."
    )
    evaluation_batch_rows: int = option(32, "Rows (case and answer) scored at once.")
    allowed_differences: list[str] = option(
        [], "Differences between before and after, besides the weights, that the recipe declares."
    )
    no_images: bool = option(
        False, "Keep no small copies of the benchmark's images, for data that may not be shared."
    )
    overwrite_output_dir: bool = option(
        False, "Replace an earlier run in output_dir instead of refusing to start."
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.controls if name not in CONTROLS]
        if unknown:
            raise ConfigError(
                f"controls: {', '.join(unknown)} not known; accepted: {', '.join(CONTROLS)}"
                + nearest(unknown[0], CONTROLS)
            )
        if self.evaluation_batch_rows < 1:
            raise ConfigError(
                f"evaluation_batch_rows is {self.evaluation_batch_rows}; give 1 or more"
            )


def check_together(model: ModelOptions, adapter: AdapterOptions) -> None:
    """Refuses options of two groups that exclude each other.

    Raises:
        ConfigError: full fine-tuning of quantised weights.
    """
    if not adapter.use_peft and (model.load_in_4bit or model.load_in_8bit):
        raise ConfigError(
            "use_peft false trains all weights, which load_in_4bit and load_in_8bit freeze; leave "
            "out one of them"
        )


@dataclass(frozen=True)
class JudgeOptions:
    """How a generative judge is asked and read; reward models leave these as they are."""

    judge_prompt: str = option(
        "json",
        "Prompt of a judge: json (all dimensions in one JSON object), json_per_dimension (each in "
        "a call of its own), rationale_json (reasons first) or json_short (few words, for a small "
        "model that is trained on it).",
    )
    prompt_file: str | None = option(
        None,
        "A prompt of your own in place of judge_prompt: text with {question}, {answer_a} and "
        "{answer_b}, or YAML with the keys system and user.",
    )
    judge_readout: Literal["generate", "skeleton", "votes"] = option(
        "generate",
        "How a verdict is read: generate and parse; skeleton (the JSON is given, the letters' "
        "probabilities are compared); votes (the majority of several samples).",
    )
    votes: int = option(1, "Samples of each call; more than 1 with judge_readout votes.")
    judge_temperature: float = option(0.0, "Temperature of generated verdicts; 0: greedy.")
    max_new_tokens: int = option(512, "Most tokens of a generated verdict.")
    init_adapter: str | None = option(
        None, "Judge adapter to go on from: a folder or hub repository."
    )

    def __post_init__(self) -> None:
        problems = []
        if self.votes < 1 or self.max_new_tokens < 1:
            problems.append(
                f"votes {self.votes}, max_new_tokens {self.max_new_tokens}: give 1 or more"
            )
        if self.judge_temperature < 0:
            problems.append(f"judge_temperature is {self.judge_temperature}; give 0 or more")
        sampled = self.judge_readout == "votes"
        if sampled != (self.votes > 1) or (sampled and self.judge_temperature == 0):
            problems.append(
                f"judge_readout {self.judge_readout} with votes {self.votes} and judge_temperature "
                f"{self.judge_temperature}: several votes need judge_readout votes and a "
                "temperature above 0, and it needs them"
            )
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True)
class ObjectiveOptions:
    """Which objective trains."""

    objective: str = option(
        "bradley_terry",
        "How preferences become a loss: bradley_terry (a reward model); judge_sft, judge_dpo or "
        "judge_grpo (a generative judge).",
    )


GROUPS = (
    DataOptions,
    ModelOptions,
    AdapterOptions,
    EvaluationOptions,
    JudgeOptions,
    ObjectiveOptions,
)


@dataclass(frozen=True)
class Run:
    """One resolved run. `training` is the objective's subclass of transformers' arguments."""

    data: DataOptions
    model: ModelOptions
    adapter: AdapterOptions
    evaluation: EvaluationOptions
    judge: JudgeOptions
    objective: str
    training: Any

    def resolved(self) -> dict[str, Any]:
        """Returns every option by its flat name, as written to run.json."""
        flat: dict[str, Any] = {"objective": self.objective}
        for group in (self.data, self.model, self.adapter, self.evaluation, self.judge):
            flat.update(dataclasses.asdict(group))
        flat.update(self.training.to_dict())
        return flat
