"""The options of `medrm throughput`; without torch, so that the command line can show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medrm.config.options import option
from medrm.errors import ConfigError

TASKS = ("train", "score")

_LEAST = {"question_tokens": 3}
"""The least value of an option, where it is not 1; two tokens start and end the image."""


@dataclass(frozen=True)
class ThroughputOptions:
    """What is measured, and how long."""

    model: str | None = option(
        None, "Base model to measure: hub id, folder, or phantom-base. None: a shape."
    )
    shape: Literal["tiny", "small", "qwen2_5_vl_7b"] = option(
        "small",
        "Qwen2.5-VL shape with random weights: small (a decoder of 25 M parameters), "
        "qwen2_5_vl_7b (the true one, for a GPU), tiny (to try the command).",
    )
    image_tokens: int = option(
        1024, "Image tokens of a case; a checkpoint's processor may take the nearest it can."
    )
    question_tokens: int = option(
        64, "Text tokens before the answers; a checkpoint's template comes on top."
    )
    answer_tokens: int = option(160, "Tokens of each answer; likewise.")
    tasks: list[str] = option(list(TASKS), "Of train, score.")
    answers: list[int] = option([2, 4, 8], "Answers of a case (K).")
    cases: int = option(1, "Cases of a step; a GPU needs more to be busy.")
    rounds: int = option(3, "Rounds; in each, every variant runs one step.")
    quick: bool = option(
        False,
        "A quarter of the tokens; training with the fewest answers, scoring with the most.",
    )
    gradient_checkpointing: bool = option(False, "Compute the decoder's activations twice.")
    device: str | None = option(None, "cpu or cuda. None: the GPU if there is one.")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Weights' precision; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    output: str | None = option(None, "JSON file to write.")

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; give {_LEAST.get(name, 1)} or more"
            for name, value in vars(self).items()
            if type(value) is int and value < _LEAST.get(name, 1)
        ]
        if not self.answers or min(self.answers) < 2 or max(self.answers) > 8:
            problems.append(f"answers is {self.answers}; give numbers from 2 to 8")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            problems.append(f"tasks is {self.tasks}; give train, score or both")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def plan(self) -> list[tuple[str, int]]:
        """The (task, K) to measure."""
        numbers = sorted(set(self.answers))
        chosen = {"train": numbers[:1], "score": numbers[-1:]} if self.quick else {}
        return [
            (task, answers)
            for task in TASKS
            if task in self.tasks
            for answers in chosen.get(task, numbers)
        ]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens to measure with: of the image, the question and each answer."""
        return tuple(
            max(_LEAST.get(name, 1), vars(self)[name] // (4 if self.quick else 1))
            for name in ("image_tokens", "question_tokens", "answer_tokens")
        )
