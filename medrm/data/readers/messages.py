"""Messages as other programs write them: turns of parts, which are texts, images, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from medrm.data.images import cached_image
from medrm.data.row_tables import Row, RowTable
from medrm.errors import DataError, shortened
from medrm.files import fits
from medrm.schema import ImageRef

IMAGE_MARK = "<image>"
"""What stands for an image in a text."""

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "bytes", "base64", "source", "data")
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


@dataclass(frozen=True)
class Place:
    """A row of a table, to which the images of its messages belong."""

    table: RowTable
    location: str

    def unreadable(self, problem: str) -> ImageRef:
        """Returns what stands among the images for something that is not understood."""
        return ImageRef(f"of {self.table.name} {self.location}", "", bytes, problem)


def read_turns(row: Row, column: str, role: str, place: Place) -> list[ReadTurn]:
    """Returns the text in a column, which is one turn of `role`, or its messages as turns.

    Raises:
        DataError: it is neither.
    """
    value = row.get(column)
    if value is None:
        return []
    if isinstance(value, str):
        return [ReadTurn(role, value)]
    if not fits(value, list[Row]):
        raise DataError(
            f"{column!r} is {type(value).__name__}; accepted are text or a list of messages"
        )
    return [_turn(message, column, place) for message in value]


def conversation_problems(turns: Sequence[ReadTurn]) -> list[str]:
    """Returns why turns are no conversation that ends in a question."""
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    others = sorted({role for role in roles if role not in ("system", "user", "assistant")})
    if others:
        named = ", ".join(repr(shortened(role)) for role in others)
        return [f"a turn of role {named}, which is not read; accepted: system, user, assistant"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        return ["its turns do not alternate from a user's first to a user's last"]
    return []


def _turn(message: Row, column: str, place: Place) -> ReadTurn:
    """Reads `{"role", "content"}`, or `{"from", "value"}` as ShareGPT writes it."""
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str | list):
        raise DataError(
            f"{column!r} has a message with keys {shortened(', '.join(message))}; accepted are "
            "role and content"
        )
    texts: list[str] = []
    images: list[ImageRef] = []
    problems: list[str] = []
    for part in [content] if isinstance(content, str) else content:
        text = _text_of(part)
        if text is not None:
            texts.append(text)
        elif _is_image(part):
            texts.append(IMAGE_MARK)
            images += _images_of(part, place)
        else:
            problems.append(_not_understood(part))
    return ReadTurn(_ROLES.get(role, role), "".join(texts), tuple(images), tuple(problems))


def _text_of(part: Any) -> str | None:
    """Returns the text of a part; None where it is something else."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    kind, text = part.get("type"), part.get("text")
    is_text = kind in _TEXT_TYPES or (kind is None and not _is_image(part))
    return text if is_text and isinstance(text, str) else None


def _is_image(part: Any) -> TypeGuard[Row]:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return kind in _IMAGE_TYPES or (
        kind is None and any(part.get(key) is not None for key in _IMAGE_KEYS)
    )


def _images_of(part: Row, place: Place) -> list[ImageRef]:
    """Returns the image that a part holds itself; none where it is only a mark."""
    held: Any = part
    while isinstance(held, dict):
        # A URL or a source may be an object of its own.
        held = next((held[key] for key in _IMAGE_KEYS if held.get(key) is not None), None)
    if held is None:
        return []
    if isinstance(held, bytes):
        return [cached_image(held)]
    if not isinstance(held, str):
        return [place.unreadable(f"an image that is {type(held).__name__}, which is not read")]
    return [place.table.image(_as_url(part, held))]


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
        return f"a part of its messages is of type {kind!r}; accepted are texts and images"
    keys = shortened(", ".join(map(str, part)))
    return f"a part of its messages has the keys {keys}; accepted are texts and images"
