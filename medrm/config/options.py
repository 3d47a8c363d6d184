"""The groups of options of one run: frozen, flat, without torch.

The training arguments are not here: they belong to the objective.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from medrm.config.data import DataOptions
from medrm.config.field import option
from medrm.errors import ConfigError, nearest
from medrm.readouts import readout_names

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
NO_CONTROLS = "none"
"""In place of the list, on the command line and in recipes: only the headline is measured."""


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
        "medrm/models/prefix_sharing/batch.py) run separate rows and say so. off: separate rows, "
        "for checking.",
    )
    trust_remote_code: bool = option(False, "Run code that the checkpoint ships.")
    load_in_4bit: bool = option(False, "QLoRA: load the base in 4 bits (NF4, bitsandbytes).")
    load_in_8bit: bool = option(False, "QLoRA: load the base in 8 bits (bitsandbytes).")
    min_pixels: int | None = option(None, "Fewest pixels of an image. None: the processor's own.")
    max_pixels: int | None = option(None, "Most pixels of an image. None: the processor's own.")
    max_length: int | None = option(
        None, "Most tokens of one row, image included. Longer cases are set aside, never cut."
    )
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
        for name in names:
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
        list(CONTROLS),
        f"Rows beside the headline, comma separated, of {', '.join(CONTROLS)}; none: only the "
        "headline; by default those that apply.",
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
        if self.controls == [NO_CONTROLS]:
            object.__setattr__(self, "controls", [])
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
    judge_readout: str = option(
        "generate",
        "How a verdict is read: generate and parse; skeleton (the JSON is given, the letters' "
        "probabilities are compared); votes (the majority of several samples).",
        readout_names("judge"),
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
