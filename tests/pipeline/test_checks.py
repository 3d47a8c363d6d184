"""Options that a run would not look at, and adapters that it cannot go on from, are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medrm.config.options import JudgeOptions
from medrm.config.parse import Run, parse_run
from medrm.errors import AdapterError, ConfigError
from medrm.files import asset
from medrm.models.adapter_config import AdapterConfig, write_adapter_config
from medrm.models.base_reference import reference_of
from medrm.objectives import OBJECTIVES, argument_classes, load_objective
from medrm.pipeline.option_checks import check_init_adapter, check_options
from medrm.scorer.specs import judge_spec


def run_of(objective: str, **options: object) -> Run:
    values = {"objective": objective, "use_cpu": True, **options}
    arguments = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    default = asset("recipes/quickstart/bradley_terry.yaml")
    return parse_run(arguments, argument_classes(), default)


def refusal(run: Run) -> str:
    with pytest.raises(ConfigError) as error:
        check_options(run, load_objective(run.objective))
    return str(error.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_runs_on_the_default_recipe(objective: str) -> None:
    run = run_of(objective)
    check_options(run, load_objective(objective))
    allowed = ["readout"] if objective == "bradley_terry" else []
    assert run.evaluation.allowed_differences == allowed


ANSWERS = {"objective": "judge_dpo", "dpo_pairs": "answers"}
VOTES = {"judge_readout": "votes", "votes": 3, "judge_temperature": 1}


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        (
            {"objective": "bradley_terry", "init_adapter": "x", "prompt_file": "p", **VOTES},
            ["init_adapter is 'x'", "prompt_file is 'p'", "votes is 3", "judge_temperature is 1.0"],
        ),
        ({**ANSWERS, "judge_prompt": "rationale_json"}, ["judge_prompt is 'rationale_json'"]),
        ({**ANSWERS, "reward_template": "turn_end"}, ["reward_template is 'turn_end'"]),
        (
            {"objective": "judge_sft", "head": "mlp", "head_hidden_size": 8},
            ["head is 'mlp'", "head_hidden_size is 8"],
        ),
        (
            {"objective": "judge_sft", "init_adapter": "x", "lora_r": 8, "use_peft": False},
            ["lora_r is 8", "use_peft is False"],
        ),
        ({"objective": "judge_sft", "controls": "frozen_probe"}, ["frozen_probe does not apply"]),
        ({"objective": "judge_sft", "controls": "init_adapter"}, ["init_adapter does not apply"]),
        (
            {"objective": "judge_sft", "controls": "skeleton", "judge_prompt": "rationale_json"},
            ["skeleton does not apply", "can have blank_images"],
        ),
        (
            {"objective": "judge_sft", "controls": "skeleton", "judge_readout": "skeleton"},
            ["skeleton does not apply"],
        ),
        ({**ANSWERS, "controls": "untrained_head"}, ["untrained_head does not apply"]),
        ({"objective": "bradley_terry", "controls": "skeleton"}, ["skeleton does not apply"]),
    ],
)
def test_options_that_the_run_would_not_look_at(
    options: dict[str, Any], problems: list[str]
) -> None:
    message = refusal(run_of(**options))
    for problem in problems:
        assert problem in message


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "bradley_terry", "head": "linear", "reward_template": "turn_end"},
        {"objective": "judge_grpo", "init_adapter": "x", "controls": "init_adapter,skeleton"},
        {"objective": "judge_sft", "controls": "base_skeleton,blank_images", **VOTES},
        {**ANSWERS, "controls": "zero_shot_likelihood,blank_images", "lora_r": 8},
    ],
)
def test_options_that_apply(options: dict[str, Any]) -> None:
    run = run_of(**options)
    check_options(run, load_objective(run.objective))


def test_a_prompt_that_is_none_is_known_at_once() -> None:
    run = run_of("judge_sft", prompt_file="none.txt", controls="blank_images")
    assert "none.txt cannot be read" in refusal(run)


def judge_contract(run: Run) -> AdapterConfig:
    origin = reference_of(run.model)
    return AdapterConfig(
        base_model=origin.name,
        base_revision=origin.revision,
        base_digest=origin.digest,
        family="qwen2_5_vl",
        objective="judge_sft",
        readout="generate",
        trained="lora",
        dimensions=("accuracy",),
        head=None,
        reward_template="generation_prompt",
        chat_template_digest="0" * 64,
        dtype="float32",
        attn_implementation="sdpa",
        judge=judge_spec(JudgeOptions()),
    )


def test_the_adapter_to_go_on_from_is_a_lora_judge_of_the_runs_base(tmp_path: Path) -> None:
    run = run_of("judge_grpo", init_adapter=tmp_path)
    with pytest.raises(AdapterError, match=r"medrm\.json"):
        check_init_adapter(run)
    fitting = judge_contract(run)
    write_adapter_config(tmp_path, fitting)
    check_init_adapter(run)
    for change, message in (
        ({"base_digest": "0" * 64}, "its base is phantom-base (000000000000), the run's is"),
        (
            {"base_revision": "abc", "base_digest": None},
            "its base is phantom-base (abc), the run's is phantom-base",
        ),
        ({"quantisation": "nf4"}, "weights are nf4, the run's are not quantised"),
        ({"judge": None}, "not as a judge"),
        ({"trained": "full"}, "whole weights"),
    ):
        write_adapter_config(tmp_path, replace(fitting, **change))
        with pytest.raises(ConfigError, match="cannot be gone on from") as error:
            check_init_adapter(run)
        assert message in str(error.value)


def test_the_other_reading_of_the_dpo_baseline_is_an_override() -> None:
    recipe = asset("recipes/qwen2_vl_7b/judge_dpo_lora.yaml")
    (arguments,) = re.findall(r"reward: (--dpo_pairs .*)\.\n", recipe.read_text(encoding="utf-8"))
    argv = ["--config", str(recipe), "--use_cpu", "true", *arguments.split()]
    run = parse_run(argv, argument_classes(), recipe)
    objective = load_objective(run.objective)
    check_options(run, objective)
    assert objective.readout(run) == "implicit_reward"
    assert run.evaluation.allowed_differences == ["readout"]
