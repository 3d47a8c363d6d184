"""A medrm reward model as verl's custom reward function, one completion a call.

    MEDRM_REWARD_MODEL=RUN/adapter MEDRM_REWARD_DIMENSIONS=overall \
    python -m verl.trainer.main_ppo ... custom_reward_function.name=compute_score \
        custom_reward_function.path=recipes/rewards/verl_reward.py

verl passes no prompt: the data set's `extra_info` holds `question`, and `images` where there are
any. What cannot be scored ends the call with an error: verl has no missing reward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import medrm

rewards = cache(medrm.RewardFunction.from_environment)


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
    columns = {name: [row[name]] for name in ("images",) if row.get(name) is not None}
    reward = rewards()
    (score,) = reward.rewards([row["question"]], [solution_str], **columns)
    if score is None:
        raise ValueError("a completion cannot be scored; the log says why")
    return {"score": reward.weighted(score), **score}
