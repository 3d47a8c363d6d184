"""Every prompt of medrm: conversations, judge prompts, and how they become text; no torch."""

from medrm.chat.messages import (
    DEFINITIONS,
    Message,
    RewardTemplate,
    answer_messages,
    break_control_tokens,
    control_tokens,
    fit_roles,
    image_placeholder,
    render,
    template_values,
    verdict_messages,
    with_reply,
)
from medrm.chat.prompts import (
    PROMPTS,
    JudgePrompt,
    VerdictText,
    load_prompt,
    rationale_letters,
)

__all__ = [
    "DEFINITIONS",
    "PROMPTS",
    "JudgePrompt",
    "Message",
    "RewardTemplate",
    "VerdictText",
    "answer_messages",
    "break_control_tokens",
    "control_tokens",
    "fit_roles",
    "image_placeholder",
    "load_prompt",
    "rationale_letters",
    "render",
    "template_values",
    "verdict_messages",
    "with_reply",
]
