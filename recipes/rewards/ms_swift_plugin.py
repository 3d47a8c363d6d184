"""A medrm reward model as a reward function of ms-swift's GRPO, images included.

    MEDRM_REWARD_MODEL=RUN/adapter MEDRM_REWARD_DIMENSIONS=accuracy,overall \
    swift rlhf --rlhf_type grpo --external_plugins recipes/rewards/ms_swift_plugin.py \
        --reward_funcs medrm_accuracy medrm_overall ...

ms-swift calls a function with the completions and the columns of its data set, `messages` and
`images` among them. What cannot be scored is None, which it leaves out as TRL does. The system turn
is left out, unless MEDRM_REWARD_READS_SYSTEM=1.
"""

from __future__ import annotations

from functools import cache
from os import environ
from typing import Any, ClassVar

try:
    from swift.rewards import ORM, orms
except ImportError:  # before ms-swift 4
    from swift.plugin import ORM, orms

import medrm

rewards = cache(medrm.RewardFunction.from_environment)


class MedrmReward(ORM):
    """The reward on one dimension. ms-swift logs it by the name of its class."""

    dimension: ClassVar[str]

    def __init__(self, *unused: Any, **also_unused: Any) -> None:
        """Takes the arguments that some versions of ms-swift give."""

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        """Returns a reward for each completion."""
        prompts = [  # without the completion that ends a conversation
            messages[:-1] if messages[-1]["role"] == "assistant" else messages
            for messages in columns["messages"]
        ]
        images = {"images": columns["images"]} if columns.get("images") else {}
        scored = rewards().rewards(prompts, completions, **images)
        return [None if reward is None else reward[self.dimension] for reward in scored]


for name in environ.get("MEDRM_REWARD_DIMENSIONS", "overall").split(","):
    orms[f"medrm_{name}"] = type(f"medrm_{name}", (MedrmReward,), {"dimension": name})
