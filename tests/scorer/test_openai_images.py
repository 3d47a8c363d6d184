"""What an OpenAI-compatible service is shown of an image."""

from __future__ import annotations

import base64
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cases import broken_image
from loopback_openai import LoopbackOpenAI, Start, ask, echo, run
from PIL import Image
from tiny import tiny_image

from medrm.data.images import bytes_image, decode
from medrm.schema import ImageRef


def shown(service: LoopbackOpenAI) -> tuple[str, bytes]:
    url = service.bodies[-1]["messages"][-1]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(";base64,")
    return kind, base64.b64decode(data)


def saved(image: Image.Image, kind: str, **options: Any) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return bytes_image(f"{kind}-{options}", partial(bytes, buffer.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_stored_bytes_are_sent_as_they_are(kind: str, start: Start, tmp_path: Path) -> None:
    service, ref = start(echo), saved(tiny_image(5), kind)
    run(service, tmp_path, ask("q", ref))
    assert shown(service) == (f"data:image/{kind.lower()}", ref.read())


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


@pytest.mark.parametrize(
    "ref",
    [
        saved(tiny_image(5), "BMP"),
        saved(tiny_image(5), "TIFF"),
        saved(tiny_image(5), "JPEG", exif=ROTATED),
        saved(tiny_image(5).convert("I;16").point(lambda value: value * 200), "PNG"),
        saved(Image.new("RGBA", (30, 30), (200, 0, 0, 60)), "PNG"),
    ],
    ids=["bmp", "tiff", "rotated", "16 bit", "transparent"],
)
def test_what_viewers_would_show_otherwise_is_sent_as_it_is_decoded(
    ref: ImageRef, start: Start, tmp_path: Path
) -> None:
    service = start(echo)
    run(service, tmp_path, ask("q", ref))
    kind, data = shown(service)
    assert (kind, data[:4]) == ("data:image/png", b"\x89PNG")
    sent = Image.open(io.BytesIO(data))
    assert (sent.mode, sent.tobytes()) == ("RGB", decode(ref).tobytes())


def test_a_bad_image_is_no_call(start: Start, tmp_path: Path) -> None:
    service = start(echo)
    missing = ImageRef("gone", "", bytes, "there is no file")
    found = run(service, tmp_path, ask("a", broken_image()), ask("b"), ask("c", missing))
    assert [each.state for each in found] == ["bad_image", "ok", "bad_image"]
    assert "broken" in str(found[0].reason)
    assert len(service.bodies) == 1
