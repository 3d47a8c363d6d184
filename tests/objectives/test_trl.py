"""TRL's text-only reward trainer as an oracle for our loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import make_tiny
from transformers import Qwen2Config, Qwen2ForSequenceClassification
from trl import RewardConfig, RewardTrainer

from medrm.objectives.targets import Targets
from medrm.schema import Case, PairLabel

ROWS = [
    ("clear lungs", "9 8 7 6"),
    ("No acute cardiopulmonary abnormality is seen", "Yes"),
    ("Which answer is better?", "score score score 0 1 2"),
]
MARGINS = [0.5, 0.0, 1.25]


def oracle(folder: Path, **options: Any) -> tuple[RewardTrainer, dict[str, Any]]:
    """Returns TRL's trainer on a tiny text model, and its batch of the rows."""
    _, processor = make_tiny("qwen2_5_vl")
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = Dataset.from_list(
        [
            {"chosen": chosen, "rejected": rejected, "margin": margin}
            for (chosen, rejected), margin in zip(ROWS, MARGINS, strict=True)
        ]
    )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            per_device_train_batch_size=3,
            **options,
        ),
        processing_class=tokenizer,
        train_dataset=rows,
    )
    return trainer, trainer.data_collator([trainer.train_dataset[row] for row in range(3)])


@pytest.mark.parametrize("centring", [0.0, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_equals_trl_on_the_same_batch(tmp_path: Path, centring: float, with_margin: bool) -> None:
    trainer, batch = oracle(tmp_path, center_rewards_coefficient=centring or None)
    margins = MARGINS if with_margin else [0.0] * 3
    if not with_margin:
        del batch["margin"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        chosen, rejected = trainer.model.eval()(**inputs).logits.float().chunk(2)
    rewards = torch.stack([chosen, rejected], dim=1).reshape(-1, 1)
    ours = torch.zeros(())
    for index, margin in enumerate(margins):
        targets = Targets(
            dimensions=("overall",),
            dimension_weights=(1.0,),
            ties="none",
            tied=(False,),
            vote_targets="majority",
            margin=margin,
            center_rewards_coefficient=centring,
        )
        case = Case("c", (), "?", ("a", "b"), {"overall": PairLabel((1.0, 0.0, 0.0))})
        (group,) = targets.groups([case], [1 / 3])
        losses = targets.losses(group, rewards[2 * index : 2 * index + 2], None)
        ours = ours + (group.weights * losses).sum()
    theirs = trainer.compute_loss(trainer.model, batch)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
