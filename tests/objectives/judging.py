"""Trainings of tiny judges: cases whose better answer one word tells, and all that a run needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferences import image
from tiny import make_tiny
from torch import Tensor

from medrm.config.options import (
    AdapterOptions,
    DataOptions,
    EvaluationOptions,
    JudgeOptions,
    ModelOptions,
)
from medrm.config.parse import Run
from medrm.data.images import examine
from medrm.models.trainable import add_adapter
from medrm.objectives import load_objective
from medrm.objectives.objective import TrainingInputs
from medrm.schema import Case, Label, PairLabel
from medrm.scorer.collator import Collator

DIMENSIONS = ("accuracy", "overall")
FIRST, TIE, SECOND = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


SHORT: dict[str, Any] = {
    "max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "warmup_steps": 0,
}  # fmt: skip
"""A training of one step and nothing else."""


def by_letters(completions: Any, **columns: Any) -> list[float]:
    """Rewards some letters more than others, so that a random model has something to learn."""
    return [sum(map(ord, completion[0]["content"])) % 17 / 17 for completion in completions]


def judged(number: int, pictured: bool = True, **labels: tuple[float, float, float]) -> Case:
    """Returns a case whose answer `Yes` is better; labels of other shares may be given."""
    first = number % 3 != 0
    shares: dict[str, Label] = {
        name: PairLabel(vote_shares)
        for name, vote_shares in (labels or {"accuracy": FIRST}).items()
    }
    if not labels:
        shares = dict.fromkeys(DIMENSIONS, PairLabel(FIRST if first else SECOND))
    return Case(
        f"case-{number}",
        (image(number),) if pictured else (),
        f"lungs {number}?",
        ("Yes", "No") if first else ("No", "Yes"),
        shares,
    )


def judged_cases(count: int, start: int = 0, **options: Any) -> list[Case]:
    return [judged(start + number, **options) for number in range(count)]


@dataclass
class Judging:
    """One training of a judge, ready to start."""

    objective: Any
    run: Run
    model: Any
    collator: Collator
    train: Sequence[Case]
    development: Sequence[Case]
    dimensions: Sequence[str] = field(default=DIMENSIONS)

    def trainer(self) -> Any:
        cases = [*self.train, *self.development]
        counts = self.objective.lengths(
            self.run, self.collator, self.dimensions, cases, examine(cases)
        )
        lengths = {case.case_id: n for case, n in zip(cases, counts, strict=True)}
        return self.objective.build_trainer(
            TrainingInputs(
                self.run, self.model, self.collator, self.train, self.development, lengths
            )
        )

    def check(self) -> None:
        self.objective.check(self.run, self.dimensions, self.train, self.development)

    def trained(self) -> dict[str, Tensor]:
        """Trains and returns copies of what was trained."""
        self.trainer().train()
        return self.state()

    def state(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}

    def logged(self, key: str = "loss") -> list[float]:
        path = Path(self.run.training.output_dir, "metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line[key] for line in lines if key in line]


_DEFAULTS: dict[str, dict[str, Any]] = {
    "judge_sft": {"learning_rate": 5e-3},
    "judge_dpo": {"learning_rate": 5e-3},
    "judge_grpo": {"learning_rate": 5e-3, "num_generations": 2, "max_completion_length": 8},
}


def make_judging(
    objective: str,
    output: Path,
    family: str = "qwen2_5_vl",
    train: Sequence[Case] | None = None,
    development: Sequence[Case] | None = None,
    judge: dict[str, Any] | None = None,
    adapter: AdapterOptions | None = None,
    dimensions: Sequence[str] = DIMENSIONS,
    **training: Any,
) -> Judging:
    """Returns a tiny training; options are those of the objective's arguments."""
    # Before the arguments: they may switch on ZeRO-3, which would create the model in parts.
    model, processor = make_tiny(family)
    loaded = load_objective(objective)
    defaults = {
        "max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    arguments = loaded.config(
        output_dir=str(output), **{**defaults, **_DEFAULTS[objective], **training}
    )
    options = AdapterOptions(lora_r=4) if adapter is None else adapter
    start = {"init_adapter": "sft"} if objective == "judge_grpo" else {}
    run = Run(
        DataOptions(train_data="x", dimensions=list(dimensions)), ModelOptions(), options,
        EvaluationOptions(), JudgeOptions(**{**start, **(judge or {})}), objective, arguments,
    )  # fmt: skip
    model = add_adapter(model, options, seed=0)
    return Judging(
        loaded, run, model, Collator(processor),
        judged_cases(12) if train is None else train,
        judged_cases(3, 100) if development is None else development,
        dimensions,
    )  # fmt: skip
