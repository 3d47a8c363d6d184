"""The start policy, GRPO, and what is measured of a policy on held-out questions."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from phantom_questions import Question, Said, draw_questions, said, trl_row
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import medrm
from medrm.files import asset
from medrm.models.processors import load_processor, save_processor
from medrm.statistics.intervals import Interval, mean_interval

logger = logging.getLogger(__name__)

TRUTH = "accuracy"
"""The dimension that says how true an answer is."""

ANSWERS = 8
"""Answers to each question of a GRPO step."""

LONGEST_ANSWER = 64
"""Tokens; the longest phantom answer has about 45."""

_AT_ONCE = 96

COMMON: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": True,
    "save_strategy": "no",
    "logging_steps": 10,
    "disable_tqdm": True,
}
"""Arguments of both trainers."""


def make_start(folder: Path, phantom_seed: int, steps: int, seed: int) -> None:
    """Writes a policy that has learned from true and wrong answers alike.

    Args:
        folder: of the model and its processor.
        phantom_seed: of the cases.
        steps: of 32 answers, to 16 questions.
        seed: of the order.
    """
    base = asset("recipes/quickstart/phantom-base")
    model, processor = _model(base), load_processor(str(base))
    rows = [
        {**trl_row(question), "completion": [{"role": "assistant", "content": answer}]}
        for question in draw_questions(phantom_seed, 16 * steps)
        for answer in question.answers
    ]
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1.5e-3,
        warmup_steps=5,
        max_length=None,
        dataloader_num_workers=1,
        seed=seed,
        **COMMON,
    )
    trainer = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=processor
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    _save(model, processor, folder)


def train(
    start: Path,
    reward: medrm.RewardFunction,
    held_out: HeldOut,
    phantom_seed: int,
    options: argparse.Namespace,
) -> None:
    """Trains a policy by GRPO into `OUTPUT/policy`, and measures it every few steps.

    Args:
        start: folder of the policy to start from.
        reward: one function; of several dimensions each is a function of its own, normalised apart
            before they are summed (GDPO).
        held_out: measures.
        phantom_seed: of the questions.
        options: of the command line.
    """
    model, processor = _model(start), load_processor(str(start))
    processor.tokenizer.padding_side = "left"  # TRL pads prompts there, and so must what it calls
    questions = draw_questions(phantom_seed, options.steps * ANSWERS)
    arguments = GRPOConfig(
        output_dir=str(options.output_dir),
        max_steps=options.steps,
        per_device_train_batch_size=ANSWERS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=LONGEST_ANSWER,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        beta=options.beta,
        multi_objective_aggregation="normalize_then_sum",
        seed=options.seed,
        **COMMON,
    )
    trainer = GRPOTrainer(
        model,
        reward.each(),
        arguments,
        Dataset.from_list([trl_row(question) for question in questions]),
        processing_class=processor,
        callbacks=[_Measuring(held_out, processor, options.measure_every)],
    )
    trainer.remove_callback(PrinterCallback)  # what is measured is told step by step
    trainer.train()
    _save(model, processor, options.output_dir / "policy")


class _Measuring(TrainerCallback):
    """Measures the start, every few steps, and the end."""

    def __init__(self, held_out: HeldOut, processor: ProcessorMixin, every: int) -> None:
        self.held_out, self.processor, self.every = held_out, processor, every

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any
    ) -> None:
        """Measures the start."""
        self.held_out.measure(0, model, self.processor)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any
    ) -> None:
        """Measures where it is time to."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.held_out.measure(state.global_step, model, self.processor)


class Measured(NamedTuple):
    """One sampled answer to each held-out question.

    Attributes:
        answers: as the policy wrote them.
        said: what they say of their images.
        rewards: None where an answer could not be scored.
        on_accuracy: the reward on accuracy alone where it is rewarded, else the same.
    """

    answers: list[str]
    said: list[Said]
    rewards: list[float | None]
    on_accuracy: list[float | None]


class HeldOut:
    """Questions that no policy learns from, and what policies answered.

    Args:
        phantom_seed: of the questions.
        count: of them.
        reward: of the answers.
    """

    def __init__(self, phantom_seed: int, count: int, reward: medrm.RewardFunction) -> None:
        self.questions = draw_questions(phantom_seed, count)
        self.clusters = [question.cluster for question in self.questions]
        self.reward = reward
        self.by_step: dict[int, Measured] = {}

    def measure(self, step: int, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Samples an answer to each question, as GRPO does, and judges it."""
        answers = sample(model, processor, self.questions)
        told = [
            said(answer, question.facts)
            for answer, question in zip(answers, self.questions, strict=True)
        ]
        words = [question.words for question in self.questions]
        images = [question.image for question in self.questions]
        scored = self.reward.rewards(words, answers, image=images)
        rewards = [None if by is None else self.reward.weighted(by) for by in scored]
        on_accuracy = [
            reward if by is None else by.get(TRUTH, reward)
            for by, reward in zip(scored, rewards, strict=True)
        ]
        self.by_step[step] = measured = Measured(answers, told, rewards, on_accuracy)
        point = self._point(step, measured)
        logger.info(
            "step %d: reward %.3f, %.1f %% of the answers true, %.2f facts an answer",
            step,
            point["reward"],
            100 * point["accuracy"],
            point["facts"],
        )

    def result(self) -> dict[str, Any]:
        """Returns the curves, before and after, and their differences with intervals."""
        first, last = self.by_step[0], self.by_step[max(self.by_step)]
        truths = [[float(one.is_true) for one in measured.said] for measured in (first, last)]
        compared = {
            "reward": self._compared(first.rewards, last.rewards),
            "accuracy": self._compared(*truths),
        }
        curve = [self._point(step, measured) for step, measured in self.by_step.items()]
        best = max(curve, key=lambda point: point["accuracy"])
        reward, accuracy, end = compared["reward"], compared["accuracy"], curve[-1]
        low, high = (100 * bound for bound in accuracy["ci95"])
        headline = [
            "Reward {before:+.2f} -> {after:+.2f}: {delta:+.2f} (95 % CI {ci95[0]:+.2f} to "
            "{ci95[1]:+.2f}).".format(**reward),
            f"True answers {100 * accuracy['before']:.1f} -> {100 * accuracy['after']:.1f} %: "
            f"{100 * accuracy['delta']:+.1f} points (95 % CI {low:+.1f} to {high:+.1f}); most, "
            f"{100 * best['accuracy']:.1f} %, at step {best['step']}.",
            f"At the end the reward promises {100 * end['promised']:.1f} % true answers, "
            f"{100 * end['gap']:+.1f} points more than there are.",
        ]
        return {
            "headline": headline,
            "questions": len(self.questions),
            "images": len(set(self.clusters)),
            "scale": self._scale(),
            **compared,
            "curve": curve,
        }

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields every answer to every question, with its reward and whether it is true."""
        for step, measured in self.by_step.items():
            for question, answer, told, reward in zip(self.questions, *measured[:3], strict=True):
                yield {
                    "step": step,
                    "image": question.cluster,
                    "question": question.words,
                    "answer": answer,
                    "true": told.is_true,
                    "facts": told.facts,
                    "reward": reward,
                }

    def _scale(self) -> dict[str, float]:
        """Returns the mean reward on accuracy of true and of wrong answers of the start.

        On this scale, from 0 (as wrong ones) to 1 (as true ones), the start's mean reward is the
        share of its answers that are true.
        """
        rewards: dict[bool, list[float]] = {True: [], False: []}
        start = self.by_step[0]
        for told, reward in zip(start.said, start.on_accuracy, strict=True):
            if reward is not None:
                rewards[told.is_true].append(reward)
        return {
            "true": fmean(rewards[True] or [1.0]),
            "wrong": fmean(rewards[False] or [0.0]),
        }

    def _point(self, step: int, measured: Measured) -> dict[str, Any]:
        truths = [float(one.is_true) for one in measured.said]
        reward, accuracy = self._mean(measured.rewards), self._mean(truths)
        scale = self._scale()
        on_accuracy = self._mean(measured.on_accuracy).mean
        promised = (on_accuracy - scale["wrong"]) / (scale["true"] - scale["wrong"])
        return {
            "step": step,
            "reward": reward.mean,
            "reward_ci95": reward.bounds,
            "accuracy": accuracy.mean,
            "accuracy_ci95": accuracy.bounds,
            "promised": promised,
            "gap": promised - accuracy.mean,
            "facts": fmean(one.facts for one in measured.said),
            "unscored": measured.rewards.count(None),
        }

    def _mean(self, values: list[Any]) -> Interval:
        present = [(v, c) for v, c in zip(values, self.clusters, strict=True) if v is not None]
        return mean_interval([v for v, _ in present], [c for _, c in present])

    def _compared(self, before: list[Any], after: list[Any]) -> dict[str, Any]:
        """Returns the means of both, and their paired difference with its interval by image."""
        pairs = zip(before, after, strict=True)
        differences = [None if None in pair else pair[1] - pair[0] for pair in pairs]
        difference = self._mean(differences)
        return {
            "before": self._mean(before).mean,
            "after": self._mean(after).mean,
            "delta": difference.mean,
            "ci95": difference.bounds,
        }


@torch.no_grad()
def sample(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[Question], seed: int = 0
) -> list[str]:
    """Returns an answer to each question, drawn from all of the policy's probabilities.

    The training's own random numbers go on as if nothing had been drawn. The processor pads on the
    left.
    """
    answers: list[str] = []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(questions), _AT_ONCE):
            turns = [
                [{"role": "user", "content": [image, {"type": "text", "text": question.words}]}]
                for question in questions[start : start + _AT_ONCE]
                for image in [{"type": "image", "image": question.image}]
            ]
            inputs = processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
            written = model.generate(
                **inputs, max_new_tokens=LONGEST_ANSWER, do_sample=True, top_k=0, temperature=1.0
            )
            new = written[:, inputs["input_ids"].shape[1] :]
            answers += processor.batch_decode(new, skip_special_tokens=True)
    model.train(was_training)
    return answers


def _model(folder: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    model.save_pretrained(folder)
    save_processor(processor, folder)
