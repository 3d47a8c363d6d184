"""Completions of a policy as cases, as reinforcement learning hands them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medrm.errors import DataError
from medrm.schema import Case, ImageRef
from medrm.scorer.caller_cases import image_ref, row_case

Message = Mapping[str, Any]
Completion = str | Sequence[Message]
Prompt = str | Sequence[Message]


def completion_case(
    prompt: Prompt, completion: Completion, row: dict[str, Any], seen: dict[int, ImageRef]
) -> Case:
    """Returns a completion as a case of one answer.

    Args:
        prompt: that it answers.
        completion: an answer, or a conversation that ends in it.
        row: the columns that are looked at.
        seen: references of image objects that other completions have, too.

    Raises:
        DataError: the prompt is no single question, the completion no text, or an image is none.
    """
    given_question = row.get("question")
    answer = _answer(completion)
    question, images = _question(prompt, asks=given_question is None)
    given = row.get("images", row.get("image"))
    if given is not None:
        images = list(given) if isinstance(given, list | tuple) else [given]
    references = []
    for position, image in enumerate(images):
        if id(image) not in seen:
            seen[id(image)] = image_ref(image, position)
        references.append(seen[id(image)])
    asked = question if given_question is None else given_question
    return row_case({"question": asked, "answers": [answer], "images": references}, 1)


def _answer(completion: Completion) -> str:
    """Returns the text of a completion.

    Raises:
        DataError: a conversation that ends in no text.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not completion:
        raise DataError("what is neither a text nor a conversation as a completion")
    message: Any = completion[-1]
    return _text(message)


def _question(prompt: Prompt, *, asks: bool) -> tuple[str, list[Any]]:
    """Returns the text and the images of the one question that a prompt asks.

    Args:
        prompt: a text, or a conversation; its system turn tells the policy how to answer and is no
            part of the question.
        asks: whether its text is needed.

    Raises:
        DataError: a conversation of several turns.
    """
    if isinstance(prompt, str):
        return prompt, []
    turns = [message for message in prompt if message["role"] != "system"]
    if asks and (len(turns) != 1 or turns[0]["role"] != "user"):
        raise DataError(
            f"a conversation of {len(turns)} turns; a reward model reads one question. Give it in "
            "a column `question`"
        )
    parts = [
        part
        for turn in turns
        if not isinstance(turn["content"], str)
        for part in turn["content"]
        if part.get("type") == "image" and part.get("image") is not None
    ]
    return (_text(turns[0]) if asks else ""), [part["image"] for part in parts]


def _text(message: Message) -> str:
    """Returns the text of a message, whose content is a text or a list of parts.

    Raises:
        DataError: it is neither.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise DataError("a message whose content is neither a text nor a list of parts")
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
