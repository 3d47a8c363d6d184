"""Seeded damage of files: other values and words in text, lost and flipped bytes in all."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from typing import Any

_WORDS = (
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b'""', b"[]", b"{}", b"[[0], 1]", b'"A"'),
    *(b'"\\ud800"', b'"\\u0000"', b"9" * 30, b"[" * 2000, b'"' + b"x" * 5000 + b'"', b"\xff\xfe"),
    *(b'"../../etc/passwd"', b'"https://example.org/x.png"', b'"data:image/png;base64,AAAA"'),
)
_SEPARATORS = b'{}[],:"\n;\t<>='

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3.5, 1e308, 10**40, "", "A", "B", "tie", "neither", "strongly_a"),
    *("x" * 5000, "1.png", "images/1.png", "\0", "é", "=cmd()", "2026-01-01T00:00:00Z"),
    *([], {}, [[]], [None], ["A", "B"], [[0], 1], [0, 1], [0, 0], {"overall": "A"}, {"": None}),
    *([{"role": "user", "content": "q"}], [{"role": "tool", "content": None}], {"type": "video"}),
    *([{"type": "image"}], {"bytes": "x", "path": None}, "<image>", "../x", "/etc"),
    *("a" * 300 + ".png", {"url": {"url": {"url": 1}}}, "data:image/png;base64,iVBORw0KGgo="),
    *("https://x.org/1.png", {"choices": []}, {"selected": "left"}, {"rating": 3}, "discarded"),
    *([{"value": "x", "rank": 1}], {"text": [1]}, {"id": 1, "email": None}),
)
_KEYS = ("images", "image", "votes", "x", "answers", "value", "id")


def mutate(content: bytes, random_: random.Random) -> bytes:
    """Returns the content with one change in most cases, or two.

    What is compressed, a ZIP container such as a workbook or gzip, is mostly changed inside.
    """
    if content.startswith(b"PK\3\4") and random_.random() < 0.9:
        return _inside_zip(content, random_)
    if content.startswith(b"\x1f\x8b") and random_.random() < 0.9:
        return gzip.compress(mutate(gzip.decompress(content), random_), 1, mtime=0)
    for _ in range(random_.choice((1, 1, 1, 2))):
        kind = random_.randrange(10)
        if kind < 5:
            content = _with_value(content, random_)
        elif kind < 7:
            content = _with_word(content, random_)
        else:
            content = _damaged(content, random_)
    return content


def _inside_zip(content: bytes, random_: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as container:
        members = {name: container.read(name) for name in container.namelist()}
    changed = random_.choice(sorted(name for name, member in members.items() if member))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as container:
        for name, member in members.items():
            container.writestr(name, mutate(member, random_) if name == changed else member)
    return buffer.getvalue()


def _with_value(content: bytes, random_: random.Random) -> bytes:
    """Returns JSON, or JSON lines, with another value or key; other content damaged."""
    lines = content.splitlines()
    number = random_.randrange(len(lines) or 1)
    try:
        tree = json.loads(lines[number])
    except (ValueError, IndexError, RecursionError):
        try:
            tree, lines, number = json.loads(content), [content], 0
        except (ValueError, RecursionError):
            return _damaged(content, random_)
    node, inner = tree, tree
    while isinstance(inner, dict | list) and inner and random_.random() < 0.8:
        node = inner
        inner = node[random_.choice(_keys(node))]
    if isinstance(node, dict | list) and node:
        key = random_.choice(_keys(node))
        if random_.random() < 0.2 and isinstance(node, dict):
            node[random_.choice(_KEYS)] = node.pop(key)
        else:
            node[key] = random_.choice(_VALUES)
    lines[number] = json.dumps(tree).encode()
    return b"\n".join(lines)


def _keys(node: dict[str, Any] | list[Any]) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node)))


def _damaged(content: bytes, random_: random.Random) -> bytes:
    """Returns the content with a bit flipped, or with some bytes lost, doubled or changed."""
    size = len(content)
    start = random_.randrange(size + 1)
    stop = min(size, start + random_.choice((1, 2, 8, 64, size)))
    kind = random_.randrange(7)
    if kind == 0:
        return content[:start] + content[stop:]
    if kind == 1:
        return content[:stop] + content[start:]
    if kind == 2:
        return content[:start] + random_.randbytes(stop - start) + content[stop:]
    if kind == 3:
        return content[:start]
    if not size:
        return content
    place = random_.randrange(size)
    flipped = content[place] ^ (1 << random_.randrange(8))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


def _with_word(content: bytes, random_: random.Random) -> bytes:
    """Returns the content with a word in place of what stands between two separators."""
    places = [place for place, byte in enumerate(content) if byte in _SEPARATORS]
    if len(places) < 2:
        return content
    first = random_.randrange(len(places) - 1)
    last = min(len(places) - 1, first + random_.randint(1, 4))
    return content[: places[first] + 1] + random_.choice(_WORDS) + content[places[last] :]
