"""Every prompt of medrm: conversations, judge prompts, and how they become text; no torch."""

from medrm.chat.messages import (
    DEFINITIONS,
    Message,
    RewardTemplate,
    answer_messages,
    control_tokens,
    fitted,
    image_placeholder,
    plain,
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
    "control_tokens",
    "fitted",
    "image_placeholder",
    "load_prompt",
    "plain",
    "rationale_letters",
    "render",
    "template_values",
    "verdict_messages",
    "with_reply",
]
