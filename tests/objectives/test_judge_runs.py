"""What a judge's training promises: it learns, repeats and resumes, and refuses nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import (
    DIMENSIONS,
    FIRST,
    SHORT,
    TIE,
    Judging,
    by_letters,
    judged,
    judged_cases,
)
from presentations import by_order
from torch import Tensor
from transformers import Trainer
from trl.trainer import base_trainer

from medrm.chat import load_prompt
from medrm.config.options import AdapterOptions
from medrm.config.parse import run_parser
from medrm.data.images import examine
from medrm.errors import ConfigError, DataError
from medrm.models.families import FAMILIES
from medrm.objectives.judge import judge_grpo
from medrm.objectives.judge.judge_collator import ConversationRenderer
from medrm.objectives.judge.judge_dpo import JudgeDPOConfig
from medrm.objectives.judge.judge_examples import judge_examples
from medrm.objectives.judge.judge_grpo import JudgeGRPOConfig
from medrm.objectives.judge.judge_sft import JudgeSFTConfig
from medrm.scorer.readouts.probability_readout import ConstrainedJson

Build = Callable[..., Judging]


def toy(judging: Build, folder: Path, objective: str, **options: Any) -> tuple[Judging, Any]:
    """Returns a training of one dimension, asked for in few words, and its prompt."""
    prompt_file = folder / "prompt.txt"
    prompt_file.write_text("{question} {answer_b} {answer_a}", encoding="utf-8")
    built = judging(
        objective, objective, train=judged_cases(24), development=judged_cases(4, 500),
        adapter=AdapterOptions(lora_r=16, lora_alpha=64), dimensions=("accuracy",),
        judge={"prompt_file": str(prompt_file)}, **{**SHORT, **options},
    )  # fmt: skip
    with torch.no_grad():  # random logits are all but equal, and stay so with a frozen LM head
        built.model.get_base_model().lm_head.weight.mul_(20)
    return built, load_prompt("", prompt_file)


def test_supervision_reaches_the_right_letters(judging: Build, tmp_path: Path) -> None:
    built, prompt = toy(
        judging, tmp_path, "judge_sft", max_steps=100, learning_rate=1e-2,
        per_device_train_batch_size=16, eval_strategy="steps", eval_steps=0.5,
    )  # fmt: skip
    built.trainer().train()
    skeleton = ConstrainedJson(
        built.model.eval(), built.collator.processor, prompt, dimensions=("accuracy",)
    )
    for scored in by_order(skeleton, judged_cases(12, 700)):
        (response,) = scored.responses
        assert response.probabilities is not None
        first, second, mass = response.probabilities["accuracy"]
        assert (first < second) == scored.case.labels["accuracy"].choice  # type: ignore[union-attr]
        assert mass > 0.8
    losses = built.logged("eval_loss")
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_rewards_teach_a_judge_that_writes_json_but_guesses(judging: Build, tmp_path: Path) -> None:
    start, _ = toy(
        judging, tmp_path, "judge_sft", max_steps=48, learning_rate=1e-2,
        per_device_train_batch_size=16,
    )  # fmt: skip
    state = start.trained()
    built, _ = toy(
        judging, tmp_path, "judge_grpo", max_steps=24, learning_rate=1e-3, temperature=0.6,
        num_generations=8, per_device_train_batch_size=64, max_completion_length=16,
        lr_scheduler_type="constant", reward_weights=[1.0, 0.0],
    )  # fmt: skip
    for name, parameter in built.model.named_parameters():
        if name in state:
            parameter.data.copy_(state[name])
    built.trainer().train()
    agreement = built.logged("rewards/agreement/mean")
    assert sum(agreement[:2]) / 2 < 0.65
    assert sum(agreement[-5:]) / 5 > 0.85


def test_rewards_see_the_labels_as_their_prompt_shows_the_answers(
    judging: Build, monkeypatch: Any
) -> None:
    seen = []

    def looking(completions: Any, prompts: Any, labels: Any, **columns: Any) -> list[float]:
        for prompt, letters, names in zip(prompts, labels, columns["dimensions"], strict=True):
            assert names == DIMENSIONS
            text = prompt[-1]["content"][-1]["text"]
            letter = "A" if "Answer A:\nYes" in text else "B"
            assert letters == dict.fromkeys(names, letter)
            seen.append((text, letter))
        return by_letters(completions)

    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [looking])
    judging("judge_grpo", **{**SHORT, "per_device_train_batch_size": 16}).trainer().train()
    assert len(seen) == 16
    assert len(set(seen)) == 8  # each answered twice
    assert {letter for _, letter in seen} == {"A", "B"}


def test_the_loss_is_the_mean_over_the_verdicts_tokens(judging: Build) -> None:
    development = [judged(1, accuracy=FIRST, overall=TIE), judged(2), judged(3)]
    built = judging("judge_sft", development=development, per_device_eval_batch_size=64)
    prompt = load_prompt("json")
    renderer = ConversationRenderer.of(built.collator)
    rows = judge_examples(development, DIMENSIONS, prompt, "majority")
    features, learned = renderer.encode([renderer.verdict(row, prompt) for row in rows])
    with torch.no_grad():
        logprobs = built.model(**features).logits[:, :-1].log_softmax(-1)
    tokens = features["input_ids"][:, 1:]
    learned_logprobs = logprobs.gather(2, tokens[..., None])[..., 0][learned[:, 1:]]
    assert built.trainer().evaluate()["eval_loss"] == pytest.approx(
        -learned_logprobs.mean().item(), abs=1e-5
    )


def test_one_seed_gives_one_adapter_and_resuming_the_straight_run(judging: Build) -> None:
    options: dict[str, Any] = {
        **SHORT, "max_steps": 8, "save_strategy": "steps", "save_steps": 3,
        "save_total_limit": None,
    }  # fmt: skip
    straight = judging("judge_sft", "a", **options)
    wanted = straight.trained()
    lines = straight.logged()
    again = judging("judge_sft", "b", **options).trained()
    assert_equal(again, wanted)
    resumed = judging("judge_sft", "a", **options)
    # In the first epoch, and over its end: 12 cases, 24 rows, 4 in a step.
    checkpoint = Path(resumed.run.training.output_dir, "checkpoint-3")
    resumed.trainer().train(resume_from_checkpoint=str(checkpoint))
    assert_equal(resumed.state(), wanted)
    assert resumed.logged() == lines
    other = judging("judge_sft", "c", seed=43, **options).trained()
    assert not all(torch.equal(wanted[name], other[name]) for name in wanted)


def assert_equal(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("version", ["installed", "older"])
def test_preferences_start_at_even_odds_and_resume(
    version: str, judging: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions of transformers load no trained adapter where a reference lies beside it."""
    options = {
        **SHORT, "max_steps": 4, "save_strategy": "steps", "save_steps": 2,
        "train": [judged(1), judged(2)],
    }  # fmt: skip
    built = judging("judge_dpo", "a", **options)
    with torch.no_grad():  # an adapter that was trained before: the reference starts where it does
        for name, parameter in built.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    start = built.state()
    trainer = built.trainer()
    trainer.train()
    assert built.logged()[0] == pytest.approx(math.log(2), abs=1e-5)
    trained = built.state()
    assert not any(torch.equal(start[name], trained[name]) for name in start)
    resumed = judging("judge_dpo", "a", **options)
    for name, parameter in resumed.model.named_parameters():
        if name in start:
            parameter.data.copy_(start[name])
    if version == "older":
        monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda *_: None)
    resumed.trainer().train(
        resume_from_checkpoint=str(Path(resumed.run.training.output_dir, "checkpoint-2"))
    )
    assert_equal(resumed.state(), trained)


def test_preferences_repeat_and_differ_by_pairs(judging: Build) -> None:
    states = [
        judging("judge_dpo", str(number), **SHORT, **options).trained()
        for number, options in enumerate(
            ({}, {}, {"flip": "one"}, {"loss_type": ["sigmoid", "sft"]})
        )
    ]
    assert_equal(states[1], states[0])
    for other in states[2:]:
        assert not all(torch.equal(states[0][name], other[name]) for name in other)


def test_answers_are_preferred_by_their_implicit_reward(judging: Build) -> None:
    options = {"dpo_pairs": "answers", "dimensions": ("overall",)}
    built = judging("judge_dpo", **{**SHORT, **options, "max_steps": 6})
    built.check()
    assert built.objective.readout(built.run) == "implicit_reward"
    trainer = built.trainer()
    assert len(trainer.train_dataset) == len(built.train)  # no orders: one pair for each case
    trainer.train()
    assert built.logged()[0] == pytest.approx(math.log(2), abs=1e-5)
    assert built.logged("rewards/accuracies")[-1] == 1
    verdicts = judging("judge_dpo", "verdicts", judge={"judge_readout": "skeleton"})
    assert verdicts.objective.readout(verdicts.run) == "skeleton"


def test_workers_bring_the_same_batches(judging: Build, monkeypatch: Any) -> None:
    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [by_letters])
    for objective in ("judge_sft", "judge_grpo"):
        fresh = judging(objective).state()
        alone = judging(objective, f"{objective}-0", **SHORT).trained()
        options = {**SHORT, "dataloader_num_workers": 1}
        assert_equal(judging(objective, f"{objective}-1", **options).trained(), alone)
        assert not all(torch.equal(fresh[name], alone[name]) for name in fresh)


@pytest.mark.parametrize("objective", ["judge_sft", "judge_grpo"])
def test_nothing_is_sent_and_no_card_is_written(
    objective: str, judging: Build, monkeypatch: Any
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: pytest.fail("sent"))
    built = judging(objective, max_steps=1)
    built.trainer().train()
    files = {path.name for path in Path(built.run.training.output_dir).iterdir()}
    assert files == {"checkpoint-1", "metrics.jsonl"}


def test_cases_without_images_train(judging: Build) -> None:
    for objective in ("judge_sft", "judge_dpo", "judge_grpo"):
        built = judging(
            objective, objective, train=judged_cases(4, pictured=False),
            development=judged_cases(2, 50, pictured=False), **SHORT,
        )  # fmt: skip
        built.check()
        built.trainer().train()
        assert math.isfinite(built.logged()[0])


def test_grpo_takes_its_options_and_logs_each_reward(judging: Build) -> None:
    built = judging(
        "judge_grpo", max_steps=1, judge={"judge_prompt": "rationale_json", "max_new_tokens": 5},
        max_completion_length=None, reward_weights=[1.0, 0.5, 0.25], eval_strategy="steps",
    )  # fmt: skip
    built.check()
    built.trainer().train()
    assert built.logged("completions/max_length") == [5]
    for name in ("agreement", "format", "consistency"):
        assert built.logged(f"rewards/{name}/mean") == [0]
        assert built.logged(f"eval_rewards/{name}/mean") == [0]


def test_bf16_and_checkpointing_train(judging: Build) -> None:
    plain = judging("judge_sft", "plain", **SHORT)
    plain.trainer().train()
    saving = judging("judge_sft", "saving", gradient_checkpointing=True, bf16=True, **SHORT)
    saving.trainer().train()
    assert saving.logged() == pytest.approx(plain.logged(), abs=2e-2)


def test_lengths_are_those_of_the_longest_row(judging: Build) -> None:
    for objective, options in (
        ("judge_sft", {"judge": {"judge_prompt": "rationale_json"}}),
        ("judge_dpo", {"dpo_pairs": "answers", "dimensions": ("overall",)}),
    ):
        built = judging(objective, objective, **options)
        cases = [*built.train[:3], judged(900, overall=TIE)]
        trainer = built.trainer()
        lengths = built.objective.lengths(
            built.run, built.collator, built.dimensions, cases, examine(cases)
        )
        for index, length in enumerate(lengths[:3]):
            rows = [2 * index, 2 * index + 1] if objective == "judge_sft" else [index]
            batch = trainer.data_collator([{"row": row} for row in rows])
            assert int(batch["attention_mask"].sum(1).max()) == length
        if objective == "judge_sft":
            assert lengths[3] < min(lengths[:3])  # it has no row


def test_trl_cuts_nothing(judging: Build) -> None:
    built = judging("judge_sft", max_length=16)
    trainer = built.trainer()
    assert trainer.args.max_length is None
    assert built.run.training.max_length == 16
    assert trainer.data_collator([trainer.train_dataset[0]])["input_ids"].shape[1] > 100


def test_arguments_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(ConfigError) as caught:
        JudgeSFTConfig(
            folder, packing=True, padding_free=True, assistant_only_loss=True,
            remove_unused_columns=True, learning_rate=math.nan, per_device_train_batch_size=0,
            num_train_epochs=0, use_cpu=True, train_sampling_strategy="group_by_length",
            label_smoothing_factor=0.1, dataset_text_field="x",
        )  # fmt: skip
    for problem in (
        "packing is True", "padding_free is True", "assistant_only_loss is True",
        "remove_unused_columns is True", "learning_rate is nan",
        "per_device_train_batch_size is 0", "num_train_epochs is 0",
        "train_sampling_strategy is 'group_by_length'", "label_smoothing_factor is 0.1",
        "dataset_text_field is 'x'",
    ):  # fmt: skip
        assert problem in str(caught.value)
    with pytest.raises(ConfigError, match=r"flip is one.*rationales with.*beta is 0"):
        JudgeDPOConfig(folder, dpo_pairs="answers", flip="one", rationales="x", beta=0)
    with pytest.raises(ConfigError, match="precompute_ref_log_probs is True"):
        JudgeDPOConfig(folder, precompute_ref_log_probs=True)
    with pytest.raises(ConfigError, match="load_best_model_at_end is True"):
        JudgeGRPOConfig(folder, load_best_model_at_end=True)
    for config in (JudgeSFTConfig, JudgeDPOConfig, JudgeGRPOConfig):
        parsed = run_parser(config).parse_args(["--output_dir", folder, "--label_rule", "sampled"])
        assert (parsed.label_rule, parsed.bf16, parsed.max_length) == ("sampled", False, None)


def test_wrong_input_is_known_before_a_model_is_loaded(judging: Build, tmp_path: Path) -> None:
    def fails(error: type[Exception], match: str, objective: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            judging(objective, **options).check()

    for objective in ("judge_sft", "judge_dpo", "judge_grpo"):
        judging(objective).check()
        ties = [judged(1, accuracy=TIE)]
        fails(DataError, "none of 1 development cases", objective, development=ties)
        mixed = [*judged_cases(2), judged(9, pictured=False)]
        fails(ConfigError, "some have none", objective, train=mixed)
        fails(ConfigError, "unknown", objective, judge={"judge_prompt": "jsn"})
    single = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    judging("judge_sft", train=mixed, **single).check()
    reasons = {"judge_prompt": "rationale_json"}
    fails(ConfigError, "skeleton", "judge_sft", judge={**reasons, "judge_readout": "skeleton"})
    fails(ConfigError, "asks for none", "judge_dpo", rationales="x")
    fails(DataError, "cannot be read", "judge_sft", rationales=str(tmp_path / "x"), judge=reasons)
    fails(ConfigError, "--dimensions overall", "judge_dpo", dpo_pairs="answers")
    fails(
        ConfigError, "must start there", "judge_dpo", dpo_pairs="answers", dimensions=("overall",),
        judge={"init_adapter": "sft"},
    )  # fmt: skip
    fails(ConfigError, "use_peft false", "judge_dpo", adapter=AdapterOptions(use_peft=False))
    fails(ConfigError, "needs init_adapter", "judge_grpo", judge={"init_adapter": None})
    fails(ConfigError, "give 2, for agreement, format", "judge_grpo", reward_weights=[1.0])


def test_families_that_trl_cannot_train_are_named(judging: Build, monkeypatch: Any) -> None:
    family = "qwen2_5_vl"  # of the phantom base
    refused: dict[str, Any] = {"unsupported": {"judge_sft": "because"}}
    monkeypatch.setitem(FAMILIES, family, refused)
    with pytest.raises(ConfigError, match=f"family {family}: because"):
        judging("judge_sft").check()
    several = [judged(1)]
    several.append(type(several[0])(**{**fields(judged(2)), "images": judged(2).images * 2}))
    refused = {"one_image_only": {"judge_dpo": "because"}}
    monkeypatch.setitem(FAMILIES, family, refused)
    with pytest.raises(ConfigError, match="1 cases of several images: because"):
        judging("judge_dpo", train=several).check()
    judging("judge_dpo").check()


def fields(case: Any) -> dict[str, Any]:
    return {name: getattr(case, name) for name in type(case).__slots__}
