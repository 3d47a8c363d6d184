"""Every YAML is parsed strictly, every recipe trains, every command of a README is accepted."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from test_launch_files import check_launch_file
from tiny import TINY_FAMILIES, save_tiny

from medrm.cli import add_evaluate, build_parser
from medrm.config.parse import Run, parse_run
from medrm.data.case_set import read_description
from medrm.data.phantom.phantom_set import write_phantom
from medrm.data.sources import description_names
from medrm.evaluation.benchmark_loading import benchmark_names, read_settings
from medrm.evaluation.leaderboard.standings import read_leaderboard
from medrm.objectives import argument_classes, load_objective
from medrm.pipeline.option_checks import check_options

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart" / "bradley_terry.yaml"
RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent != QUICKSTART.parent
)
REWARD_MODELS = [path for path in RECIPES if path.stem == "bradley_terry_lora"]
JUDGES = [path for path in RECIPES if path.stem.startswith("judge_")]
READMES = sorted(
    path
    for path in ROOT.rglob("README.md")
    if not {"tests", "runs", ".venv", ".git", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
)
GROUPS = ["Model", "Adapter", "Data", "Objective", "Training", "Evaluation", "Hub"]
JUDGE_GROUPS = [*GROUPS[:4], "Verdict", *GROUPS[4:]]
OF_EVERY_MODEL = {
    "bradley_terry_lora",
    "judge_sft_lora",
    "judge_sft_per_dimension_lora",
    "judge_grpo_lora",
}
BASELINES = {
    "qwen2_vl_7b/judge_sft_lora": ("judge_sft", 8, 1e-4),
    "qwen2_vl_7b/judge_dpo_lora": ("judge_dpo", 8, 5e-6),
    "qwen2_5_vl_7b/judge_sft_lora_r128": ("judge_sft", 128, 1e-4),
}
"""The paper's fine-tuned baselines: objective, LoRA rank, learning rate."""
FAMILY = {
    "internvl3_8b": "internvl",
    "lingshu_7b": "qwen2_5_vl",
    "llava_onevision_7b": "llava_onevision",
    "medgemma_4b": "gemma3",
    "qwen2_5_vl_7b": "qwen2_5_vl",
    "qwen2_vl_7b": "qwen2_vl",
    "qwen3_vl_8b": "qwen3_vl",
}
HEADINGS = ["Command", "Hardware", "Time", "Memory", "Expected score", "What did not work"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(words: Sequence[str]) -> Run:
    """Parses the words of train_rm.py as on a machine without a GPU."""
    return parse_run([*words, "--use_cpu", "true"], argument_classes(), QUICKSTART)


def script(path: str) -> Callable[[Sequence[str]], int]:
    """The function `main` of an entry script."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[Sequence[str]], int] = module.main
    return main


def check_recipe(path: Path) -> None:
    run = parse(["--config", str(path)])
    check_options(run, load_objective(run.objective))
    assert run.data.train_data in [None, *description_names()]
    assert run.data.benchmark in [None, *benchmark_names()]


def check_evaluation(path: Path) -> None:
    if path.parent.name == "leaderboards":
        assert read_leaderboard(path.stem).benchmark in benchmark_names()
    else:
        read_settings(path.stem)


READERS: dict[str, Callable[[Path], object]] = {
    "recipes": check_recipe,
    "data": read_description,
    "evaluation": check_evaluation,
    "accelerate_configs": check_launch_file,
}


@pytest.mark.parametrize(
    ("folder", "least"),
    [("recipes", 32), ("data", 4), ("evaluation", 3), ("accelerate_configs", 9)],
)
def test_every_yaml_is_parsed_strictly(folder: str, least: int) -> None:
    paths = sorted((ROOT / folder).rglob("*.y*ml"))
    assert len(paths) >= least
    for path in paths:
        keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert len(keys) == len(set(keys)), f"{name(path)} gives a key twice"
        READERS[folder](path)


def test_every_model_has_recipe_and_readme() -> None:
    assert {path.parent.name for path in RECIPES} == set(FAMILY)
    assert set(FAMILY.values()) <= set(TINY_FAMILIES)
    for folder in FAMILY:
        assert {path.stem for path in RECIPES if path.parent.name == folder} >= OF_EVERY_MODEL


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_complete(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    config = f"--config {name(path)}"
    launch = "accelerate launch --config_file accelerate_configs/single_gpu.yaml"
    assert f"#   {launch} recipes/train_rm.py {config}\n" in text.split("\n\n")[0] + "\n"
    run = parse(["--config", str(path)])
    judge = run.objective != "bradley_terry"
    groups = re.findall(r"\n\n# (\w+)\n", text)
    assert groups == (JUDGE_GROUPS if judge else GROUPS)
    # A reward model is compared with a base that writes; a judge with itself, before.
    assert run.evaluation.allowed_differences == ([] if judge else ["readout"])
    assert run.training.output_dir == f"runs/{path.parent.name}_{path.stem}"
    assert not run.model.trust_remote_code
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", readme, flags=re.MULTILINE) == HEADINGS
    assert f"{launch} recipes/train_rm.py {config}\n" in readme


@pytest.mark.parametrize("path", JUDGES, ids=name)
def test_a_judge_learns_one_part_of_the_benchmark_and_is_measured_on_another(path: Path) -> None:
    run = parse(["--config", str(path)])
    assert (run.data.train_data, run.data.benchmark) == (None, "med_rewardbench")
    assert run.data.split_fractions == (0.7, 0.1, 0.2)
    assert run.training.label_rule == "majority"
    per_dimension = path.stem == "judge_sft_per_dimension_lora"
    assert run.judge.judge_prompt == ("json_per_dimension" if per_dimension else "json")
    if run.objective == "judge_grpo":
        start = path.with_name("judge_sft_lora.yaml")
        before = parse(["--config", str(start)])
        assert run.judge.init_adapter == f"{before.training.output_dir}/adapter"
        assert f"recipes/train_rm.py --config {name(start)}\n" in path.read_text(encoding="utf-8")
        assert (run.data, run.model) == (before.data, before.model)
    else:
        assert run.judge.init_adapter is None


@pytest.mark.parametrize(("recipe", "expected"), BASELINES.items())
def test_the_baselines_of_the_paper_have_the_stock_settings(
    recipe: str, expected: tuple[str, int, float]
) -> None:
    path = ROOT / "recipes" / f"{recipe}.yaml"
    run = parse(["--config", str(path)])
    adapter, training = run.adapter, run.training
    assert (run.objective, adapter.lora_r, training.learning_rate) == expected
    assert (adapter.lora_alpha, adapter.lora_dropout) == (2 * adapter.lora_r, 0.0)
    assert (training.num_train_epochs, training.warmup_steps) == (3, 0.1)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 8
    if run.objective == "judge_dpo":
        assert (training.beta, training.loss_type) == (0.1, ["sigmoid"])
        assert (training.dpo_pairs, training.flip) == ("verdicts", "all")
    text = path.read_text(encoding="utf-8")
    assert "best public guess" in text
    assert "max_samples" not in text


def test_the_quickstart_recipe_is_the_default() -> None:
    default = parse([])
    named = parse(["--config", str(QUICKSTART)])
    assert (default.data, default.model) == (named.data, named.model)
    assert default.training.learning_rate == named.training.learning_rate
    assert (default.data.train_data, default.data.benchmark) == ("phantom", "phantom")
    assert default.model.reward_template == "turn_end"


def commands(text: str) -> list[str]:
    """The commands in the shell blocks of a Markdown page, one for each line."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    shell = [block for language, block in blocks if language in ("", "bash", "sh", "console")]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"\s*(?:&&|;)\s*", line)]
    return [part for part in parts if shlex.split(part, comments=True)]


def check_launch(words: Sequence[str]) -> None:
    """`accelerate launch ...`: the launcher's options, the script and the script's options."""
    launch = launch_command_parser().parse_args(words)
    if launch.config_file:
        load_config_from_file(str(ROOT / launch.config_file))
    assert (ROOT / launch.training_script).is_file()
    check_script(launch.training_script, launch.training_script_args)


def check_script(path: str, words: Sequence[str]) -> None:
    if path == "evaluation/evaluate.py":
        parser = argparse.ArgumentParser(allow_abbrev=False)
        add_evaluate(parser)
        parser.parse_args(words)
    elif path == "recipes/train_rm.py":
        if "--help" not in words:
            places = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
            parse(places)
    else:
        assert (ROOT / path).is_file(), f"{path} does not exist"


def check_command(command: str) -> None:
    """Fails where a command names an unknown program, option, script or file."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["accelerate", "launch", *rest]:
            check_launch(rest)
        case ["medrm", *rest]:
            if "--help" not in rest:
                build_parser().parse_args(rest)
        case ["python" | "python3", path, *rest] if path.endswith(".py"):
            check_script(path, rest)
        case ["pip", "install", *rest] | ["python", "-m", "pip", "install", *rest]:
            pins = [value for flag, value in itertools.pairwise(rest) if flag == "-c"]
            assert all((ROOT / value).is_file() for value in pins)
        case _:
            known = r"python3? -m (pytest|venv)\b|git clone|curl|cd|\.|source|bash \.ci/run"
            assert re.match(rf"({known})( |$)", command), f"no check for the command {command!r}"


@pytest.mark.parametrize("path", READMES, ids=name)
def test_commands_and_links_of_a_readme(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for command in commands(text):
        try:
            check_command(command)
        except SystemExit as error:
            raise AssertionError(f"{name(path)}: {command!r} is refused") from error
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).exists(), f"{name(path)}: {target}"


def test_readmes_are_found() -> None:
    found = {name(path) for path in READMES}
    assert {"README.md", "recipes/README.md", "evaluation/README.md"} <= found
    assert len(found) >= 14
    assert sum(len(commands(path.read_text(encoding="utf-8"))) for path in READMES) >= 12


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch recipes/train_rm.py --lora_rank 3",
        "accelerate launch --config_file accelerate_configs/none.yaml recipes/train_rm.py",
        "accelerate launch recipes/train.py",
        "medrm evaluat --model x",
        "medrm evaluate --model x --benchmark phantom --output_file x",
        "python recipes/quickstart/none.py",
        "pip install -e . -c none.txt",
        "make all",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError, OSError)):
        check_command(command)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom set to train on and one in the released layout to measure on."""
    folder = tmp_path_factory.mktemp("data")
    write_phantom(folder / "train", cases=24, seed=101)
    write_phantom(folder / "test", cases=12, seed=102)
    return folder


def train(path: Path, base: Path, folder: Path, **changes: object) -> Path:
    """Runs two steps of a recipe on another base and other data; returns its run folder."""
    given = {
        "config": path,
        "model_name_or_path": base,
        "max_steps": 2,
        "dataloader_num_workers": 0,
        "use_cpu": "true",
        "output_dir": folder,
        **changes,
    }
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    assert script("recipes/train_rm.py")(words) == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 2
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert yaml.safe_load((folder / "adapter" / "README.md").read_text().split("---")[1])
    assert "<html" in (folder / "report.html").read_text()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", REWARD_MODELS, ids=name)
def test_a_recipe_trains_two_steps_on_its_tiny_family(
    path: Path, data: Path, tmp_path: Path
) -> None:
    base = save_tiny(FAMILY[path.parent.name], tmp_path / "tiny")
    changes = {
        "train_data": data / "train",
        "data_root": data / "test",
        "development_share": 0.25,
        "global_batch_cases": 4,
    }
    run = train(path, base, tmp_path / "run", **changes)
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["comparable"]
    assert set(comparison["controls"]) == {
        "zero_shot_verdict", "zero_shot_averaged", "zero_shot_likelihood", "frozen_probe",
        "untrained_head", "blank_images", "shuffled_images", "text_only",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "qwen2_vl_7b/judge_dpo_lora",
        "qwen2_5_vl_7b/judge_sft_lora_r128",
        "medgemma_4b/judge_sft_per_dimension_lora",
    ],
)
def test_a_judge_recipe_trains_two_steps_on_its_tiny_family(
    recipe: str, data: Path, tmp_path: Path
) -> None:
    path = ROOT / "recipes" / f"{recipe}.yaml"
    base = save_tiny(FAMILY[path.parent.name], tmp_path / "tiny")
    run = train(path, base, tmp_path / "run", **judge_changes(data))
    assert json.loads((run / "comparison.json").read_text())["comparable"]


@pytest.mark.slow
def test_grpo_goes_on_from_the_adapter_of_its_sft_recipe(data: Path, tmp_path: Path) -> None:
    folder = ROOT / "recipes" / "qwen3_vl_8b"
    base = save_tiny("qwen3_vl", tmp_path / "tiny")
    first = train(folder / "judge_sft_lora.yaml", base, tmp_path / "sft", **judge_changes(data))
    run = train(
        folder / "judge_grpo_lora.yaml",
        base,
        tmp_path / "grpo",
        **judge_changes(data),
        init_adapter=first / "adapter",
        max_completion_length=16,
        num_generations=2,
    )
    assert "init_adapter" in json.loads((run / "comparison.json").read_text())["controls"]


def judge_changes(data: Path) -> dict[str, object]:
    """What makes a judge's recipe short: few cases, rows and tokens."""
    return {
        "data_root": data / "train",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": "null",
        "max_new_tokens": 16,
    }


def test_wrong_input_ends_with_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = script("recipes/train_rm.py")
    assert main(["--config", str(RECIPES[0]), "--use_cpu", "true", "--lora_rnk", "3"]) == 2
    message = capsys.readouterr().err
    assert "unknown key 'lora_rnk'" in message
    assert "Traceback" not in message
    out = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    assert main(["--train_data", str(tmp_path / "none.jsonl"), *out]) == 2
    assert "none.jsonl" in capsys.readouterr().err
