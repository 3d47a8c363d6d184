"""Judges train by TRL's trainers, on every family, and nothing but their adapter changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from judging import SHORT, Judging, by_letters, judged, judged_cases
from tiny import SOME_FAMILIES, TINY_FAMILIES, save_tiny
from torch import Tensor

from medrm import chat_template
from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.models.families import FAMILIES
from medrm.models.prefix_sharing.batch import append_tokens
from medrm.objectives.judge import judge_grpo, judge_trainer
from medrm.schema import Case
from medrm.scorer.collator import Row


def changed(built: Judging) -> dict[str, Tensor]:
    """Trains and returns what is another weight than before."""
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    built.trainer().train()
    after = dict(built.model.named_parameters())
    return {name: after[name] for name in before if not torch.equal(after[name], before[name])}


def two_images(number: int) -> Case:
    case = judged(number)
    return dataclasses.replace(case, images=(*case.images, *judged(number + 1).images))


@pytest.mark.parametrize("family", SOME_FAMILIES)
@pytest.mark.parametrize("objective", ["judge_sft", "judge_dpo"])
def test_every_family_trains_its_adapter_alone(
    objective: str, family: str, judging: Callable[..., Judging]
) -> None:
    built = judging(objective, family=family, train=[judged(1), two_images(2)], **SHORT)
    moved = changed(built)
    assert moved
    assert all("lora_B.default" in name for name in moved)  # A has a gradient once B is not 0
    assert math.isfinite(built.logged()[0])


@pytest.mark.parametrize("objective", ["judge_sft", "judge_dpo", "judge_grpo"])
def test_logits_are_those_of_learned_tokens_alone(
    objective: str, judging: Callable[..., Judging], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[int, int]] = []
    per_token = trl.trainer.utils._ChunkedLogProbFunction

    class Counting:
        @staticmethod
        def apply(states: Tensor, *rest: Any) -> Any:
            scored.append((len(states), len(rest[2])))
            return per_token.apply(states, *rest)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Counting)
    built = judging(objective, train=[judged(1)], **SHORT)
    trainer, learned = built.trainer(), []
    collate = trainer.data_collator

    def collated(rows: Any) -> Any:
        batch = collate(rows)
        if objective != "judge_grpo":
            of_replies = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"]
            learned.append(int(of_replies.sum()))
        return batch

    trainer.data_collator = collated
    trainer.train()
    # GRPO: two replies of at most eight tokens for each of two orders.
    assert {states for states, _ in scored} <= ({*learned} or set(range(1, 33)))
    assert all(states == targets for states, targets in scored)


def test_what_trl_cannot_train_is_refused_and_still_so(
    judging: Callable[..., Judging], tmp_path: Path
) -> None:
    for family, train, problem in (
        ("mllama", [judged(1)], "aspect_ratio_ids"),
        ("llava_onevision", [two_images(1)], "split_with_sizes"),
    ):
        built = judging("judge_grpo", family, family=family, train=train, **SHORT)
        model = ModelOptions(model_name_or_path=str(save_tiny(family, tmp_path / family)))
        built.run = dataclasses.replace(built.run, model=model)
        with pytest.raises(ConfigError, match=f"family {family}.*GRPOTrainer loses"):
            built.check()
        with pytest.raises((ValueError, RuntimeError), match=problem):
            built.trainer().train()


SUPPORTED = [family for family in TINY_FAMILIES if family != "mllama"]


@pytest.mark.parametrize("family", SUPPORTED)
def test_grpo_reads_the_probabilities_that_scoring_reads(
    family: str, judging: Callable[..., Judging], monkeypatch: Any
) -> None:
    """TRL pads, tokenises and cuts up images in a way of its own: each token is checked."""
    monkeypatch.setattr(judge_grpo, "rewards_of", lambda prompt: [by_letters])
    several = "one_image_only" not in FAMILIES.get(family, {})
    other = two_images(5) if several else judged(5)
    options = {"train": [judged(11), other], "per_device_train_batch_size": 8, **SHORT}
    built = judging("judge_grpo", family=family, **options)
    trainer, seen, prompts = built.trainer(), [], []
    read, generate = trainer._get_per_token_logps_and_entropies, trainer._generate

    def reading(model: Any, ids: Tensor, mask: Tensor, keep: int, **inputs: Any) -> Any:
        logps = read(model, ids, mask, keep, **inputs)
        seen.append((ids, mask, keep, logps[0].detach()))
        return logps

    def generating(messages: Any) -> Any:
        prompts.extend(messages)
        return generate(messages)

    trainer._get_per_token_logps_and_entropies = reading
    trainer._generate = generating
    before = built.state()
    trainer.train()
    after = built.state()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    ids, mask, keep, logps = seen[-1]
    encoded = [_encoded(built, messages) for messages in prompts]
    base = built.model.get_base_model().eval()
    matched = set()
    for row in range(len(ids)):
        reply_length = int(mask[row, -keep:].sum())
        row_ids = ids[row][mask[row].bool()].tolist()
        prompt, reply = row_ids[:-reply_length], row_ids[-reply_length:]
        index = next(k for k, e in enumerate(encoded) if e["input_ids"][0].tolist() == prompt)
        matched.add(len(prompt))
        rows = append_tokens(encoded[index], [len(prompt)], [reply])
        with torch.no_grad(), built.model.disable_adapter():
            logits = base(**rows).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0]
        torch.testing.assert_close(logps[row, :reply_length], wanted, atol=5e-6, rtol=0)
    assert len(matched) == 2  # rows of several lengths


def _encoded(built: Judging, messages: Any) -> Any:
    segments = [segment for m in messages for segment in m["content"]]
    images = [segment["image"] for segment in segments if segment["type"] == "image"]
    plain = [
        {**m, "content": [{k: v for k, v in seg.items() if k != "image"} for seg in m["content"]]}
        for m in messages
    ]
    text = chat_template.render(built.collator.processor, plain, "generation_prompt")
    return built.collator._process([Row(text, ()).text], [images])


def test_one_opening_token_where_the_template_writes_it(judging: Callable[..., Judging]) -> None:
    """With two, TRL would take the tokens before an image for the image's (Gemma 3)."""
    from tokenizers.processors import TemplateProcessing

    built = judging("judge_grpo", family="gemma3", **SHORT)
    tokenizer = built.collator.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    theirs = built.trainer().processing_class.tokenizer
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert theirs("x")["input_ids"][0] != tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("objective", "options", "measure"),
    [
        ("judge_sft", {}, "mean_token_accuracy"),
        ("judge_dpo", {"dpo_pairs": "answers"}, "rewards/margins"),
    ],
)
def test_sets_of_a_mixture_are_measured_apart(
    judging: Callable[..., Judging],
    objective: str,
    options: dict[str, Any],
    measure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole is the mean of the rows, and each set is as it would be alone."""
    cases = [
        dataclasses.replace(case, groups={"set": "own" if number % 3 else "public"})
        for number, case in enumerate(judged_cases(7, 500))
    ]
    built = judging(
        objective, objective, train=judged_cases(4), development=cases,
        dimensions=("accuracy",), per_device_eval_batch_size=1, **{**SHORT, **options},
    )  # fmt: skip
    trainer = built.trainer()
    measured = trainer.evaluate()
    loaders = []
    monkeypatch.setattr(judge_trainer, "watched", lambda loader, arguments: loaders.append(loader))
    assert trainer.evaluate()["eval_loss"] == measured["eval_loss"]
    assert len(loaders) == 1  # that which transformers makes; those of the sets are kept
    sets, trainer.development_sets = trainer.development_sets, {}
    assert [*sets] == ["public", "own"]
    whole = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-4)
    assert not any("_set_" in key for key in whole)
    for name, rows in sets.items():
        alone = trainer.evaluate(trainer.eval_dataset.select(rows))
        for key in ("loss", measure):
            assert measured[f"eval_{key}_set_{name}"] == pytest.approx(alone[f"eval_{key}"])
