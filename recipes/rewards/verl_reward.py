"""A medrm reward model as verl's custom reward function, one completion a call.

    MEDRM_REWARD_MODEL=RUN/adapter MEDRM_REWARD_DIMENSIONS=overall \
    python -m verl.trainer.main_ppo ... custom_reward_function.name=compute_score_async \
        custom_reward_function.path=recipes/rewards/verl_reward.py

`compute_score` is the same for reward managers that await nothing. Calls that come while others are
computed are scored together. verl passes no prompt: the data set's `extra_info` holds `question`,
and `images` where there are any. What cannot be scored ends the call with an error: verl has no
missing reward.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import medrm

rewards = cache(medrm.RewardFunction.from_environment)

_WAITING = ThreadPoolExecutor(64, "compute_score")
"""As many calls as can be scored together; their threads only wait."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    **unused: Any,
) -> dict[str, float]:
    """Returns `score`, the weighted sum, and the reward of each dimension beside it."""
    row = extra_info or {}
    if "question" not in row:
        raise ValueError("extra_info has no 'question'; put the question's text into the data set")
    reward = rewards()
    score = reward.one(row["question"], solution_str, images=row.get("images"))
    if score is None:
        raise ValueError("a completion cannot be scored; the log says why")
    return {"score": reward.weighted(score), **score}


async def compute_score_async(*arguments: Any, **named: Any) -> dict[str, float]:
    """Returns what `compute_score` returns, and leaves the event loop to others meanwhile."""
    call = partial(compute_score, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_WAITING, call)
