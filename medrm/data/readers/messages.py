"""Messages as other programs write them: turns of parts, which are texts, images, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import Any, NamedTuple, Protocol, TypeGuard

from medrm.data.image_references import cached_images, picture_counts
from medrm.data.row_tables import Row, RowTable
from medrm.errors import DataError, brief, shortened
from medrm.files import fits
from medrm.schema import ImageRef, Turn

IMAGE_MARK = "<image>"
"""What stands for an image in a text."""

_ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "model", "bot"), "assistant"),
    "developer": "system",
}
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "url", "bytes", "path", "base64", "source", "data")
"""Where a part of a message may keep its image."""


class ReadTurn(NamedTuple):
    """One message.

    Attributes:
        role: system, user, assistant, or another that is not understood.
        text: its texts, an image as `IMAGE_MARK`.
        images: those that its parts hold themselves.
        problems: what of it is not understood.
    """

    role: str
    text: str
    images: tuple[ImageRef, ...] = ()
    problems: tuple[str, ...] = ()


class Conversation(NamedTuple):
    """What models read of a conversation that ends in a question.

    Attributes:
        context: the turns before the question.
        question: the last turn's text.
        images: of the conversation.
        problems: why it is none, or what of it is not understood.
    """

    context: tuple[Turn, ...]
    question: str
    images: tuple[ImageRef, ...]
    problems: tuple[str, ...]


class ImageSource(Protocol):
    """How images of messages are found."""

    def images(self, held: Any) -> Sequence[ImageRef]:
        """Returns the references of what a part holds as its image: of one picture, or more."""


@dataclass(frozen=True)
class Place:
    """A row of a table, to which the images of its messages belong."""

    table: RowTable
    location: str

    def images(self, held: Any) -> Sequence[ImageRef]:
        """Returns the references of stored bytes, a path or a data URL."""
        if isinstance(held, bytes):
            return cached_images(held, self.table.image_options)
        if not isinstance(held, str):
            problem = f"an image that is {type(held).__name__}, which is not read"
            return (self.unreadable(problem),)
        return self.table.images(held)

    def unreadable(self, problem: str) -> ImageRef:
        """Returns what stands among the images for something that is not understood."""
        return ImageRef(f"of {self.table.name} {self.location}", "", bytes, problem)


def read_turns(row: Row, column: str, role: str, source: ImageSource) -> list[ReadTurn]:
    """Returns the text in a column, which is one turn of `role`, or its messages as turns.

    Raises:
        DataError: it is neither.
    """
    value = row.get(column)
    if value is None:
        return []
    if isinstance(value, str):
        return [ReadTurn(role, value)]
    if isinstance(value, dict):
        value = [value]
    if not fits(value, list[Row]):
        raise DataError(
            f"{column!r} is {type(value).__name__}; accepted are text or a list of messages"
        )
    return [_turn(message, column, source) for message in value]


def read_conversation(
    prompt: Sequence[ReadTurn],
    answers: Sequence[ReadTurn],
    images: tuple[ImageRef, ...],
    column: str,
) -> Conversation:
    """Returns the conversation of a prompt, and what is wrong with it and the answers to it.

    Args:
        prompt: its turns.
        answers: to it.
        images: beside it; none: those that its turns hold themselves.
        column: that holds the images beside it.

    Raises:
        DataError: it refers to more images than there are.
    """
    shown = images or tuple(image for turn in prompt for image in turn.images)
    marks = [turn.text.count(IMAGE_MARK) for turn in prompt]
    counts = [1] * len(shown) if sum(marks) == len(shown) else picture_counts(shown)
    if sum(marks) > len(counts):
        raise DataError(f"the prompt refers to {sum(marks)} images, {column!r} holds {len(counts)}")
    problems = [problem for turn in (*prompt, *answers) for problem in turn.problems]
    problems += conversation_problems([turn.role for turn in prompt])
    in_prompt = sum(len(turn.images) for turn in prompt)
    if images and 0 < in_prompt != len(images):
        problems.append(f"its prompt has {in_prompt} images, {column!r} has {len(images)}")
    if any(turn.images or IMAGE_MARK in turn.text for turn in answers):
        problems.append("an answer holds an image")
    plain = [turn.text.replace(IMAGE_MARK, "").strip() for turn in prompt]
    first = next((number for number, turn in enumerate(prompt) if turn.role == "user"), None)
    if first is not None:  # what no text marks stands before the first question
        marks[first] += len(counts) - sum(marks)
    context = tuple(
        Turn(turn.role, text, count)
        for turn, text, count in zip(prompt[:-1], plain[:-1], marks[:-1], strict=True)
    )
    context = with_pictures(context, counts)
    return Conversation(context, plain[-1] if plain else "", shown, tuple(dict.fromkeys(problems)))


def with_pictures(context: Sequence[Turn], counts: Sequence[int]) -> tuple[Turn, ...]:
    """Returns turns whose images are counted in pictures, of which a medical image may have many.

    Args:
        context: turns with the images that each marks.
        counts: how many pictures each image has.
    """
    ends = accumulate((turn.images for turn in context), initial=0)
    return tuple(
        turn._replace(images=sum(counts[start:end]))
        for turn, (start, end) in zip(context, pairwise(ends), strict=True)
    )


def without_prompt(
    prompt: list[ReadTurn], answers: Sequence[list[ReadTurn]], *, is_text: bool
) -> tuple[list[ReadTurn], list[list[ReadTurn]]]:
    """Returns the prompt, and the answers without it where all of them begin with it.

    Args:
        prompt: empty: it is what the answers begin with in common.
        answers: to it.
        is_text: whether the prompt is written as a text, which TRL does not read beside answers
            that are whole conversations.
    """
    if is_text and all(len(turns) > 1 for turns in answers):
        prompt = []
    if prompt and all(len(turns) == 1 for turns in answers):
        return prompt, list(answers)
    shared, remaining = _implicit_prompt(answers)
    if not prompt or shared[-len(prompt) :] == prompt:
        return shared, remaining
    return prompt, list(answers)


def _implicit_prompt(
    answers: Sequence[list[ReadTurn]],
) -> tuple[list[ReadTurn], list[list[ReadTurn]]]:
    """Returns what answers begin with in common, and the rest of each.

    Of texts the common beginning is cut back to a word's end.
    """
    if all(len(turns) == 1 for turns in answers):
        texts = [turns[0].text for turns in answers]
        length = _common_length(texts)
        while length and not texts[0][length - 1].isspace():
            length -= 1
        question = [ReadTurn("user", texts[0][:length].strip())]
        return question, [[ReadTurn("assistant", text[length:])] for text in texts]
    # One turn at least remains of each, for an answer.
    shared = max(0, min([_common_length(answers), *(len(turns) - 1 for turns in answers)]))
    return list(answers[0][:shared]), [turns[shared:] for turns in answers]


def _common_length(sequences: Sequence[Sequence[Any]]) -> int:
    """Returns how many characters, or turns, all of them begin with."""
    places = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda place: place.count(place[0]) == len(place), places))


def conversation_problems(roles: Sequence[str]) -> list[str]:
    """Returns why turns of these roles are no conversation that ends in a question."""
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    others = sorted({role for role in roles if role not in ("system", "user", "assistant")})
    if others:
        named = ", ".join(repr(shortened(role)) for role in others)
        return [f"a turn of role {named}, which is not read; accepted: system, user, assistant"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        return ["its turns do not alternate from a user's first to a user's last"]
    return []


def _turn(message: Row, column: str, source: ImageSource) -> ReadTurn:
    """Reads `{"role", "content"}`, or `{"from", "value"}` as ShareGPT writes it."""
    role, content = _held(message, ("role", "from")), _held(message, ("content", "value"))
    if not isinstance(role, str) or not {"content", "value"} & message.keys():
        stated = f"has a message with keys {shortened(', '.join(message))}"
        if {"role", "from"} & message.keys():
            stated += f" and {brief(role)} as its role"
        raise DataError(f"{column!r} {stated}; accepted are role and content")
    texts: list[str] = []
    images: list[ImageRef] = []
    problems: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        text = _text_of(part)
        if text is not None:
            texts.append(text)
        elif _is_image(part):
            of_part = _images_of(part, source)
            texts.append(IMAGE_MARK * max(1, len(of_part)))
            images += of_part
        else:
            problems.append(_not_understood(part))
    return ReadTurn(_ROLES.get(role, role), "".join(texts), tuple(images), tuple(problems))


def _held(holder: Row, keys: Sequence[str]) -> Any:
    """Returns what stands under the first of some keys that hold something."""
    return next((holder[key] for key in keys if holder.get(key) is not None), None)


def _text_of(part: Any) -> str | None:
    """Returns the text of a part; None where it is something else."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    kind, text = part.get("type"), part.get("text")
    is_text = kind in _TEXT_TYPES or (kind is None and _held(part, _IMAGE_KEYS) is None)
    return text if is_text and isinstance(text, str) else None


def _is_image(part: Any) -> TypeGuard[Row]:
    if not isinstance(part, dict):
        return False
    kind, held = part.get("type"), _held(part, _IMAGE_KEYS)
    # A text beside the image would be lost.
    return kind in _IMAGE_TYPES or (kind is None and held is not None and not part.get("text"))


def _images_of(part: Row, source: ImageSource) -> Sequence[ImageRef]:
    """Returns the image that a part holds itself; none where it is only a mark."""
    held: Any = part
    while isinstance(held, dict):
        # A URL or a source may be an object of its own.
        held = _held(held, _IMAGE_KEYS)
    if held is None:
        return []
    return source.images(_as_url(part, held) if isinstance(held, str) else held)


def _as_url(part: Row, held: str) -> str:
    """Returns base64 that stands by itself, with its type beside it, as a data URL."""
    source = part.get("source")
    is_plain = isinstance(source, dict) and source.get("data") == held
    return f"data:;base64,{held}" if is_plain or part.get("base64") == held else held


def _not_understood(part: Any) -> str:
    if part is None:
        return "a part of its messages is null"
    if not isinstance(part, dict):
        return f"a part of its messages is {type(part).__name__}"
    if part.get("type") is not None:
        kind = shortened(str(part["type"]))
        if kind in _TEXT_TYPES:
            return f"a part of its messages is of type {kind!r}, but holds no text"
        return f"a part of its messages is of type {kind!r}; accepted are texts and images"
    keys = shortened(", ".join(map(str, part)))
    return f"a part of its messages has the keys {keys}; accepted are texts and images"
