"""Replies of paid services on disk, by the SHA-256 of all that could change them; no torch.

A run that was stopped goes on without asking again. Processes may share a folder: a file appears
whole or not at all, and two that write the same one write the same reply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medrm.files import write_atomically

SCHEMA = 1
"""Counted up when the meaning of a key or a file changes."""


class Reply(NamedTuple):
    """What a service replied."""

    text: str
    finish_reason: str | None


def reply_key(request: Mapping[str, Any]) -> str:
    """Returns the key of what is asked: the SHA-256 of its canonical JSON."""
    canonical = json.dumps({**request, "schema": SCHEMA}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_reply(folder: Path, key: str) -> Reply | None:
    """Returns a kept reply; a missing or damaged file is none."""
    try:
        record = json.loads(_path(folder, key).read_text(encoding="utf-8"))
        text, finish_reason = str(record["text"]), record["finish_reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Reply(text, finish_reason)


def write_reply(folder: Path, key: str, reply: Reply) -> None:
    """Keeps a reply."""
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [json.dumps(reply._asdict()).encode()])


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"
