"""A data set with a distinctive word in every text and path, and the search for these words."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medrm.data.phantom.phantom_set import write_phantom


def word(field: str) -> str:
    return f"zq{field}qz"


FIELDS = (
    *("case", "question", "answera", "answerb", "annotator", "patient", "study", "source"),
    *("organ", "department", "modality", "image", "file", "folder", "home", "host", "token"),
    *("reply", "prompt", "pixel"),
)
WORDS = tuple(map(word, FIELDS))

MACHINE = tuple(map(word, ("folder", "home", "host", "token")))
"""Words that stand in no page and no evaluation either."""


def plant_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives the process a home folder, a host and a token by such words; returns the home."""
    home = home / word("home")
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HOSTNAME", word("host"))
    monkeypatch.setenv("HF_TOKEN", f"hf_{word('token')}")
    monkeypatch.setattr(socket, "gethostname", lambda: word("host"))
    return home


def plant_image(image: Path, renamed: Path) -> None:
    """Moves an image, with a word in its text and in its colour profile."""
    texts = PngInfo()
    texts.add_text("Patient", word("pixel"), zip=True)
    with Image.open(image) as opened:
        opened.save(renamed, pnginfo=texts, icc_profile=word("pixel").encode())
    image.unlink()


def plant_data(home: Path, cases: int = 24) -> Path:
    """Writes votes in which every text holds a word; returns the file."""
    folder = home / word("folder")
    write_phantom(folder, cases=cases, seed=5)
    source, votes = folder / "votes.jsonl", folder / f"{word('file')}.jsonl"
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        vote = json.loads(line)
        image = Path(vote["image"])
        renamed = image.with_name(f"{word('image')}-{image.name}")
        if (folder / image).exists():
            plant_image(folder / image, folder / renamed)
        for key in ("question", "answer_a", "answer_b"):
            vote[key] += f" {word(key.replace('_', ''))}"
        case = vote["case_id"]
        vote |= {"case_id": f"{word('case')}-{case}", "image": str(renamed)}
        vote |= {"annotator": f"{word('annotator')}-{vote['annotator']}"}
        vote |= {name: f"{word(name)}-{case}" for name in ("patient", "study")}
        groups = ("source", "organ", "department", "modality")
        vote |= {name: f"{word(name)} {int(case[-2:]) % 2}" for name in groups}
        lines.append(json.dumps(vote) + "\n")
    source.unlink()
    votes.write_text("".join(lines), encoding="utf-8")
    return votes


def found(paths: Iterable[Path], words: Iterable[str] = WORDS) -> list[str]:
    """Returns which words stand in which files or their names, however they are packed."""
    files = [
        file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])
    ]  # fmt: skip
    hits = []
    for file in files:
        text = str(file.name).encode() + (b"" if file.is_dir() else b" ".join(_unpacked(file)))
        hits += [f"{name} in {file.name}" for name in words if name.encode() in text.lower()]
    return hits


def _unpacked(file: Path) -> Iterator[bytes]:
    content = file.read_bytes()
    yield from _layers(content)
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        yield " ".join([*table.column_names, str(table.to_pylist())]).encode()


def _layers(content: bytes, depth: int = 3) -> Iterator[bytes]:
    """Yields bytes, and what is packed in them: base64, zlib, gzip, zip."""
    yield content
    if not depth:
        return
    for run in re.finditer(rb"[A-Za-z0-9+/_-]{24,}={0,2}", content):
        packed = run[0].rstrip(b"=")
        packed += b"=" * (-len(packed) % 4)
        for altchars in (b"+/", b"-_"):
            with suppress(ValueError):
                yield from _layers(base64.b64decode(packed, altchars), depth - 1)
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", content):
        rest = content[start.start() :]
        with suppress(zlib.error, OSError, EOFError):
            packed = rest.startswith(b"\x1f")
            unpacked = gzip.decompress(rest) if packed else zlib.decompressobj().decompress(rest)
            yield from _layers(unpacked, depth - 1)
    if content.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from _layers(archive.read(name), depth - 1)
