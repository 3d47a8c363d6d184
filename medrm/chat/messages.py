"""Turns a case into chat messages, and these into text.

Images come first in the user's turn. What the data says stays data: control tokens that a question
or an answer happens to spell are broken up by `break_control_tokens` before they reach a template.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

RewardTemplate = Literal["turn_end", "generation_prompt"]
Message = dict[str, Any]

DEFINITIONS = {
    "accuracy": "fits the image",
    "relevance": "answers the question",
    "comprehensiveness": "covers the findings",
    "creativity": "adds insight",
    "responsiveness": "has the form asked for",
    "overall": "a clinician would prefer it",
}
"""medrm's own working definitions; the authors of Med-RewardBench published only the names.

Short, because each is the part of a verdict prompt that no other prompt shares.
"""

_DATE = "26 Jul 2024"
"""Given to templates that would otherwise write today's date into the prompt (Llama 3.2)."""


def answer_messages(question: str, images: int, answer: str) -> list[Message]:
    """Returns the conversation in which the model gave `answer` to a question about images."""
    return [user_message(question, images), assistant_message(answer)]


def verdict_messages(
    question: str, images: int, answers: tuple[str, str], dimension: str
) -> list[Message]:
    """Returns the turn that asks which of two answers is better on one dimension, A or B.

    What changes between the prompts of one case stands as late as possible: the dimension at the
    end, the answers before it.

    Args:
        question: of the case.
        images: how many images it has.
        answers: in the order in which they are shown; the first is called A.
        dimension: any name; the six of Med-RewardBench are explained in a few words.
    """
    meaning = f" ({DEFINITIONS[dimension]})" if dimension in DEFINITIONS else ""
    text = (
        "Compare two answers. Reply with one letter, A or B.\n\n"
        f"Question: {question}\n\nAnswer A: {answers[0]}\n\nAnswer B: {answers[1]}\n\n"
        f"Which is better in {dimension}{meaning}?"
    )
    return [user_message(text, images)]


def with_reply(messages: list[Message], reply: str) -> list[Message]:
    """Returns the conversation continued by the model's reply."""
    return [*messages, assistant_message(reply)]


def render(processor: ProcessorMixin, messages: list[Message], template: RewardTemplate) -> str:
    """Returns the conversation as text with the family's image placeholders.

    Args:
        processor: whose chat template is used.
        messages: of this module.
        template: "turn_end" stops after the last turn; "generation_prompt" also opens the model's
            next turn.
    """
    return str(
        processor.apply_chat_template(
            fit_roles(processor, messages),
            tokenize=False,
            add_generation_prompt=template == "generation_prompt",
            **template_values(processor),
        )
    )


def template_values(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns what the processor's chat template is given besides the messages."""
    # Only where the template asks for it: an unused variable would be taken for a processor option.
    return {"date_string": _DATE} if "date_string" in str(processor.chat_template) else {}


def fit_roles(processor: ProcessorMixin, messages: list[Message]) -> list[Message]:
    """Returns the conversation in roles that the processor's template knows.

    Where it refuses or loses a system turn, its text opens the user's turn instead.
    """
    if messages[0]["role"] != "system" or _keeps_system(processor):
        return messages
    (instruction,), user, *rest = messages[0]["content"], *messages[1:]
    *images, request = user["content"]
    return [user_message(f"{instruction['text']}\n\n{request['text']}", len(images)), *rest]


def _keeps_system(processor: ProcessorMixin) -> bool:
    try:
        # Beside an image, where some templates (Llama 3.2) refuse what they else accept.
        probe = processor.apply_chat_template(
            [system_message("INSTRUCTION"), user_message("?", 1)], tokenize=False
        )
    except TemplateError:
        return False
    return "INSTRUCTION" in probe


def image_placeholder(processor: ProcessorMixin) -> str:
    """Returns what stands for one image in a rendered text."""
    return str(processor.image_token)  # type: ignore[attr-defined] # each family's processor has it


def control_tokens(processor: ProcessorMixin) -> re.Pattern[str]:
    """Returns a pattern of all that the tokenizer reads as a command instead of as text."""
    added = processor.tokenizer.added_tokens_decoder.values()
    tokens = {token.content for token in added if token.special} | {image_placeholder(processor)}
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def break_control_tokens(text: str, control: re.Pattern[str]) -> str:
    """Returns the text with a space inside each control token, so that it is read as words.

    Without this an answer that spells the end of a turn would end it, and one that spells an image
    placeholder would claim an image.
    """
    return control.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)


def system_message(text: str) -> Message:
    """Returns the turn that says who the model is."""
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def user_message(text: str, images: int) -> Message:
    """Returns a user's turn: the images, then the text."""
    blocks = [{"type": "image"} for _ in range(images)]
    return {"role": "user", "content": [*blocks, {"type": "text", "text": text}]}


def assistant_message(text: str) -> Message:
    """Returns a turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
