"""Measures how far rewards depend on what else is scored, and what deterministic scoring costs.

python tests/scorer/precision_table.py MODEL_FOLDER [--cost]

The tables of `recipes/README.md`, section "Precision and batches"; a head is drawn at random, so
that the folder may be any base model.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from scorer.cases import make_case

from medrm.config.options import ModelOptions
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing.attention import disable_prefix_sharing, enable_prefix_sharing
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.schema import Case
from medrm.scorer.readouts.answer_rewards import RewardModel

WORDS = "The chest radiograph shows clear lungs without effusion and a heart of normal size"
ROUNDS = 3
BATCH_ROWS = (1, 4, 32)


def cases(count: int, answers: int, words: int, size: tuple[int, int]) -> list[Case]:
    """Cases with an image and answers of half to one and a half times so many words."""
    rng = np.random.default_rng(0)
    drawn = []
    for number in range(count):
        case = make_case(number % 7, answers=answers, sizes=(size,))
        lengths = (words * rng.uniform(0.5, 1.5, answers)).astype(int)
        texts = tuple(" ".join(rng.choice(WORDS.split(), length)) for length in lengths)
        drawn.append(replace(case, case_id=str(number), answers=texts))
    return drawn


class Measured:
    """A base with a random head, in one precision."""

    def __init__(self, folder: str, dtype: Any) -> None:
        options = ModelOptions(model_name_or_path=folder, dtype=dtype)
        self.base, self.processor = load_base(options), load_processor(folder)
        attach_head(self.base, HeadSpec(("accuracy", "overall")), seed=1)
        self.contract = new_adapter_config(
            self.base, self.processor, options, "bradley_terry", "reward"
        )

    def score(self, some: list[Case], rows: int, deterministic: bool) -> NDArray[np.float32]:
        model = RewardModel(
            self.base, self.processor, self.contract, batch_rows=rows, deterministic=deterministic
        )
        return np.stack([rewards for _, rewards in model.score_cases(some)])

    def rounding(self) -> str:
        """The largest changes over batch sizes, with shared prefixes and with separate rows."""
        pairs, rewards = cases(16, 2, 30, (112, 84)), {}
        for name, switch in (("on", enable_prefix_sharing), ("off", disable_prefix_sharing)):
            switch(self.base)
            for rows in BATCH_ROWS:
                rewards[name, rows] = self.score(pairs, rows, deterministic=False)
            rewards[name, 0] = self.score(pairs, 4, deterministic=True)
        assert np.array_equal(rewards.pop(("on", 0)), rewards.pop(("off", 0)))
        every = np.stack(list(rewards.values()))
        margins = every[:, :, 0] - every[:, :, 1]
        by_size = [
            np.ptp(np.stack([rewards[name, rows] for rows in BATCH_ROWS]), 0).max()
            for name in ("on", "off")
        ]
        changes = [np.ptp(every, 0).max(), np.ptp(margins, 0).max(), *by_size]
        cells = " | ".join(f"{change:.2g}" for change in changes)
        return f"{cells} | (standard deviation of the rewards {every[0].std():.2g})"

    def cost(self, answers: int) -> str:
        """The processor time of deterministic scoring over the default's, by rounds."""
        some = cases(16 // answers, answers, 60, (448, 448))
        self.score(some[:1], 32, deterministic=False)
        ratios = []
        for _ in range(ROUNDS):
            started = time.process_time()
            self.score(some, 32, deterministic=False)
            middle = time.process_time()
            self.score(some, 32, deterministic=True)
            ratios.append((time.process_time() - middle) / (middle - started))
        return f"{answers} answers: " + ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--cost", action="store_true", help="time of --deterministic instead")
    arguments = parser.parse_args()
    for dtype in ("float32", "bfloat16"):
        measured = Measured(arguments.folder, dtype)
        if arguments.cost:
            for answers in (2, 8):
                sys.stdout.write(f"{dtype}, {measured.cost(answers)}\n")
        else:
            sys.stdout.write(f"| {dtype} | {measured.rounding()}\n")


if __name__ == "__main__":
    main()
