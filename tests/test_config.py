"""The strict parser: types, overrides, and every problem in one message."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from medrm.config.options import (
    CONTROLS,
    AdapterOptions,
    DataOptions,
    EvaluationOptions,
    ModelOptions,
)
from medrm.config.parse import Run, parse_run, read_yaml
from medrm.data.case_set import read_description
from medrm.errors import ConfigError
from medrm.exchange.mapping_file import read_mapping
from medrm.objectives import argument_classes


@dataclass
class Arguments(TrainingArguments):
    """Stands for an objective's training arguments."""

    label_smoothing: float = field(default=0.0, metadata={"help": "A float of the objective."})
    dimension_weights: list[str] | None = field(default=None, metadata={"help": "A list."})

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; give 0 to 0.5")
        super().__post_init__()


OBJECTIVES = {"bradley_terry": lambda: Arguments}


@pytest.fixture
def default(tmp_path: Path) -> Path:
    """Stands for the quickstart recipe."""
    path = tmp_path / "default.yaml"
    path.write_text(
        "train_data: phantom\nbenchmark: phantom\nprimary_dimension: accuracy\n"
        "dimensions: [accuracy, overall]\nlora_r: 4\nuse_cpu: true\n"
    )
    return path


def parse(default: Path, *words: str, recipe: str | None = None) -> Run:
    """Parses the words, with `recipe` as the text of a file named by --config."""
    if recipe is not None:
        path = default.with_name("recipe.yaml")
        path.write_text(recipe)
        words = ("--config", str(path), *words)
    return parse_run([*words, "--output_dir", str(default.parent)], OBJECTIVES, default)


def refusal(default: Path, *words: str, recipe: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        parse(default, *words, recipe=recipe)
    return str(error.value)


def test_the_default_recipe_is_read(default: Path) -> None:
    run = parse(default)
    assert run.data.train_data == run.data.benchmark == "phantom"
    assert run.data.dimensions == ["accuracy", "overall"]
    assert run.adapter.lora_r == 4
    assert run.objective == "bradley_terry"
    assert isinstance(run.training, Arguments)


def test_the_command_line_wins_over_the_recipe(default: Path) -> None:
    run = parse(default, "--lora_r", "8", "--lora-alpha=64", recipe="train_data: x\nlora_r: 2\n")
    assert (run.adapter.lora_r, run.adapter.lora_alpha) == (8, 64)


def test_a_recipe_replaces_the_default_recipe(default: Path) -> None:
    run = parse(default, recipe="train_data: x\nuse_cpu: true\n")
    assert run.data == DataOptions(train_data="x")
    assert run.adapter.lora_r == AdapterOptions().lora_r


def test_types_of_yaml(default: Path) -> None:
    recipe = (
        "train_data: x\nuse_cpu: true\nlearning_rate: 1e-4\nmax_pixels: null\nmax_length: 2048\n"
        "use_dora: false\nuse_rslora: true\ndimensions: [accuracy, overall]\n"
        "dimension_weights: [accuracy=2, overall=1]\nsplit_by_cluster: 0.5,0.2,0.3\n"
        "lr_scheduler_type: cosine\nwarmup_steps: 0.1\n"
    )
    run = parse(default, recipe=recipe)
    assert run.training.learning_rate == 1e-4  # YAML reads 1e-4 as a string
    assert run.model.max_pixels is None
    assert run.model.max_length == 2048
    assert not run.adapter.use_dora
    assert run.adapter.use_rslora
    assert run.data.dimensions == ["accuracy", "overall"]
    assert run.training.dimension_weights == ["accuracy=2", "overall=1"]
    assert run.data.split_fractions == (0.5, 0.2, 0.3)
    assert run.training.warmup_steps == 0.1


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_are_words_not_booleans(default: Path, word: str) -> None:
    run = parse(default, recipe=f"train_data: x\nshared_prefix: {word}\nuse_peft: no\n")
    assert run.model.shared_prefix == word
    assert run.adapter.use_peft is False
    assert parse(default, "--shared_prefix", word).model.shared_prefix == word


def test_null_means_the_option_is_not_set(default: Path) -> None:
    run = parse(default, recipe="train_data: x\nbenchmark: null\nuse_cpu: true\n")
    assert run.data.benchmark is None
    run = parse(default, "--benchmark", "b", recipe="train_data: x\nbenchmark: null\n")
    assert run.data.benchmark == "b"


@pytest.mark.parametrize("words", [("a,b",), ("a", "b"), ("a,", "b"), ("a, b",)])
def test_lists_take_commas_and_spaces(default: Path, words: tuple[str, ...]) -> None:
    assert parse(default, "--dimensions", *words).data.dimensions == ["a", "b"]


def test_a_run_may_have_no_controls(default: Path) -> None:
    for words, recipe in (
        (("--controls", "none"), None),
        ((), "train_data: x\ncontrols: []\n"),
        ((), "train_data: x\ncontrols: none\n"),
    ):
        run = parse(default, *words, recipe=recipe)
        assert run.evaluation.controls == run.resolved()["controls"] == []
    with pytest.raises(ConfigError, match="controls is empty"):
        parse(default, "--controls", "--seed", "1")  # a forgotten value


def test_a_flag_needs_no_value(default: Path) -> None:
    assert parse(default, "--use_dora").adapter.use_dora


@pytest.mark.parametrize("key", ["train_data", "benchmark"])
def test_the_default_recipes_data_falls_when_data_is_named(default: Path, key: str) -> None:
    run = parse(default, f"--{key}", "mine")
    assert run.data == DataOptions(**{key: "mine"}, primary_dimension=["accuracy"])
    assert run.adapter.lora_r == 4  # the rest of the recipe stays


def test_a_named_recipes_data_stays_when_data_is_named(default: Path) -> None:
    recipe = "train_data: x\nbenchmark: b\nuse_cpu: true\n"
    run = parse(default, "--train_data", "mine", recipe=recipe)
    assert run.data == DataOptions(train_data="mine", benchmark="b")


def test_an_unknown_key_names_the_nearest(default: Path) -> None:
    message = refusal(default, recipe="train_data: x\nlora_drop_out: 4\n")
    assert "recipe.yaml" in message
    assert "unknown key 'lora_drop_out'" in message
    assert "Did you mean 'lora_dropout'?" in message
    message = refusal(default, "--learning_rat", "1")
    assert "command line: unknown key 'learning_rat'. Did you mean 'learning_rate'?" in message


@pytest.mark.parametrize("value", ["100", "null"])
def test_a_removed_option_says_so_and_what_to_do(default: Path, value: str) -> None:
    for message in (
        refusal(default, recipe=f"image_feature_dir_mb: {value}\n"),
        refusal(default, "--image_feature_dir_mb", value),
    ):
        assert "key 'image_feature_dir_mb' was removed in 0.2.0: leave it out" in message
        assert "Did you mean" not in message


def test_an_abbreviated_key_is_unknown(default: Path) -> None:
    assert "unknown key 'lora_alp'" in refusal(default, "--lora_alp", "4")


def test_a_null_unknown_key_is_unknown(default: Path) -> None:
    assert "unknown key 'lora_rank'" in refusal(default, recipe="lora_rank: null\n")


def test_all_problems_come_in_one_message(default: Path) -> None:
    recipe = "train_data: x\nlora_rank: 4\nreward_template: end\nlearning_rate: fast\n"
    message = refusal(default, "--head", "deep", "--max_lenght", "3", recipe=recipe)
    for part in ("lora_rank", "reward_template", "'end'", "turn_end", "learning_rate", "'fast'"):
        assert part in message
    for part in ("head", "'deep'", "linear", "max_lenght", "'max_length'"):
        assert part in message


def test_wrong_values_of_several_groups_come_in_one_message(default: Path) -> None:
    message = refusal(
        default, "--lora_r", "0", "--max_length", "0", "--label_smoothing", "2", "--load_in_4bit",
        "--load_in_8bit", "--split_by_cluster", "0.5,0.5", "--controls", "blank_image",
    )  # fmt: skip
    for part in ("lora_r 0", "label_smoothing is 2.0", "load_in_4bit", "three positive shares"):
        assert part in message
    assert "Did you mean 'blank_images'?" in message


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token"])
def test_a_token_is_refused(default: Path, key: str) -> None:
    for message in (refusal(default, f"--{key}", "s3cret"), refusal(default, recipe=f"{key}: s3")):
        assert "HF_TOKEN" in message
        assert "s3" not in message.replace("push_to_hub_token", "")


@pytest.mark.parametrize("objective", ["bradley_tery", ""])
def test_an_unknown_objective(default: Path, objective: str) -> None:
    assert "accepted: bradley_terry" in refusal(default, "--objective", *objective.split())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "list"),
        ("a: [1\n", "not valid YAML"),
        ("1: 2\n", "key: value"),
        ("dimensions: []\ntrain_data: x\n", "dimensions"),
        ("allowed_differences: []\ntrain_data: x\n", "allowed_differences is empty"),
        ("controls: ''\ntrain_data: x\n", "controls is empty"),
        ("controls: [none, text_only]\ntrain_data: x\n", "controls: none not known"),
    ],
)
def test_a_recipe_that_is_none(default: Path, text: str, part: str) -> None:
    assert part in refusal(default, recipe=text)


def test_a_missing_recipe(default: Path) -> None:
    assert "no such file" in refusal(default, "--config", "nowhere.yaml")
    assert "--config takes one path" in refusal(default, "--config")


def test_a_word_without_a_key(default: Path) -> None:
    assert "'phantom' stands alone" in refusal(default, "phantom")


def test_nothing_to_train_on(default: Path) -> None:
    assert "nothing to train on" in refusal(default, recipe="lora_r: 4\n")


def test_groups_share_no_name() -> None:
    groups = (DataOptions, ModelOptions, AdapterOptions, EvaluationOptions, TrainingArguments)
    names = Counter(f.name for group in groups for f in fields(group))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_option_is_described() -> None:
    for group in (DataOptions, ModelOptions, AdapterOptions, EvaluationOptions):
        assert all(f.metadata["help"].endswith(".") for f in fields(group))


def test_the_resolved_run_names_every_option(default: Path) -> None:
    resolved = parse(default).resolved()
    assert resolved["objective"] == "bradley_terry"
    assert resolved["lora_r"] == 4
    assert resolved["controls"] == list(CONTROLS)
    assert resolved["label_smoothing"] == 0.0


def test_null_leaves_an_option_at_its_default(default: Path) -> None:
    recipe = "train_data: a\nlora_r: null\nbenchmark: phantom\n"
    run = parse(default, "--benchmark", "null", recipe=recipe)
    assert run.adapter.lora_r == 16
    assert run.data.benchmark is None
    assert "unknown key 'lora_rnk'" in refusal(default, recipe="train_data: a\nlora_rnk: null\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "nan"], "finite"),
        (["--data_root", "b"], "data_root needs --benchmark"),
        (["--benchmark", "c", "--split_by_cluster", "0.7,0.1,0.2"], "splits one set"),
        (["--use_peft", "false", "--load_in_4bit", "true"], "use_peft false"),
        (["--annotator_weights", "{}"], "annotator_weights"),
        (["--contextual_orders", "3"], "contextual_orders is 3"),
        (["--contextual_orders", "-2"], "contextual_orders is -2"),
    ],
)
def test_options_that_contradict_each_other(default: Path, words: list[str], message: str) -> None:
    assert message in refusal(default, *words, recipe="train_data: a\nuse_cpu: true\n")


def test_a_key_given_twice_is_refused(default: Path) -> None:
    assert "given twice" in refusal(default, recipe="train_data: a\nseed: 1\nseed: 2\n")


def test_a_folder_of_ones_own_is_never_overwritten_unasked(default: Path) -> None:
    with default.open("a", encoding="utf-8") as file:
        file.write("overwrite_output_dir: true\n")
    assert parse_run([], OBJECTIVES, default).job.overwrite_output_dir
    assert parse_run(["--train_data", "a"], OBJECTIVES, default).job.overwrite_output_dir
    named = ["--train_data", "a", "--output_dir", str(default.parent)]
    assert not parse_run(named, OBJECTIVES, default).job.overwrite_output_dir
    chosen = ["--config", str(default)]
    assert parse_run(chosen, OBJECTIVES, Path("other.yaml")).job.overwrite_output_dir
    named = [*chosen, "--output_dir", str(default.parent)]
    assert not parse_run(named, OBJECTIVES, Path("other.yaml")).job.overwrite_output_dir


def test_seeds_and_a_seed_stand_in_place_of_each_other(default: Path) -> None:
    """The command line's word replaces the recipe's; both in one place are refused."""
    with default.open("a", encoding="utf-8") as file:
        file.write("seed: 7\noverwrite_output_dir: true\n")
    assert parse_run([], OBJECTIVES, default).job.seeds is None
    assert parse_run(["--seeds", "null"], OBJECTIVES, default).training.seed == 7
    several = parse_run(["--seeds", "2,0", "1"], OBJECTIVES, default)
    assert several.job.seeds == [2, 0, 1]
    assert not several.job.overwrite_output_dir
    recipe = "train_data: a\nseeds: [0, 1]\n"
    default.write_text(recipe, encoding="utf-8")
    alone = parse_run(["--seed", "1"], OBJECTIVES, default)
    assert (alone.job.seeds, alone.training.seed) == (None, 1)
    assert "seeds and seed exclude" in refusal(default, "--seed", "1", "--seeds", "0,1")
    assert "seeds and seed exclude" in refusal(default, recipe=f"{recipe}seed: 3\n")


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("1,2,1", "seeds is 1,2,1; give each seed once"),
        ("0,-1", "seeds is 0,-1; give whole numbers from 0"),
        (f"{2**32}", "give whole numbers from 0 to 2^32 - 1"),
        ("0,x", "--seeds: invalid int value: 'x'"),
    ],
)
def test_seeds_that_are_none(default: Path, seeds: str, message: str) -> None:
    assert message in refusal(default, "--seeds", seeds, recipe="train_data: a\nuse_cpu: true\n")


KNOWN = {field.name for field in fields(TrainingArguments)}


@pytest.mark.parametrize(
    "key", sorted(KNOWN & {"gradient_checkpointing", "activation_checkpointing"})
)
@pytest.mark.parametrize("objective", argument_classes())
def test_checkpointing_is_known_by_both_names(
    key: str, objective: str, default: Path, recwarn: pytest.WarningsRecorder
) -> None:
    words = ["--objective", objective, f"--{key}", "true", "--use_cpu", "true"]
    training = parse_run(words, argument_classes(), default).training
    named = [value for name, value in vars(training).items() if name.endswith("_checkpointing")]
    assert named
    assert all(named)
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


def test_no_file_of_settings_holds_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text('name: "\\ud800"\n')
    for read in (read_yaml, read_mapping, read_description):
        with pytest.raises(ConfigError, match=r"\\ud800 is half a character; write both halves"):
            read(path)
