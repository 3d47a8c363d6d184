"""What an objective is: training arguments, a readout, and how its trainer is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainingArguments

from medrm.config import Run
from medrm.data.rows import Excluded
from medrm.models.reward_model import HeadSpec
from medrm.schema import Case
from medrm.scorer.collate import Collator


class Builder(Protocol):
    """Builds a trainer."""

    def __call__(
        self,
        run: Run,
        model: PreTrainedModel | PeftModel,
        collator: Collator,
        train: Sequence[Case],
        development: Sequence[Case],
        lengths: Mapping[str, int],
    ) -> Trainer:
        """Returns the trainer of `model`, which is changed in place by training it.

        Args:
            run: the resolved run; `run.training` is the objective's `config`.
            model: with its head and adapter attached.
            collator: turns cases into the model's inputs.
            train: cases to learn from, each with a label.
            development: cases that choose the best checkpoint.
            lengths: case id to the tokens of the case's longest row, for both sets.
        """
        ...


@dataclass(frozen=True)
class Objective:
    """One way of learning from preferences.

    Attributes:
        config: the class of its training arguments.
        readout: how its adapter is scored.
        head_spec: (run, dimensions, training cases) to the head that is attached before training.
        check: (run, dimensions, training cases, development cases); raises ConfigError or DataError
            for whatever can be known to be wrong before a model is loaded.
        fit_for_training: (cases, lengths by case id, max_length) to what is kept and set aside.
        build_trainer: builds the trainer.
    """

    config: type[TrainingArguments]
    readout: Literal["reward"]
    head_spec: Callable[[Run, Sequence[str], Sequence[Case]], HeadSpec]
    check: Callable[[Run, Sequence[str], Sequence[Case], Sequence[Case]], None]
    fit_for_training: Callable[
        [Sequence[Case], Mapping[str, int], int | None], tuple[list[Case], list[Excluded]]
    ]
    build_trainer: Builder
