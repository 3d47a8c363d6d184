"""Trains the phantom base, the small model with vision that the quickstart starts from.

    python recipes/quickstart/make_base.py --output recipes/quickstart/phantom-base

The architecture is Qwen2.5-VL with 2 million parameters. It learns to describe phantom images and
to answer questions about them, some of them about one of two texts; it is never asked which of two
is better, and it never sees a quality dimension.

1. The vision tower learns for `WARM_UP_STEPS` to tell, from each visual token, what lies under it.
   Without this the language model learns modality and organ in minutes, but no lesion in an hour.
2. The whole model learns from images with several independent exchanges each: a description,
   facts as a word, as JSON and by letters, and questions whether a text is right. The last kind is
   learnt last and matters most for a reward model; asked about one of two texts, for a judge.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from forward import CELL_TARGETS, END_WEIGHT, OPENING, Reader, forward, see
from network import HIDDEN, Model, TextTokenizer, build_model, build_tokenizer, save
from torch import Tensor, nn
from torch.nn import functional

WARM_UP_STEPS, WARM_UP_IMAGES = 150, 48
IMAGES = 32
MEASURE_SEED = 10_000
GREY = 128 / 127.5 - 1


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Returns the share of the learning rate: linear warm-up, then half a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))


def measure(
    model: Model,
    tokenizer: TextTokenizer,
    images: int,
    blank: bool = False,
) -> dict[str, float]:
    """Returns kind -> share of exchanges with every word right (teacher-forced), fresh images."""
    right: dict[str, list[bool]] = {}
    reader = Reader(tokenizer, seed=MEASURE_SEED)
    opening = reader.encode(OPENING)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(0, images, IMAGES):
            batch = reader.batch(IMAGES)
            if blank:
                batch.planes.fill_(GREY)
            _, logits = forward(model, opening, batch)
            for group, scores in zip(batch.groups, logits, strict=True):
                missed = (scores.argmax(-1) != group.token) & (group.weight > END_WEIGHT)
                wrong = set(group.exchange[missed].tolist())
                for number, kind in enumerate(group.kinds):
                    right.setdefault(kind, []).append(number not in wrong)
    return {kind: round(float(np.mean(hits)), 4) for kind, hits in sorted(right.items())}


def warm_up(model: Model, head: nn.Linear, reader: Reader) -> None:
    """First stage: vision tower and `head` learn what lies under each visual token."""
    optimizer = torch.optim.AdamW(
        [*model.model.visual.parameters(), *head.parameters()], lr=2e-3, betas=(0.9, 0.98)
    )
    for step in range(WARM_UP_STEPS):
        _, planes, wanted = reader.pictures(WARM_UP_IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            cells = head(see(model, planes))
        loss = cell_loss(cells, wanted)
        update(optimizer, loss, 2e-3 * schedule(step, 2 * WARM_UP_STEPS, 50))
        if step % 50 == 49:
            print(f"vision {step + 1} loss {loss.item():.4f}", flush=True)


def cell_loss(cells: Tensor, wanted: Tensor) -> Tensor:
    """Returns the squared error, mean over cells, summed over targets; (B, 16, 8) -> ()."""
    return (cells.float() - wanted).square().mean((0, 1)).sum()


def train(
    model: Model,
    head: nn.Linear,
    reader: Reader,
    steps: int,
    rate: float,
) -> Iterator[int]:
    """Second stage: everything learns to answer; yields the number of steps done."""
    opening = reader.encode(OPENING)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    for step in range(steps):
        batch = reader.batch(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = forward(model, opening, batch)
            cells = head(features)
        each = functional.cross_entropy(
            torch.cat(logits).float(),
            torch.cat([group.token for group in batch.groups]),
            reduction="none",
        )
        weights = torch.cat([group.weight for group in batch.groups])
        loss = (each * weights).sum() / weights.sum() + 0.3 * cell_loss(cells, batch.cells)
        update(optimizer, loss, rate * schedule(step, steps, 100))
        yield step + 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """Takes one step at the learning rate `rate` along the gradient, clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def main() -> None:
    """Trains, saves and measures the phantom base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=640, help="steps of the second stage")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="learning rate, second stage")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--save_every", type=int, default=160, help="steps between saves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # several times faster than sdpa for short rows on a CPU
    head = nn.Linear(HIDDEN, CELL_TARGETS)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens")
    start = time.monotonic()
    reader = Reader(tokenizer, options.seed)
    warm_up(model, head, reader)
    for step in train(model, head, reader, options.steps, options.rate):
        if step % options.save_every == 0 or step == options.steps:
            minutes = (time.monotonic() - start) / 60
            save(options.output, model, tokenizer)
            images = 512 if step == options.steps else 96
            print(f"step {step}, {minutes:.1f} min", measure(model, tokenizer, images), flush=True)
    print("blank images", measure(model, tokenizer, 512, blank=True))


if __name__ == "__main__":
    main()
