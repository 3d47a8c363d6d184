"""Completions of a policy as cases, as reinforcement learning hands them over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from medrm.data.readers.messages import ImageSource, read_conversation, read_turns
from medrm.errors import DataError
from medrm.schema import Case, ImageRef, Turn
from medrm.scorer.caller_cases import ANY_IMAGES, CallerImages, row_case, tokenisable

Message = Mapping[str, Any]
Completion = str | Sequence[Message]
Prompt = str | Sequence[Message]


_LIKE_A_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>)\Z")
_LONGEST_TOKEN = 44


class SeenImages:
    """References of image objects, by their identity; many completions have the same.

    Args:
        source: where the images are.
    """

    def __init__(self, source: CallerImages = ANY_IMAGES) -> None:
        self._source = source
        # With the objects themselves: the identity of one that is gone may become another's.
        self._seen: dict[int, tuple[object, tuple[ImageRef, ...]]] = {}

    def images(self, held: Any) -> tuple[ImageRef, ...]:
        """Returns the references of an image.

        Raises:
            DataError: it is none.
        """
        if id(held) not in self._seen:
            self._seen[id(held)] = held, self._source.images(held, len(self._seen))
        return self._seen[id(held)][1]


def completion_case(
    prompt: Prompt, completion: Completion, row: dict[str, Any], seen: SeenImages
) -> Case:
    """Returns a completion as a case of one answer.

    Args:
        prompt: that it answers; of a conversation the turns before the last are the case's context.
        completion: an answer, or a conversation that ends in it.
        row: the columns that are looked at; `question` stands for the whole prompt.
        seen: image objects that other completions have, too.

    Raises:
        DataError: the prompt asks nothing, the completion is no text, or an image is none.
    """
    question, given = row.get("question"), row.get("images")
    given = row.get("image") if given is None else given
    images = list(given) if isinstance(given, list | tuple) else [given] * (given is not None)
    references = tuple(chain.from_iterable(map(seen.images, images)))
    context: tuple[Turn, ...] = ()
    if isinstance(prompt, str):
        question = prompt if question is None else question
    elif question is None or given is None:
        turns = read_turns({"prompt": prompt}, "prompt", "user", seen)
        if given is not None:
            turns = [turn._replace(images=()) for turn in turns]
        if question is None:
            asked = read_conversation(turns, (), references, "images")
            if asked.problems:
                raise DataError("; ".join(asked.problems))
            turns_before, question, references, _ = asked
            context = tuple(
                turn._replace(text=tokenisable(turn.text, "turn")) for turn in turns_before
            )
        else:
            references = tuple(image for turn in turns for image in turn.images)
    case = row_case({"question": question, "answers": [_answer(completion, seen)]}, 1)
    return replace(case, images=references, context=context)


def _answer(completion: Completion, source: ImageSource) -> str:
    """Returns the text of a completion.

    Raises:
        DataError: it is neither a text nor a conversation that ends in one.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not completion:
        raise DataError("what is neither a text nor a conversation as a completion")
    message: Any = completion[-1]
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list):
        raise DataError("a message whose content is neither a text nor a list of parts")
    (turn,) = read_turns(
        {"completion": [{"role": "assistant", **message}]}, "completion", "assistant", source
    )
    if turn.problems or turn.images:
        raise DataError("; ".join(turn.problems) or "a completion that holds an image")
    return turn.text


def special_tokens(processor: Any) -> list[str]:
    """Returns the special tokens of a processor's tokenizer, the longest first."""
    return sorted(filter(None, processor.tokenizer.all_special_tokens), key=len, reverse=True)


def without_end(answer: str, tokens: Sequence[str]) -> str:
    """Returns an answer without the special tokens that end it: OpenRLHF sends them as text.

    They are those of the policy, which may have another tokenizer than the reward model: what looks
    like one (`<|...|>`, `</s>`, `<eos>`, `<end_of_turn>`) counts as one.

    Args:
        answer: as it was decoded with its special tokens.
        tokens: of the reward model's tokenizer, the longest first.
    """
    length, is_ended = len(answer), False
    while True:  # by positions, for a client may send thousands of them
        end = length
        while end and answer[end - 1].isspace():
            end -= 1
        last = next((token for token in tokens if answer.endswith(token, 0, end)), None)
        if last is None:
            found = _LIKE_A_TOKEN.search(answer, max(0, end - _LONGEST_TOKEN), end)
            last = found and found[0]
        if not last:
            return answer[: end if is_ended else length]
        length, is_ended = end - len(last), True
