"""A run that would not be distributed as its launch file names it is refused at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from pipeline.entry import Recipe

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.objectives.judge import judge_grpo
from medrm.objectives.sharding import ShardedTraining
from medrm.pipeline import processes
from medrm.pipeline.processes import check_launch, from_main


def a_run(**model: Any) -> Any:
    return SimpleNamespace(model=ModelOptions(**model))


@pytest.fixture
def by_fsdp2(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that accelerate gives a process by the shipped file."""
    text = (root / "accelerate_configs" / "fsdp2.yaml").read_text(encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in yaml.safe_load(text)["fsdp_config"].items():
        monkeypatch.setenv(
            name.upper(), str(value).lower() if value in (True, False) else str(value)
        )


@pytest.mark.usefixtures("by_fsdp2")
def test_fsdp_without_gpus_is_refused(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe(model_name_or_path="/nowhere") == 2  # the model is not looked for
    said = capsys.readouterr().err
    assert "asks for FSDP, but this would be 1 process on cpu, NO;" in said
    assert "accelerate_configs/ddp.yaml" in said


@pytest.mark.usefixtures("by_fsdp2")
def test_settings_of_fsdp_stay_as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState(), "distributed_type", DistributedType.MULTI_GPU)
    check_launch(a_run())
    with pytest.raises(ConfigError, match=r"load_in_4bit .* whole on every GPU"):
        check_launch(a_run(load_in_4bit=True))
    for name in processes.FSDP_SETTINGS:
        for value in ("1", None):
            with monkeypatch.context() as changed:
                if value is None:
                    changed.delenv(name.upper())
                else:
                    changed.setenv(name.upper(), value)
                with pytest.raises(ConfigError, match=f"{name} is {value or 'not set'} in the"):
                    check_launch(a_run())


def test_deepspeed_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launch(a_run())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"asks for DeepSpeed, but .* on cpu, NO"):
        check_launch(a_run())
    # accelerate starts it on CPUs with the trainer, which looks whether it did.
    monkeypatch.setattr(PartialState(), "distributed_type", DistributedType.MULTI_CPU)
    check_launch(a_run())


class Accelerated:
    """A trainer of which accelerate makes what it would make of two processes on CPUs."""

    def create_accelerator_and_postprocess(self) -> None:
        self.accelerator = SimpleNamespace(
            distributed_type=DistributedType.MULTI_CPU, state=SimpleNamespace()
        )


class Trainer(ShardedTraining, Accelerated):  # type: ignore[misc] # as of transformers' trainers
    pass


def test_a_trainer_without_the_deepspeed_of_its_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Trainer().create_accelerator_and_postprocess()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"asks for DeepSpeed, and .* would train by MULTI_CPU"):
        Trainer().create_accelerator_and_postprocess()


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("fsdp", "full_shard", "fsdp2.yaml"),
        ("fsdp_config", '{"version": 2}', "fsdp2.yaml"),
        ("deepspeed", "ds.json", "zero3.yaml"),
    ],
)
@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft"])
def test_distribution_by_hand_is_refused(
    objective: str,
    option: str,
    value: str,
    instead: str,
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"objective": objective, "model_name_or_path": "/nowhere", option: value}
    assert recipe(**changes) == 2
    said = capsys.readouterr().err
    assert f"{option} is {value!r}; leave it out" in said
    assert instead in said


def test_processes_that_would_each_be_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a launch for GPUs starts them on a machine that has none."""
    check_launch(a_run())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, of which each would be by"):
        check_launch(a_run())


@pytest.mark.usefixtures("by_fsdp2")
def test_grpo_under_fsdp_is_refused() -> None:
    options = {"init_adapter": "an adapter", "judge_prompt": "json", "prompt_file": None}
    run: Any = SimpleNamespace(
        judge=SimpleNamespace(**options), training=SimpleNamespace(reward_weights=None)
    )
    with pytest.raises(ConfigError, match="judge_grpo was never run under FSDP"):
        judge_grpo.check(run, (), (), ())


def test_the_main_process_alone_looks_and_all_hear_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer, or its error."""

    def look() -> str:
        looked.append(state.is_main_process)
        if len(looked) > 1:
            raise ConfigError("checkpoint-2 is damaged")
        return "checkpoint-2"

    def broadcast(seen: list[Any]) -> None:
        if state.is_main_process:
            sent[:] = seen
        seen[:] = sent

    looked: list[bool] = []
    sent: list[Any] = []
    state = SimpleNamespace(is_main_process=True)
    monkeypatch.setattr(processes, "PartialState", lambda: state)
    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    answers = []
    for state.is_main_process in (True, False):
        answers.append(from_main(look))
    assert answers == ["checkpoint-2", "checkpoint-2"]
    for state.is_main_process in (True, False):
        with pytest.raises(ConfigError, match="checkpoint-2 is damaged"):
            from_main(look)
    assert looked == [True, True]
