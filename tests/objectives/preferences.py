"""Labelled cases with tiny images, and a tiny model to train on them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiny import make_tiny, tiny_image

from medrm.config.options import (
    AdapterOptions,
    DataOptions,
    EvaluationOptions,
    JudgeOptions,
    ModelOptions,
)
from medrm.config.parse import Run
from medrm.data.images import bytes_image, examine
from medrm.models.reward_model import attach_head
from medrm.models.trainable import add_adapter, freeze_backbone
from medrm.objectives.bradley_terry import build_trainer, head_spec
from medrm.objectives.objective import BradleyTerryConfig, TrainingInputs
from medrm.objectives.trainer import PreferenceTrainer
from medrm.schema import Case, ImageRef, Label, PairLabel, RankingLabel
from medrm.scorer.collator import Collator

DIMENSIONS = ("accuracy", "overall")
GOOD = ("clear lungs", "No acute cardiopulmonary abnormality is seen")
BAD = ("9999 9999", "8 7 6 5 4 3 2 1 0 score score score")


def image(seed: int) -> ImageRef:
    buffer = io.BytesIO()
    tiny_image(seed, 40, 30).save(buffer, "PNG")
    return bytes_image(f"noise-{seed}", partial(bytes, buffer.getvalue()))


def preference(number: int, ties: bool = False, answers: int = 2, pictured: bool = True) -> Case:
    """Returns a case whose good answer its words tell; the second dimension may be missing."""
    good, bad = GOOD[number % 2], BAD[number % 2]
    first = number % 3 == 0
    side = (0.8, 0.0, 0.2) if first else (0.0, 0.0, 1.0)
    if ties and number % 5 == 0:
        side = (0.4, 0.6, 0.0) if first else (0.0, 0.6, 0.4)
    labels: dict[str, Label] = {"accuracy": PairLabel(side, votes=1 + number % 3)}
    if number % 4:
        labels["overall"] = PairLabel((1.0, 0.0, 0.0) if first else (0.0, 0.0, 1.0))
    texts = (good, bad) if first else (bad, good)
    if answers > 2:
        texts = (good, *(f"{bad} {k}" for k in range(1, answers)))
        ranking = ((0,), tuple(range(1, answers)))
        labels = dict.fromkeys(labels, RankingLabel((ranking,)))
    return Case(
        f"case-{number}",
        (image(number),) if pictured else (),
        "What does the image show?" + " lungs" * (number % 7),
        texts,
        labels,
    )


def preferences(count: int, start: int = 0, **options: Any) -> list[Case]:
    return [preference(start + number, **options) for number in range(count)]


@dataclass
class Recipe:
    """One training, ready to start."""

    run: Run
    model: Any
    collator: Collator
    train: Sequence[Case]
    development: Sequence[Case]
    lengths: dict[str, int]

    def trainer(self) -> PreferenceTrainer:
        return build_trainer(
            TrainingInputs(
                self.run, self.model, self.collator, self.train, self.development, self.lengths
            )
        )


def make_recipe(
    output: Path,
    train: Sequence[Case] | None = None,
    development: Sequence[Case] | None = None,
    family: str = "qwen2_5_vl",
    frozen: bool = False,
    adapter: AdapterOptions | None = None,
    shared_prefix: bool = True,
    head: str = ModelOptions.head,
    **training: Any,
) -> Recipe:
    """Returns a tiny training; options are those of `BradleyTerryConfig`."""
    train = preferences(20) if train is None else train
    development = preferences(5, 100) if development is None else development
    # Before the arguments: they may switch on ZeRO-3, which would create the model in parts.
    model, processor = make_tiny(family, shared_prefix=shared_prefix)
    defaults = {
        "max_steps": 4, "global_batch_cases": 8, "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 2, "learning_rate": 5e-3, "head_learning_rate": 1e-2,
        "logging_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    arguments = BradleyTerryConfig(output_dir=str(output), **{**defaults, **training})
    options = AdapterOptions(lora_r=4) if adapter is None else adapter
    run = Run(
        DataOptions(train_data="x"), ModelOptions(head=head), options, EvaluationOptions(),
        JudgeOptions(), "bradley_terry", arguments,
    )  # fmt: skip
    attach_head(model, head_spec(run, DIMENSIONS, train), seed=0)
    if frozen:
        freeze_backbone(model)
    else:
        model = add_adapter(model, options, seed=0)
    collator = Collator(processor)
    cases = [*train, *development]
    lengths = collator.tokens(cases, examine(cases))
    by_id = {case.case_id: n for case, n in zip(cases, lengths, strict=True)}
    return Recipe(run, model, collator, train, development, by_id)
