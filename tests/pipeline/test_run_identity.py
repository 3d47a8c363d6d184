"""What makes another run: every option of every objective is in one of the lists."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from medrm.config.parse import GROUPS, parse_run
from medrm.errors import ConfigError
from medrm.files import asset
from medrm.objectives import OBJECTIVES, argument_classes
from medrm.pipeline import checkpoints
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.pipeline.manifest import sharding
from medrm.pipeline.run_identity import (
    BY_CONTENT,
    CUT,
    FREE,
    LENGTH,
    SAVES,
    check_same_run,
    recipe_differences,
    row_draws,
)

_TEXT = """
objective dimensions primary_dimension benchmark_name mixture_seed max_cases_per_prompt
max_cases_per_image split_by_cluster development_share crossfit aggregation
vote_ties vote_strength min_vote_seconds annotator_weights max_excluded_share dtype
attn_implementation shared_prefix
trust_remote_code load_in_4bit load_in_8bit min_pixels max_pixels max_length reward_template
contextual_orders head head_hidden_size use_peft lora_r lora_alpha lora_dropout use_rslora
use_dora lora_vision lora_routers deterministic allowed_differences judge_prompt judge_readout
votes judge_temperature max_new_tokens global_batch_cases head_learning_rate ties vote_targets
weight_by_votes dimension_weights margin label_smoothing center_rewards_coefficient label_rule
dpo_pairs flip beta reward_weights seed data_seed learning_rate lr_scheduler_type
lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules weight_decay adam_beta1
adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor neftune_noise_alpha
average_tokens_across_devices bf16 fp16 tf32 bf16_full_eval fp16_full_eval torch_compile
torch_compile_backend torch_compile_mode full_determinism use_cache use_liger_kernel
liger_kernel_config auto_find_batch_size per_device_eval_batch_size dataloader_drop_last
dataloader_in_order train_sampling_strategy length_column_name remove_unused_columns label_names
ignore_data_skip restore_callback_states_from_checkpoint accelerator_config parallelism_config
deepspeed fsdp fsdp_config eval_strategy eval_steps eval_delay eval_on_start
eval_use_gather_object prediction_loss_only include_for_metrics batch_eval_metrics
load_best_model_at_end metric_for_best_model greater_is_better loss_type packing
packing_strategy eval_packing padding_free pad_to_multiple_of pad_token eos_token
truncation_mode completion_only_loss assistant_only_loss chat_template_path chat_template_kwargs
model_init_kwargs dataset_kwargs dataset_num_proc dataset_text_field shuffle_dataset
router_aux_loss_coef disable_dropout discopop_tau f_alpha_divergence_coef f_divergence_type
ld_alpha loss_weights precompute_ref_batch_size precompute_ref_log_probs ref_model_mixup_alpha
ref_model_sync_steps sync_ref_model use_weighting cache_implementation cast_lm_head_to_fp32
delta ds3_gather_for_generation entropy_coef entropy_coef_delta entropy_coef_max
entropy_coef_min entropy_target epsilon epsilon_high generation_batch_size generation_kwargs
importance_sampling_level mask_truncated_completions max_completion_length
max_tool_calling_iterations min_p multi_objective_aggregation num_generations
num_generations_eval num_iterations off_policy_mask_threshold repetition_penalty
sapo_temperature_neg sapo_temperature_pos scale_rewards steps_per_generation temperature
top_entropy_quantile top_k top_p transformers_continuous_batching_config use_adaptive_entropy
use_bias_correction_kl use_transformers_continuous_batching use_transformers_paged use_vllm
vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos vllm_enable_sleep_mode
vllm_gpu_memory_utilization vllm_group_port vllm_importance_sampling_cap
vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_max_model_length
vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port
vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size
"""
DECISIVE = frozenset(_TEXT.split())
"""What makes another run. A library's new option counts as such until it stands in a list."""

LISTS = (FREE, BY_CONTENT, frozenset(LENGTH), frozenset(SAVES), frozenset(CUT), DECISIVE)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_option_is_in_one_list(objective: str) -> None:
    groups = (*GROUPS, argument_classes()[objective]())
    names = {field.name for group in groups for field in dataclasses.fields(group) if field.init}
    counts = {name: sum(name in names_of_list for names_of_list in LISTS) for name in names}
    assert {name: count for name, count in counts.items() if count != 1} == {}


def manifest(objective: str, processes: int = 1, **options: object) -> dict[str, Any]:
    """Returns what is compared of a run."""
    values = {"objective": objective, "use_cpu": True, "report_to": "none", **options}
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    default = asset("recipes/quickstart/bradley_terry.yaml")
    run = parse_run(words, argument_classes(), default)
    config = json.loads(json.dumps(run.resolved(), default=str))
    return {"config": config, "processes": processes, "device": "cpu", "inputs": {}, "data": {}}


def compared(
    then: dict[str, Any], now: dict[str, Any], folder: Path, rows: int | None = None
) -> str | bool:
    """Returns whether the run grows, or why it is another one."""
    try:
        return check_same_run(folder, then, now, None if rows is None else lambda: rows)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("then", "now", "rows", "problem"),
    [
        ((1, 4, 1), (2, 2, 1), 16, None),
        ((1, 4, 1), (2, 1, 2), 16, None),
        ((1, 4, 1), (1, 1, 4), 16, None),
        ((1, 4, 1), (2, 2, 1), 15, "an epoch has 15 rows"),
        ((1, 4, 1), (2, 1, 2), 18, "an epoch has 18 rows"),
        ((1, 4, 1), (1, 4, 2), 16, "a step was 4 rows, and would be 8"),
    ],
)
def test_a_judges_step_may_be_cut_otherwise_where_its_rows_stay(
    tmp_path: Path,
    then: tuple[int, int, int],
    now: tuple[int, int, int],
    rows: int,
    problem: str | None,
) -> None:
    sides = [
        manifest(
            "judge_sft",
            processes,
            per_device_train_batch_size=at_once,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=accumulation,
        )
        for at_once, accumulation, processes in (then, now)
    ]
    answer = compared(*sides, tmp_path, rows)
    assert answer is False if problem is None else problem in str(answer)


def test_what_each_process_draws_binds_the_run_to_its_processes(tmp_path: Path) -> None:
    plain, dropped = {}, {"lora_dropout": 0.1}
    for options, problem in ((plain, None), (dropped, "lora_dropout")):
        sides = [
            manifest("bradley_terry", processes, per_device_train_batch_size=size, **options)
            for processes, size in ((1, 4), (2, 1))
        ]
        answer = compared(*sides, tmp_path)
        assert answer is False if problem is None else problem in str(answer)
    sampled = [manifest("judge_grpo", processes, max_steps=2) for processes in (1, 2)]
    assert "processes: 1 then, 2 now (each process draws" in str(compared(*sampled, tmp_path, 8))


CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}


@pytest.mark.parametrize(
    ("options", "longer", "answer"),
    [
        (CONSTANT | {"eval_steps": 2, "save_steps": 2}, {"max_steps": 8}, True),
        (CONSTANT | {"load_best_model_at_end": False}, {"max_steps": 8}, True),
        (CONSTANT | {"save_steps": 2}, {"max_steps": 8}, "eval_steps 0.5 is a share of all steps"),
        (CONSTANT | {"eval_steps": 3, "save_steps": 3}, {"max_steps": 8}, "at its end, step 4"),
        (CONSTANT | {"load_best_model_at_end": False}, {"max_steps": 2}, "4 then, 2 now"),
        ({"warmup_steps": 1, "lr_scheduler_type": "linear"}, {"max_steps": 8}, "a linear schedule"),
        (CONSTANT, {"max_steps": -1, "num_train_epochs": 9}, "max_steps: 4 then, -1 now"),
    ],
)
def test_a_run_may_be_longer_where_that_is_the_longer_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    longer: dict[str, Any],
    answer: str | bool,
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(
        json.dumps({"global_step": 4, "max_steps": 4, "epoch": 0.5})
    )
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda folder: str(checkpoint))
    sides = [
        manifest("bradley_terry", **{"max_steps": 4, **options, **more}) for more in ({}, longer)
    ]
    compared_so = compared(*sides, tmp_path)
    assert compared_so is answer if isinstance(answer, bool) else answer in str(compared_so)


def test_an_adapter_to_go_on_from_keeps_its_dropout(tmp_path: Path) -> None:
    for dropout, draws in ((0.1, ["lora_dropout"]), (0.0, [])):
        folder = tmp_path / str(dropout)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"lora_dropout": dropout}))
        (folder / "medrm.json").write_text("{}")
        options = {"lora_dropout": 0.1 - dropout, "init_adapter": str(folder)}
        assert row_draws(options) == draws


def test_what_is_not_compared_by_name_is_compared_by_content(tmp_path: Path) -> None:
    then, now = (manifest("bradley_terry", model_revision=name) for name in ("main", "v1"))
    assert compared(then, now, tmp_path) is False
    other = {**now, "inputs": {"base": "m@2"}}
    assert "content of base: m@1 then, m@2 now" in str(
        compared({**then, "inputs": {"base": "m@1"}}, other, tmp_path)
    )
    assert "model_revision: main then, v1 now" in str(
        compared({**then, "inputs": {"base": "m@1"}}, other, tmp_path)
    )
    assert "the options name the same as then" in str(
        compared({**now, "inputs": {"base": "m@1"}}, other, tmp_path)
    )
    del then["inputs"]  # as version 0.2 wrote it
    assert "model_revision: main then, v1 now" in str(compared(then, now, tmp_path))


def test_other_versions_are_named_and_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    then, now = (
        {**manifest("bradley_terry"), "versions": {"torch": version, "peft": "1"}}
        for version in ("2.13", "2.14")
    )
    assert compared(then, now, tmp_path) is False
    assert "torch 2.13 then, 2.14 now" in caplog.text
    assert "peft" not in caplog.text


def test_seeds_of_a_judge_differ_in_the_rows_of_a_step_alone() -> None:
    first = manifest("judge_sft", 2)
    assert recipe_differences(first, manifest("judge_sft", 2, seed=5)) == []
    assert recipe_differences(first, manifest("judge_sft", 1)) != []


def test_parts_of_an_optimiser_are_named_with_their_number() -> None:
    names = [sharding(LaunchSettings("DeepSpeed", count, zero_stage=2)) for count in (2, 4)]
    assert names == ["ZeRO-2 of 2 processes", "ZeRO-2 of 4 processes"]
    assert sharding(LaunchSettings("FSDP2", 4)) == "FSDP2"
