"""`--dry_run` of a training: what it says, what it checks, and that it loads and writes nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers
from pipeline.entry import ROOT, Recipe, load_main, refuse_models
from tiny import make_tiny

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models import base_model
from medrm.models.memory_estimate import StepMemory
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.objectives.step_preview import StepPreview
from medrm.pipeline import context
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.pipeline.memory_plan import CONTEXT, CONTEXT_BYTES, RehearsedRun, device_memory

CPU = {"use_cpu": True, "dry_run": True}


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would read or make weights fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a dry run loads weights")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    refuse_models(monkeypatch)
    monkeypatch.setattr("safetensors.safe_open", refuse)


def said(text: str, row: str, column: int = 1) -> str:
    """Returns a cell of the first row with that name."""
    rows = [re.split(r"\s+(?=[\d-])", line.strip()) for line in text.splitlines()]
    (cells, *_) = (cells for cells in rows if cells[0] == row)
    return cells[column]


def test_a_dry_run_tells_all_and_writes_nothing(
    recipe: Recipe, phantom: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(train_data=phantom, max_length=200, num_train_epochs=2, max_steps=-1, **CPU) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for title in ("Configuration", "Data", "What is trained", "Steps", "Tokens", "Memory of each"):
        assert title in text
    assert said(text, "max_length") == "200"
    cases = int(said(text.partition("What is")[0], "training"))
    assert said(text, "cases to learn from in an epoch") == str(cases)
    steps = -(-cases // 8)
    assert said(text, "steps of an epoch") == str(steps)
    assert said(text, "steps") == str(2 * steps)
    # What learns is what the run's own code trains.
    options = ModelOptions(model_name_or_path=str(base))
    model = base_model.empty_base(options, transformers.AutoConfig.from_pretrained(base).dtype)
    spec = HeadSpec(("accuracy",), ties="davidson", tied_dimensions=("accuracy",))
    model = attach_head(model.requires_grad_(False), spec, 0)
    trained = add_adapter(model, AdapterOptions())
    lora = sum(p.numel() for n, p in trained.named_parameters() if ".lora_" in n)
    assert said(text, "language_model.layers", 1) == f"{lora / 1000:.1f} k"


def test_tables_are_cut_by_no_pipe(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("a-long-name-" * 12) / "votes"
    shutil.copytree(phantom, long)
    assert recipe(train_data=long, output_dir=tmp_path / "run", **CPU) == 0
    text = capsys.readouterr().out
    assert str(long) in text
    assert "…" not in text


def test_cases_that_are_too_long_are_named(
    recipe: Recipe,
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = {"train_data": phantom, "max_excluded_share": 1, **CPU}
    assert recipe(max_length=150, **limited) == 0
    text = " ".join(capsys.readouterr().out.split())
    found = re.search(r"max_length 150: (\d+) cases are longer and set aside \((\S+?)[,)]", text)
    assert found is not None
    assert int(found[1]) == int(said_in(text, "set aside"))
    monkeypatch.setattr(context, "longest_row", lambda config, stated: stated or 149)
    assert recipe(**limited) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"not given, the base's positions are 149: \d+ cases are longer", text)


def said_in(text: str, name: str) -> str:
    found = re.search(rf"{name} (\d+)", text)
    assert found is not None
    return found[1]


def test_one_process_alone_speaks(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert recipe(train_data="not there", **CPU) == 0
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_refused_after_all_else_was_said(
    recipe: Recipe, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(train_data=phantom, report_to="neptune", **CPU) == 2
    captured = capsys.readouterr()
    assert "Memory of each device" in captured.out
    assert "neptune" in captured.err


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "one process"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "DDP, 8 processes"),
        (
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
            "DDP, 16 processes on 2 machines",
        ),
        (
            {
                "WORLD_SIZE": "4",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
            },
            "DeepSpeed ZeRO-3, 4 processes, optimiser and weights in main memory",
        ),
        (
            {"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "FSDP2, 4 processes",
        ),
    ],
)
def test_a_launch_is_read_from_the_environment(environment: dict[str, str], text: str) -> None:
    assert str(LaunchSettings.read(environment)) == text


def test_deepspeeds_own_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    environment = {
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json"),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    }
    assert LaunchSettings.read(environment).zero_stage == 1


MEMORY = StepMemory(weights=8000, trained=80, gradients=80, optimiser=160, activations=500)


def made_up(learning: int = 20) -> RehearsedRun:
    steps = StepPreview("cases", 8, 8, 1, 1, 8, 8, batch=list, run=list)
    return RehearsedRun(steps, MEMORY, 300, {"all": (learning, 4020)}, learning, (400, 1000))


@pytest.mark.parametrize(
    ("launch", "weights", "gradients", "optimiser", "in_transit"),
    [
        (LaunchSettings(), 8000, 80, 160, 0),
        (LaunchSettings("DDP", 4), 8000, 80, 160, 80),
        (LaunchSettings("DeepSpeed", 4, zero_stage=2), 8000, 20, 60, 2 * 10**9),
        (LaunchSettings("DeepSpeed", 4, zero_stage=3), 2000, 20, 60, 2 * 10**9 + 8080),
        (
            LaunchSettings("DeepSpeed", 4, zero_stage=3, optimiser_offloaded=True),
            *(2000, 0, 0, 2 * 10**9 + 8080),
        ),
        (LaunchSettings("FSDP2", 4), 2000, 20, 40, 1800),
        (LaunchSettings("FSDP2", 4, reshards=False), 2000, 20, 40, 8080),
        (LaunchSettings("FSDP2", 4, weights_offloaded=True), 0, 20, 40, 1800),
    ],
    ids=str,
)
def test_devices_hold_their_share(
    launch: LaunchSettings, weights: int, gradients: int, optimiser: int, in_transit: int
) -> None:
    parts = device_memory(made_up(), launch, on_cpu=False)
    assert parts["frozen weights"] == (weights, 8000)
    assert parts["gradients"] == (gradients, 0)
    assert parts["optimiser states"] == (optimiser, 0)
    assert parts["gathered or sent"] == (in_transit, 0)
    assert parts["activations"] == (500, 300)
    assert parts[CONTEXT] == (CONTEXT_BYTES, CONTEXT_BYTES)
    assert CONTEXT not in device_memory(made_up(), launch, on_cpu=True)


@pytest.mark.slow
def test_a_model_of_seven_billion_parameters_takes_seconds(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = make_tiny("qwen2_5_vl")
    config = model.config
    text, vision = config.text_config, config.vision_config
    text.update(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 28,
            "vocab_size": 152064,
            "rope_parameters": {**text.rope_parameters, "mrope_section": [16, 24, 24]},
        }
    )
    vision.update(
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        }
    )
    config.dtype = text.dtype = "bfloat16"
    config.save_pretrained(tmp_path / "large")
    processor.save_pretrained(tmp_path / "large")
    started = time.process_time()
    options = {"gradient_checkpointing": True, "dry_run": True, "use_cpu": False}
    assert recipe(model_name_or_path=tmp_path / "large", train_data=phantom, **options) == 0
    assert time.process_time() - started < 20
    shown = capsys.readouterr().out
    assert said(shown, "frozen weights", 1) == "15.45 GiB"
    assert said(shown, "all", 2) == "8.3 B"


@pytest.mark.slow
def test_rows_are_those_that_the_run_then_measures(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    controls = "zero_shot_likelihood,untrained_head,blank_images"
    options = {"train_data": phantom, "controls": controls, "use_cpu": True}
    assert recipe(**options, dry_run=True) == 0
    text = capsys.readouterr().out
    assert "a new run" in text
    monkeypatch.undo()
    assert recipe(**options) == 0
    folders = [path for path in (tmp_path / "run" / "evaluation").iterdir() if path.is_dir()]
    measured = {path.name for path in folders} - {"before"}  # a copy of the base's better readout
    table = text.partition("Evaluations")[2]
    for name in measured:
        record = tmp_path / "run" / "evaluation" / name / "responses.jsonl"
        calls = len(record.read_text().splitlines())
        (cells,) = [line.split() for line in table.splitlines() if line.split()[:1] == [name]]
        assert cells[3] == f"{calls:,}"
    capsys.readouterr()
    assert recipe(**options, dry_run=True) == 0
    assert "goes on with the run" in capsys.readouterr().out
    assert recipe(**options, seed=7, dry_run=True) == 2
    assert "seed: 0 then, 7 now" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_launch_of_several_processes_prints_once(phantom: Path, base: Path) -> None:
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--config_file", "accelerate_configs/zero3.yaml", "recipes/train_rm.py"]
    options = {"model_name_or_path": base, "train_data": phantom, "dry_run": True}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    finished = subprocess.run([*command, *words], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    text = " ".join(finished.stdout.split())  # captions are as wide as their tables
    assert text.count("Memory of each device (DeepSpeed ZeRO-3, 2 processes)") == 1


def test_a_broken_recipe_is_refused(
    recipe: Recipe, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(train_data=phantom, controls="skeleton", **CPU) == 2
    assert "does not apply" in capsys.readouterr().err


def test_the_option_is_known_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_main("recipes/train_rm.py")(["--help", "dry_run"]) == 0
    assert "without weights" in " ".join(capsys.readouterr().out.split())
