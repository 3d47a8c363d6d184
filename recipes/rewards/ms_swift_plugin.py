"""A medrm reward model as a reward function of ms-swift's GRPO, images included.

    MEDRM_REWARD_MODEL=RUN/adapter MEDRM_REWARD_DIMENSIONS=accuracy,overall \
    swift rlhf --rlhf_type grpo --external_plugins recipes/rewards/ms_swift_plugin.py \
        --reward_funcs medrm_accuracy medrm_overall ...

ms-swift calls a function with the completions and the columns of its data set, `messages` and
`images` among them. What cannot be scored is None, which it leaves out as TRL does.
"""

from __future__ import annotations

from functools import cache, partial
from os import environ
from typing import Any

try:
    from swift.rewards import ORM, orms
except ImportError:  # before ms-swift 4
    from swift.plugin import ORM, orms

import medrm

rewards = cache(medrm.RewardFunction.from_environment)


class MedrmReward(ORM):
    """The reward on one dimension."""

    def __init__(self, *unused: Any, dimension: str, **also_unused: Any) -> None:
        self.dimension = dimension

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Returns a reward for each completion."""
        # ms-swift's messages end in the completion, and mark images in the text.
        questions = [
            next(turn["content"] for turn in messages if turn["role"] == "user")
            for messages in columns["messages"]
        ]
        prompts = [question.replace("<image>", "").strip() for question in questions]
        images = {"images": columns["images"]} if columns.get("images") else {}
        scored = rewards().rewards(prompts, completions, **images)
        return [None if reward is None else reward[self.dimension] for reward in scored]


for name in environ.get("MEDRM_REWARD_DIMENSIONS", "overall").split(","):
    orms[f"medrm_{name}"] = partial(MedrmReward, dimension=name)
