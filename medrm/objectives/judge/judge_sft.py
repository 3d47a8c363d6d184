"""Supervised judges: TRL's `SFTTrainer` learns to write the experts' verdict, and nothing else."""

from __future__ import annotations

from functools import partial

from trl import SFTTrainer

from medrm.objectives.judge.judge_arguments import JudgeSFTConfig
from medrm.objectives.judge.judge_collator import (
    ConversationRenderer,
    RenderedConversation,
    supervised,
)
from medrm.objectives.judge.judge_training import (
    RunExamples,
    WithoutExtras,
    check_judge,
    run_examples,
    trainer_options,
    verdict_lengths,
)
from medrm.objectives.objective import Objective, TrainingInputs


class JudgeSFTTrainer(WithoutExtras, SFTTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, which sends and writes nothing else."""


def render_verdict(
    renderer: ConversationRenderer, examples: RunExamples, number: int
) -> RenderedConversation:
    """Returns the call of an example with its verdict."""
    return renderer.verdict(examples[number], examples.prompt)


def build_trainer(inputs: TrainingInputs) -> JudgeSFTTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: the prompt is none.
        DataError: bad rationales.
    """
    examples, renderer = run_examples(inputs), ConversationRenderer.of(inputs.collator)
    return JudgeSFTTrainer(
        **trainer_options(inputs, len(examples.train), len(examples.development)),
        data_collator=partial(supervised, renderer, partial(render_verdict, renderer, examples)),
    )


OBJECTIVE = Objective(
    config=JudgeSFTConfig,
    readout=lambda run: run.judge.judge_readout,
    lengths=verdict_lengths,
    check=check_judge,
    build_trainer=build_trainer,
)
