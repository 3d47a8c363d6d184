"""What a judge asks an engine, and what it gets back; imports no torch.

An engine turns conversations into replies. It knows nothing of verdicts: a `Judge` writes the
requests and parsers read the replies. Here is also what services need: images of a conversation as
data addresses, and replies that are kept.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image, UnidentifiedImageError

from medrm.chat_template import Message, render, user_message
from medrm.data.images import decode
from medrm.integrity import read_record, write_record
from medrm.parsers.thinking import opened_by
from medrm.schema import USAGE, Case, ImageRef, Order, State

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from medrm.models.adapter_config import AdapterConfig

TOO_LONG = re.compile(
    r"context.?(length|window|size)|max(imum)?[ _]model[ _]len|longer than the max"
    r"|(prompt|input)\b.{0,40}\btoo long|too many (input |prompt )?tokens",
    re.IGNORECASE,
)
"""How services and vLLM word the refusal of an over-long prompt; there is no common code."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a judge.

    Attributes:
        case: what is judged; its images fill the placeholders of the messages in order.
        order: in which the answers are shown.
        dimension: the one that is asked about; None: all in one reply.
        vote: number of the sample, from 0.
        messages: the conversation, with `{"type": "image"}` where an image stands.
        dimensions: asked about in this call.
    """

    case: Case
    order: Order
    dimension: str | None
    vote: int
    messages: list[Message]
    dimensions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the conversation and its images."""
        return conversation_digest(self.messages, self.case.images)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn. Temperature 0 is greedy."""

    temperature: float = 0.0
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one request.

    Attributes:
        text: the reply; None where there is none.
        finish_reason: "stop", "length", or what the engine said.
        state: "ok", or why there is no reply.
        reason: detail where the state is not "ok".
        prompt_digest: SHA-256 of the prompt as it was sent.
        usage: tokens of prompt and reply, by the names of `USAGE`; None: not known.
    """

    text: str | None
    finish_reason: str | None
    state: State
    reason: str | None = None
    prompt_digest: str = ""
    usage: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model an engine is to run.

    Attributes:
        model: as it was named: a base model, a saved judge, or what a service calls it.
        folder: of a saved judge; None for any other.
        contract: of a saved judge; None for any other.
        revision: branch, tag or commit of a base on the hub.
        trust_remote_code: whether code that a base's checkpoint ships may run.
        most_images: most images of a case.
        base: where the base of a saved judge lies now; None: it is looked for.
    """

    model: str
    folder: Path | None = None
    contract: AdapterConfig | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    most_images: int = 1
    base: str | None = None


class Engine(Protocol):
    """Whatever completes conversations.

    Attributes:
        name: of the engine, whatever the model: a setting that two runs should share.
        lookahead: how many cases it computes together, so that they may change each other's
            rounding; None: each by itself.
    """

    name: str
    lookahead: int | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights and the request could change a reply."""
        ...

    def plain(self, text: str) -> str:
        """Returns a question or an answer as the engine can take it as nothing but text.

        Where a tokenizer would read parts of it as commands, these are broken up.
        """
        ...

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields one completion for each request, in order and in bounded memory.

        A request that cannot be completed (a bad image, an over-long prompt, a failed call) has a
        state that says so; nothing is raised for it.
        """
        ...


@runtime_checkable
class RendersPrompts(Protocol):
    """An engine that knows a prompt as text, because it renders conversations itself."""

    def rendered(self, request: Request) -> str | None:
        """Returns the prompt as the model reads it; None where only the service knows it."""
        ...


def conversation_digest(messages: Sequence[Message], images: Iterable[ImageRef]) -> str:
    """Returns the SHA-256 of a conversation and its images."""
    conversation = [messages, [ref.digest for ref in images]]
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def text_digest(rows: Iterable[tuple[str, Sequence[ImageRef]]]) -> str:
    """Returns the SHA-256 of the texts and images of rows."""
    digest = hashlib.sha256()
    for text, images in rows:
        for field in (text, *(ref.digest for ref in images)):
            digest.update(field.encode() + b"\0")
    return digest.hexdigest()


def thinking_opened(processor: ProcessorMixin) -> str:
    """Returns the mark of thinking with which a chat template opens the model's turn; else ""."""
    return opened_by(render(processor, [user_message("?", 0)], "generation_prompt"))


def call_seed(request: Request, sampling: Sampling) -> int:
    """Returns the seed of one call, in [0, 2^31): whatever the batch composition."""
    identity = (sampling.seed, request.case.case_id, request.order, request.dimension, request.vote)
    digest = hashlib.sha256(json.dumps(identity).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def with_images(messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Returns the conversation with its image placeholders replaced in order.

    Args:
        messages: with as many placeholders as there are images.
        images: segments of a message's content, in the form that an engine takes.
    """
    remaining = iter(images)
    return [
        {
            **message,
            "content": [
                next(remaining) if segment["type"] == "image" else segment
                for segment in message["content"]
            ],
        }
        for message in messages
    ]


_AS_STORED = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
"""Formats that are sent as they are stored."""


def messages_with_urls(request: Request) -> list[Message]:
    """Returns the conversation as the service takes it; turns without images are plain text.

    Raises:
        DataError: an image cannot be decoded.
    """
    images = [
        {"type": "image_url", "image_url": {"url": _data_url(ref)}} for ref in request.case.images
    ]
    messages = with_images(request.messages, images)
    for message in messages:
        if all(segment["type"] == "text" for segment in message["content"]):
            message["content"] = "\n".join(segment["text"] for segment in message["content"])
    return messages


@lru_cache(maxsize=16)
def _data_url(ref: ImageRef) -> str:
    """Returns the stored bytes where every viewer sees in them what `decode` gives, else a PNG.

    Viewers disagree on deep greys, transparency, rotation marks and several frames.

    Raises:
        DataError: the image cannot be decoded.
    """
    image = decode(ref)
    stored = ref.read()
    media_type = None
    with (
        suppress(UnidentifiedImageError),
        Image.open(io.BytesIO(stored), formats=tuple(_AS_STORED)) as opened,
    ):
        if opened.convert("RGB").tobytes() == image.tobytes():
            media_type = _AS_STORED.get(str(opened.format))
    if media_type is None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        media_type, stored = "image/png", buffer.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(stored).decode()}"


def usage_of(stated: Any) -> dict[str, int] | None:
    """Returns the tokens that a service says it counted; None unless it counted both kinds."""
    counts = [stated.get(name) for name in USAGE] if isinstance(stated, dict) else []
    counted = {name: n for name, n in zip(USAGE, counts, strict=False) if type(n) is int and n >= 0}
    return counted if len(counted) == len(USAGE) else None


SCHEMA = 1
"""Counted up when the meaning of a key or a file changes."""


def reply_path(folder: Path, request: Mapping[str, Any]) -> Path:
    """Returns where the reply is kept: by the SHA-256 of the canonical JSON of what is asked."""
    canonical = json.dumps({**request, "schema": SCHEMA}, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(canonical.encode()).hexdigest()
    return folder / key[:2] / f"{key}.json"


def read_reply(path: Path) -> Completion | None:
    """Returns a kept reply; a missing or damaged file is none."""
    try:
        record = read_record(path)
        text, finish_reason = str(record["text"]), record["finish_reason"]
        usage = usage_of(record.get("usage"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Completion(text, finish_reason, "ok", usage=usage)


def write_reply(path: Path, reply: Completion) -> None:
    """Keeps a reply."""
    record: dict[str, Any] = {"text": reply.text, "finish_reason": reply.finish_reason}
    record |= {"usage": reply.usage} if reply.usage else {}
    write_record(path, record)
