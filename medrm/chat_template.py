"""Chat templates: how conversations become text, and how control words in data are broken up.

What the data says stays data. In a rendered conversation

    <|im_start|>User:<image>What is seen?<end_of_utterance>
    Assistant: A nodule.<end_of_utterance>

special tokens, the processor's placeholders (`<image>`, `<video>`) and the words by which a
template opens a turn (`User:`, `ASSISTANT:`, `[INST]`) are read as commands, also where a question
or an answer spells them. `Commands.break_up` puts a space into each before the text reaches a
template. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from medrm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

RewardTemplate = Literal["turn_end", "end_token", "generation_prompt"]
Message = dict[str, Any]

_DAY = date(2024, 7, 26)
"""The date in prompts whose template would otherwise write today's, as Llama 3.2's does."""


def render(processor: ProcessorMixin, messages: list[Message], template: RewardTemplate) -> str:
    """Returns the conversation as text with the family's image placeholders.

    Args:
        processor: whose chat template is used.
        messages: of this module.
        template: "turn_end" stops after the last turn; "end_token" at the token that ends it,
            without the line break that may follow; "generation_prompt" also opens the model's next
            turn.
    """
    text = str(
        processor.apply_chat_template(
            fit_roles(processor, messages),
            tokenize=False,
            add_generation_prompt=template == "generation_prompt",
            **template_values(processor),
        )
    )
    return text.rstrip() if template == "end_token" else text


def template_values(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns what the processor's chat template is given besides the messages."""
    # Only where the template asks for it: an unused variable would be taken for a processor option.
    return (
        {"date_string": _DAY.strftime("%d %b %Y")}
        if "date_string" in str(processor.chat_template)
        else {}
    )


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
    """Returns what stands for one image in a rendered text; empty where images are not read.

    Not every processor writes its `image_token` once for each image; then it is the special token
    that the template writes so.
    """
    image_token = str(getattr(processor, "image_token", None) or "")
    if not hasattr(processor, "image_processor"):
        return ""
    try:
        texts = [
            processor.apply_chat_template([user_message("?", images)], tokenize=False)
            for images in range(3)
        ]
    except TemplateError:
        return image_token
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values()]
    for token in (image_token, *special):
        if token and [text.count(token) for text in texts] == [0, 1, 2]:
            return str(token)
    return image_token


def control_tokens(processor: ProcessorMixin) -> re.Pattern[str]:
    """Returns a pattern of the tokenizer's commands and of the image placeholder."""
    return _any_of({*_special_tokens(processor.tokenizer), image_placeholder(processor)})


@dataclass(frozen=True, slots=True)
class Commands:
    """What is read as a command where it stands in a rendered conversation.

    Attributes:
        pattern: of all of them.
        tokenizer: whose special tokens some of them are.
        folded: ids of special tokens that are found in normalised text, so that other spellings
            (full-width signs, capitals) are read as them too.
    """

    pattern: re.Pattern[str]
    tokenizer: Any
    folded: frozenset[int]

    @classmethod
    def of(cls, processor: ProcessorMixin) -> Commands:
        """Returns the commands to a processor, its tokenizer and its chat template.

        Besides special tokens: what the processor replaces by tokens of its own (`<video>`), added
        tokens and marks of thinking that the template speaks of (some drop a reply before
        `</think>`), and the words by which a template in plain text opens and closes turns.
        """
        template, tokenizer = str(processor.chat_template), processor.tokenizer
        replaced = {
            text
            for name, text in vars(processor).items()
            if isinstance(text, str) and name.endswith(("_token", "_tag"))
        }
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        spoken_of = {token for token in added if token in template} | set(_MARKS.findall(template))
        special = _special_tokens(tokenizer)
        words = {*special, image_placeholder(processor), *replaced, *spoken_of}
        folded = frozenset(
            token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.normalized and token.content in words
        )
        return cls(_any_of(words | _turn_words(processor)), tokenizer, folded)

    def break_up(self, text: str) -> str:
        """Returns a question or an answer with a space inside each command: read as words.

        Without this an answer that spells the end of a turn would end it, and one that spells an
        image placeholder would claim an image. A command of one character is given by its code, as
        are those of a tokenizer that leaves spaces out.
        """
        # What is left of a broken command may spell a shorter one.
        while self.pattern.search(text):
            text = self.pattern.sub(lambda command: _broken(command[0]), text)
        while self.folded and (span := self._folded_span(text)):
            command = text[slice(*span)]
            spelt = _broken(command)
            if self._folded_span(spelt):
                spelt = "".join(_broken(character) for character in command)
            text = f"{text[: span[0]]}{spelt}{text[span[1] :]}"
        return text

    def _folded_span(self, text: str) -> tuple[int, int] | None:
        """Returns where the tokenizer reads a special token that is spelt in another way."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return next((span for token, span in tokens if token in self.folded), None)


def _broken(command: str) -> str:
    return f"{command[0]} {command[1:]}" if len(command) > 1 else f"(U+{ord(command):04X})"


def _special_tokens(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special}


NOTHING = r"(?!)"
"""The pattern that no text has."""

_MARKS = re.compile(r"</?\w*think\w*>")
"""Marks of thinking that a template looks for in replies; not all are tokens."""
_TURN_WORD = re.compile(r"(?:#{2,} ?)?[^\s:]{1,30}[:\]>]$")
"""The last word of what a template writes, where it looks like a speaker's name or a tag."""
_PROBES = ("QUESTIONPROBE", "ANSWERPROBE")


def _turn_words(processor: ProcessorMixin) -> set[str]:
    """Returns the words in plain text with which the template opens or closes a turn."""
    turns = [user_message(_PROBES[0], 0), assistant_message(_PROBES[1])]
    try:
        text = render(processor, [*turns, *turns], "generation_prompt")
    except TemplateError:  # some templates know one question only
        text = render(processor, turns, "generation_prompt")
    frames = re.split("|".join(_PROBES), text)
    control = control_tokens(processor)
    pieces = [piece.strip() for frame in frames for piece in control.split(frame)]
    return {word[0] for piece in pieces if (word := _TURN_WORD.search(piece))}


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern of words, the longest first; white space stays text."""
    longest_first = sorted((word for word in words if word.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or NOTHING)


_CALL = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")


class DatedTemplateError(ConfigError):
    """A chat template writes another date every day."""


def fix_date(processor: ProcessorMixin) -> None:
    """Writes a fixed date into a chat template that would write today's.

    A prompt that changes from day to day gives other rewards from day to day. A template that takes
    the date as a value (`date_string`) stays as it is: `render` gives it.

    Raises:
        DatedTemplateError: the template computes how the date is written, so it cannot be fixed.
    """
    if not depends_on_date(processor):
        return
    template: Any = processor.chat_template
    processor.chat_template = (
        {name: pin_date(text) for name, text in template.items()}
        if isinstance(template, dict)
        else pin_date(template)
    )
    if depends_on_date(processor):
        raise DatedTemplateError(
            "The chat template writes today's date (strftime_now) in a form that it computes, so "
            "the same answer would get another reward tomorrow. Write the date into the "
            "checkpoint's chat_template.jinja."
        )


def pin_date(template: str) -> str:
    """Returns a chat template in which each call for today's date is a fixed one in its form."""
    return _CALL.sub(lambda call: repr(_DAY.strftime(call[2])), template)


def depends_on_date(processor: ProcessorMixin) -> bool:
    """Returns whether the same conversation is rendered otherwise on another day."""
    if "strftime_now" not in str(processor.chat_template):
        return False
    from transformers.utils import chat_template_utils

    turns = [user_message("?", 0), assistant_message(".")]
    names = vars(chat_template_utils)
    clock = names["datetime"]
    texts = set()
    try:
        for day in (clock(2001, 2, 3), clock(2040, 11, 12)):
            now = classmethod(lambda *_, day=day, **__: day)
            names["datetime"] = type("Clock", (clock,), {"now": now})
            said = []
            for conversation in (turns, [system_message("?"), *turns]):
                with suppress(TemplateError):
                    said.append(render(processor, conversation, "generation_prompt"))
            texts.add(tuple(said))
    finally:
        names["datetime"] = clock
    return len(texts) > 1


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
