"""A medrm reward model as OpenRLHF's local reward function; OpenRLHF sends texts alone.

    MEDRM_REWARD_MODEL=RUN/adapter MEDRM_REWARD_DIMENSIONS=overall \
    python -m openrlhf.cli.train_ppo_ray ... --remote_rm_url recipes/rewards/openrlhf_reward.py

`queries` are prompts with the answers behind them, one a call; calls that come while others are
computed are scored together. A prompt is read as the question; where the chat template has been
applied to it, give the questions as labels (`--label_key question`) and set
MEDRM_QUESTION_IN_LABELS=1. Special tokens behind an answer, with which OpenRLHF decodes it, are
taken off. MEDRM_REWARD_READS_SYSTEM=1 lets the model read a system turn where a prompt has one.
What cannot be scored is NaN, never a constant.
"""

from __future__ import annotations

from functools import cache
from math import nan
from os import environ
from typing import Any

import torch

import medrm

rewards = cache(medrm.RewardFunction.from_environment)


def reward_func(
    queries: list[str], prompts: list[str], labels: list[str], **unused: Any
) -> dict[str, Any]:
    """Returns `rewards`, `scores` between 0 and 1 for filters, and each dimension for the log."""
    reward = rewards()
    pairs = list(zip(queries, prompts, strict=True))
    if not all(query.startswith(prompt) for query, prompt in pairs):
        raise ValueError("a query does not start with its prompt, so its answer is not known")
    answers = [reward.without_end(query.removeprefix(prompt)) for query, prompt in pairs]
    questions = labels if environ.get("MEDRM_QUESTION_IN_LABELS") else prompts
    if len(answers) == 1:
        scored = [reward.one(questions[0], answers[0])]
    else:
        scored = reward.rewards(questions, answers)
    total = torch.tensor([nan if one is None else reward.weighted(one) for one in scored])
    logs = {
        name: torch.tensor([nan if one is None else one[name] for one in scored])
        for name in reward.dimensions
    }
    return {"rewards": total, "scores": total.sigmoid(), "extra_logs": logs}
