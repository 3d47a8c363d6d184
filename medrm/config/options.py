"""The groups of options of one run: frozen, flat, without torch.

The training arguments are not here: they belong to the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from medrm.config.option import option, weights_of_annotators
from medrm.errors import ConfigError, applying, nearest, refuse
from medrm.readouts import JUDGE_READOUTS

DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)
FEWEST_FOLDS, MOST_FOLDS = 2, 20


@dataclass(frozen=True)
class DataOptions:
    """What is learned from and measured on."""

    train_data: str | None = option(
        None, "Training cases: a path, name in data/, hub id, or mix A=0.7,B=0.3."
    )
    mixture_seed: int = option(0, "Decides which cases of a mix, or below a cap, are drawn.")
    max_cases_per_prompt: int | None = option(
        None, "Most training cases with one question about the same images."
    )
    max_cases_per_image: int | None = option(None, "Most training cases that show one image.")
    benchmark: str | None = option(
        None,
        "What is measured: a name in evaluation/benchmarks/, or a set like train_data. None: the "
        "test part of train_data.",
    )
    benchmark_name: str | None = option(
        None, "Name of a set of your own in reports. None: its file's or folder's."
    )
    data_root: str | None = option(None, "Where the benchmark's files lie.")
    image_root: str | None = option(None, "Folder of images: searched first; links may lead there.")
    image_conversion: str | None = option(
        None, "How DICOM and NIfTI become pictures, as ct_abdomen (data/README.md)."
    )
    dimensions: list[str] | None = option(
        None, "Dimensions to learn, comma separated. None: all that are labelled."
    )
    primary_dimension: list[str] | None = option(
        None,
        "The dimension of the headline; of several, comma separated, the first that is labelled "
        "(`any`: the first of all). None: overall where labelled, else the first.",
    )
    split_by_cluster: str | None = option(
        None, "Shares of train, development, test of one set (default 0.7,0.1,0.2)."
    )
    development_share: float = option(
        0.1,
        "Share of training clusters kept for choosing.",
    )
    crossfit: int = option(
        0,
        "Folds, 2 to 20, of a cross-fitted run on one set: a model for each is trained on "
        "the others and judges it. 0: one model, one test part.",
    )
    aggregation: Literal["shares", "dawid_skene", "mace"] = option(
        "shares", "How votes become label shares: as counted, or by a model of the annotators."
    )
    vote_ties: Literal["keep", "split", "drop"] = option(
        "keep", "Tie votes: kept as they are, half a vote for each answer, or not counted."
    )
    vote_strength: Literal["share", "weight", "ignore"] = option(
        "share",
        "What slight votes count: three quarters for their answer and one for the other, half a "
        "vote (and strong ones one and a half), or a vote.",
    )
    min_vote_seconds: float = option(0.0, "Votes that took less, as they state, are dropped.")
    annotator_weights: str | None = option(
        None, 'Weight of every annotator\'s votes, such as {"senior": 2, "junior": 1}.'
    )
    department_map: str | None = option(None, "YAML or JSON file: organ to department.")
    max_excluded_share: float = option(
        0.01, "Largest share of cases set aside (bad images, too long)."
    )

    def __post_init__(self) -> None:
        unparsed: dict[str, bool] = {}
        for name in ("split_fractions", "weights_by_annotator"):
            try:
                getattr(self, name)
            except ConfigError as error:
                unparsed[str(error)] = True
        caps = {
            name: getattr(self, name)
            for name in ("max_cases_per_prompt", "max_cases_per_image")
            if getattr(self, name) is not None
        }
        two_sets = None not in (self.train_data, self.benchmark)
        folds, has_split = self.crossfit, self.split_by_cluster is not None
        share, excluded = self.development_share, self.max_excluded_share
        checks = {
            f"development_share is {share}; give 0 < share < 1": not 0 < share < 1,
            f"max_excluded_share is {excluded}; give 0 to 1": not 0 <= excluded <= 1,
            f"min_vote_seconds is {self.min_vote_seconds}; give 0 or more": (
                not 0 <= self.min_vote_seconds < math.inf
            ),
            **unparsed,
            "data_root needs --benchmark NAME: it is where that benchmark lies": (
                self.data_root is not None and self.benchmark is None
            ),
            "benchmark_name needs --benchmark PATH: it names a set of your own": (
                self.benchmark_name is not None and self.benchmark is None
            ),
            **{f"{name} is {cap}; give 1 or more": cap < 1 for name, cap in caps.items()},
            f"{' and '.join(caps)} need --train_data: what is trained on is capped": (
                bool(caps) and self.train_data is None
            ),
            "split_by_cluster splits one set, but train_data and benchmark are two; leave it "
            "out, or give one of them (development_share splits the training data)": (
                two_sets and has_split
            ),
            f"crossfit is {folds}; give {FEWEST_FOLDS} to {MOST_FOLDS} folds, or 0 for none": (
                folds != 0 and not FEWEST_FOLDS <= folds <= MOST_FOLDS
            ),
            "crossfit cuts one set into folds, but train_data and benchmark are two; leave one "
            "of them out (--benchmark null, where a recipe names it)": folds != 0 and two_sets,
            "crossfit judges every case, so there is no test part; leave split_by_cluster out "
            "(development_share is what each model keeps of its training folds to choose by)": (
                folds != 0 and has_split
            ),
            "there is nothing to train on: give --train_data PATH_OR_NAME or --benchmark NAME": (
                self.train_data is None and self.benchmark is None
            ),
        }
        refuse(applying(checks))

    @property
    def weights_by_annotator(self) -> dict[str, float] | None:
        """The annotators' weights, None where none is given.

        Raises:
            ConfigError: not a mapping of names to positive numbers.
        """
        return weights_of_annotators(self.annotator_weights)

    @property
    def split_fractions(self) -> tuple[float, ...]:
        """The fractions of train, development and test.

        Raises:
            ConfigError: not three positive numbers that sum to 1.
        """
        if self.split_by_cluster is None:
            return DEFAULT_FRACTIONS
        try:
            fractions = tuple(map(float, self.split_by_cluster.split(",")))
        except ValueError:
            fractions = ()
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ConfigError(
                f"split_by_cluster is {self.split_by_cluster!r}; give three positive shares that "
                "sum to 1, such as 0.7,0.1,0.2"
            )
        return fractions


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
        "in scoring: the same numbers up to rounding, at the cost of the unique tokens. Models "
        "that cannot run separate rows and say so. off: separate rows, for checking.",
    )
    trust_remote_code: bool = option(False, "Run code that the checkpoint ships.")
    load_in_4bit: bool = option(False, "QLoRA: load the base in 4 bits (NF4, bitsandbytes).")
    load_in_8bit: bool = option(False, "QLoRA: load the base in 8 bits (bitsandbytes).")
    min_pixels: int | None = option(None, "Fewest pixels of an image. None: the processor's own.")
    max_pixels: int | None = option(None, "Most pixels of an image. None: the processor's own.")
    max_length: int | None = option(
        None, "Most tokens of a row, image included; longer cases are set aside."
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
        "linear",
        "Reward head: one linear layer, which vLLM serves, or a two-layer SiLU MLP (BaseReward, "
        "arXiv 2509.16127).",
    )
    head_hidden_size: int | None = option(
        None, "Width of the MLP head's middle layer. None: the model's hidden size."
    )

    def __post_init__(self) -> None:
        orders = self.contextual_orders
        sizes = ("min_pixels", "max_pixels", "max_length", "head_hidden_size")
        stated = {name: getattr(self, name) for name in sizes if getattr(self, name) is not None}
        checks = {
            "load_in_4bit and load_in_8bit exclude each other; choose one": (
                self.load_in_4bit and self.load_in_8bit
            ),
            f"contextual_orders is {orders}; give 0, 1 or an even number, so that every two "
            "answers stand both ways equally often": orders < 0 or (orders > 1 and orders % 2 == 1),
            "contextual_orders needs shared_prefix on: an answer's row is a fork": (
                orders != 0 and self.shared_prefix == "off"
            ),
            **{
                f"{name} is {size}; give 1 or more, or leave it out": size < 1
                for name, size in stated.items()
            },
        }
        refuse(applying(checks))


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
    lora_routers: bool = option(False, "Adapt what chooses the experts of a MoE as well.")

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
    deterministic: bool = option(
        False,
        "Score each answer, and ask a judge each question, by itself and by deterministic kernels: "
        "bit-identical whatever else is scored, also in bfloat16; answers of a case share nothing.",
    )
    allowed_differences: list[str] = option(
        [], "Differences besides the weights that the recipe declares."
    )
    no_images: bool = option(
        False, "Keep no small copies of images, for data that may not be shared."
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
        rows = self.evaluation_batch_rows
        refuse(applying({f"evaluation_batch_rows is {rows}; give 1 or more": rows < 1}))


STAGES = ("before", "train", "after", "compare")
"""The parts of a run, in their order."""


@dataclass(frozen=True)
class RunOptions:
    """Which part of a run is done now, and whether an earlier one is replaced."""

    stages: list[str] = option(
        list(STAGES),
        "What is done now, comma separated: before (the base is measured), train, after (the saved "
        "adapter is measured), compare. The rest is done by another start.",
    )
    seeds: list[int] | None = option(
        None,
        "Train with each of these seeds, comma separated, in OUTPUT_DIR/seed-N.",
    )
    overwrite_output_dir: bool = option(
        False, "Replace an earlier run in output_dir instead of going on with it."
    )
    dry_run: bool = option(
        False,
        "Say what the run would do and need, without weights; write nothing.",
    )

    def __post_init__(self) -> None:
        named = self.seeds or []
        wrong = f"seeds is {','.join(map(str, named))}; give"
        checks = {
            f"{wrong} each seed once": len({*named}) < len(named),
            f"{wrong} whole numbers from 0 to 2^32 - 1": not all(0 <= n < 2**32 for n in named),
        }
        refuse(applying(checks))
        unknown = [name for name in self.stages if name not in STAGES]
        if unknown:
            raise ConfigError(
                f"stages: {', '.join(unknown)} not known; accepted: {', '.join(STAGES)}"
                + nearest(unknown[0], STAGES)
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
        JUDGE_READOUTS,
    )
    votes: int = option(1, "Samples of each call; more than 1 with judge_readout votes.")
    judge_temperature: float = option(0.0, "Temperature of generated verdicts; 0: greedy.")
    max_new_tokens: int = option(512, "Most tokens of a generated verdict.")
    init_adapter: str | None = option(
        None, "Judge adapter to go on from: a folder or hub repository."
    )

    def __post_init__(self) -> None:
        sampled = self.judge_readout == "votes"
        checks = {
            f"votes {self.votes}, max_new_tokens {self.max_new_tokens}: give 1 or more": (
                self.votes < 1 or self.max_new_tokens < 1
            ),
            f"judge_temperature is {self.judge_temperature}; give 0 or more": (
                self.judge_temperature < 0
            ),
            f"judge_readout {self.judge_readout} with votes {self.votes} and judge_temperature "
            f"{self.judge_temperature}: several votes need judge_readout votes and a "
            "temperature above 0, and it needs them": (
                sampled != (self.votes > 1) or (sampled and self.judge_temperature == 0)
            ),
        }
        refuse(applying(checks))
