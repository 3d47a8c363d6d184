"""Images of a conversation as data addresses, as services take them; no torch."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from PIL import Image, UnidentifiedImageError

from medrm.chat import Message
from medrm.data.images import decode
from medrm.schema import ImageRef
from medrm.scorer.engines.base import Request, with_images

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
    try:
        with Image.open(io.BytesIO(stored), formats=tuple(_AS_STORED)) as opened:
            if opened.convert("RGB").tobytes() == image.tobytes():
                media_type = _AS_STORED.get(str(opened.format))
    except UnidentifiedImageError:
        pass
    if media_type is None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        media_type, stored = "image/png", buffer.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(stored).decode()}"
