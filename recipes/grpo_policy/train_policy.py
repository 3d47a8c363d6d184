"""Trains a policy by GRPO against a reward model, and measures what the reward is worth.

    python recipes/grpo_policy/train_policy.py --reward_model DIR --output_dir OUT

1. The start: the phantom base learns from both answers of phantom cases, true and wrong ones alike,
   so that it knows how to answer and says the truth in less than half of its answers.
2. GRPO (TRL) on other phantom questions; the reward is `medrm.RewardFunction`.
3. Every few steps both are measured on held-out questions: the reward, and the share of answers
   that are true, which the reward model is never told. `policy.json` and `report.html` show both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy_page import write_policy_page

from medrm.errors import ConfigError
from medrm.files import check_outputs, write_atomically
from medrm.guard import guarded

SEEDS = {"start": 1001, "policy": 1002, "held_out": 1003}
"""Phantom seeds; the quickstart's reward model has learned from none of them."""


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns what one run is told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--reward_model", required=True, help="adapter folder or hub repository")
    add("--output_dir", type=Path, required=True, help="new folder")
    add("--dimensions", default="accuracy", help="what is rewarded: a name, or several by commas")
    add("--start", help="folder of a start policy made before, such as RUN/start_policy")
    add(
        "--start_steps", type=_positive, default=120, help="steps of 32 answers that make the start"
    )
    add(
        "--steps", type=_positive, default=40, help="steps of GRPO, each of 8 questions x 8 answers"
    )
    add("--learning_rate", type=float, default=1e-4, help="of GRPO")
    add("--beta", type=float, default=0.1, help="of GRPO: how much leaving the start costs (KL)")
    add("--measure_every", type=_positive, default=5, help="steps between two measurements")
    add("--held_out", type=_positive, default=192, help="questions that are measured on")
    add("--seed", type=int, default=0, help="of sampling and order")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; give 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the recipe and returns the exit status."""
    options = options_of(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Makes the start, trains the policy, and writes what was measured.

    Raises:
        ConfigError: the folder holds something, or the reward model lacks a dimension.
        AdapterError: the reward model cannot be loaded.
    """
    check_outputs({"--output_dir": options.output_dir})
    if options.output_dir.exists() and any(options.output_dir.iterdir()):
        start = options.output_dir / "start_policy"
        made = f", and --start {start} to use the start made here" if start.is_dir() else ""
        raise ConfigError(f"{str(options.output_dir)!r} is not empty. Give a new folder{made}.")
    if options.start is not None and not Path(options.start, "config.json").is_file():
        raise ConfigError(f"--start {options.start!r} holds no model. Give RUN/start_policy.")
    from policy_training import HeldOut, make_start, train

    import medrm

    started = time.monotonic()
    reward = medrm.RewardFunction(options.reward_model, options.dimensions.split(","), device="cpu")
    held_out = HeldOut(SEEDS["held_out"], options.held_out, reward)
    if len(set(held_out.clusters)) < 2:
        raise ConfigError(
            f"--held_out {options.held_out}: these are questions about one image, which give no "
            "interval. Give more."
        )
    start = Path(options.start or options.output_dir / "start_policy")
    if options.start is None:
        make_start(start, SEEDS["start"], options.start_steps, options.seed)
    seconds = {"start": time.monotonic() - started}
    train(start, reward, held_out, SEEDS["policy"], options)
    seconds["all"] = time.monotonic() - started
    about: dict[str, Any] = {
        "reward_model": "/".join(Path(options.reward_model).parts[-2:]),
        "dimensions": list(reward.dimensions),
        "start": "the phantom base, after supervised training on both answers of "
        f"{16 * options.start_steps} phantom cases, whichever of them is true"
        if options.start is None
        else "a start policy that was given",
        "settings": {
            name: getattr(options, name)
            for name in ("start_steps", "steps", "learning_rate", "beta", "seed")
        },
        "seeds": SEEDS,
        "seconds": {name: round(number) for name, number in seconds.items()},
    }
    result = {**about, **held_out.result()}
    write_atomically(
        options.output_dir / "policy.json", [json.dumps(result, indent=2).encode(), b"\n"]
    )
    lines = (json.dumps(line).encode() + b"\n" for line in held_out.lines())
    write_atomically(options.output_dir / "answers.jsonl", lines)
    page = write_policy_page(options.output_dir, result, list(held_out.lines()))
    for line in result["headline"]:
        sys.stderr.write(f"{line}\n")
    sys.stderr.write(f"{page}\n")


if __name__ == "__main__":
    sys.exit(main())
