"""Fuzzes the readers: small corpora, seeded mutations, and a table of what happened.

    python tests/data/fuzz_readers.py --mutations 10000 [--seed 0] [--reader votes ...]

A reader may refuse what it is given by one of medrm's messages; anything else is a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import numpy as np
from files import label, picture, png, row, vote, write_lines, write_parquet
from PIL import Image
from released_samples import SAMPLES
from row_samples import ROW_SAMPLES, write_rows

from medrm.data.case_set import read_set
from medrm.data.images import examine
from medrm.data.lint import stored_findings
from medrm.data.readers.unlabelled import count_rows, input_files, read_rows
from medrm.errors import MedrmError

SLOWEST_S = 30.0
LONGEST_MESSAGE = 25_000
MOST_GROWTH = 2**31
"""Bytes by which the memory of the process may grow."""


def _votes(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for number in (1, 2):
        (root / "images" / f"{number}.png").write_bytes(png(picture(number)))
    several = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    rows = [
        vote("c1", "a1", patient="p", organ="brain", votes={"accuracy": "A", "overall": "tie"}),
        vote("c1", "a2", patient="p", organ="brain", votes={"accuracy": "B"}),
        vote("c2", "a1", image=..., images=["images/1.png", "images/2.png"]),
        vote("c3", "a1", **several, votes={"overall": [[0, 2], 1]}, question="Só?"),
    ]
    write_lines(root / "votes.jsonl", rows)
    (root / "dataset.json").write_text('{"ceiling": {"overall": 0.9}, "synthetic": true}')
    return root


def _layout(root: Path) -> Path:
    organs = {"brain": ["q1", "q2"], "GI_tract": ["q3"]}
    for organ, ids in organs.items():
        labels = [label(name, accuracy="A", overall="tie") for name in ids]
        write_lines(root / "pair_gt_all" / f"{organ}.jsonl", labels)
        rows = [row(name, int(name[1:])) for name in ids]
        write_parquet(root / "pair_gt_all" / "parquet" / f"{organ}.parquet", rows, "image")
    return root


def _preferences(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "1.png").write_bytes(png(picture(1)))
    part = {"type": "image_url", "image_url": {"url": "1.png"}}
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part, {"type": "text", "text": "Why?"}]},
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "good", "rejected": "bad", "images": ["1.png"], "case_id": 7},
        {"prompt": turns, **answers},
        {"chosen": "Why? good", "rejected": "Why? bad"},
    ]
    return write_lines(root / "rows.jsonl", rows)


def _rows_of(form: str) -> Callable[[Path], Path]:
    return lambda root: write_rows(root, ROW_SAMPLES[form])


def _tables(root: Path) -> Path:
    stored = [{"bytes": png(picture(number)), "path": None} for number in (1, 2)]
    rows = [
        {"prompt": f"q{number}", "chosen": "good", "rejected": "bad", "images": stored}
        for number in range(3)
    ]
    return write_parquet(root / "rows.parquet", rows)


def _phantom(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dataset.yaml").write_text("name: mine\nform: phantom\ncases: 3\nseed: 3\n")
    return root


def _images(root: Path) -> Path:
    """Votes on images of every format."""
    (root / "images").mkdir(parents=True)
    deep = np.linspace(0, 65535, 20 * 24).astype(np.uint16).reshape(20, 24)
    float_greys = Image.fromarray(deep.astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"png": {}, "jpg": {"format": "JPEG", "exif": exif}, "webp": {"format": "WEBP"}}
    kinds |= {"gif": {"format": "GIF"}, "bmp": {"format": "BMP"}, "jp2": {"format": "JPEG2000"}}
    stored = {f"a.{name}": png(picture(1), **options) for name, options in kinds.items()}
    stored["deep.tif"] = png(Image.fromarray(deep), format="TIFF", exif=exif)
    stored["packed.tif"] = png(picture(2), format="TIFF", compression="tiff_lzw")
    stored["float.tif"] = png(float_greys, format="TIFF")
    stored["pages.tif"] = png(picture(1), format="TIFF", save_all=True, append_images=[picture(2)])
    stored["palette.png"] = png(picture(3).convert("P"), transparency=bytes(range(256)))
    for name, content in stored.items():
        (root / "images" / name).write_bytes(content)
    rows = [vote(name, image=f"images/{name}") for name in stored]
    write_lines(root / "votes.jsonl", rows)
    return root


@dataclass(frozen=True)
class Corpus:
    """What is mutated and how it is read.

    Attributes:
        write: writes it below a folder; returns what is read.
        mutated: the ends of names of its files that are mutated.
        described: the name in `data/` by which it is read.
    """

    write: Callable[[Path], Path]
    mutated: tuple[str, ...] = (".jsonl", ".json", ".parquet", ".yaml")
    described: str | None = None

    def read(self, path: Path) -> None:
        """Reads it as `medrm data audit` and `medrm score` do, images included.

        Raises:
            MedrmError: it is refused.
        """
        stored_findings(str(path))
        if path.is_file():
            files = input_files(str(path))
            count_rows(files)
            list(read_rows(files))
        examine(read_set(str(path), described=self.described).cases)


CORPORA = {
    "votes": Corpus(_votes),
    "layout": Corpus(_layout),
    "preferences": Corpus(_preferences),
    **{form: Corpus(_rows_of(form)) for form in ROW_SAMPLES if form != "preferences"},
    "phantom": Corpus(_phantom),
    "pairs": Corpus(SAMPLES["vl_rewardbench"], described="vl_rewardbench"),
    "best_of": Corpus(SAMPLES["rewardbench_2"], described="rewardbench_2"),
    "criteria": Corpus(SAMPLES["healthbench_meta"], described="healthbench_meta"),
    "tables": Corpus(_tables),
    "images": Corpus(_images, (".png", ".jpg", ".webp", ".gif", ".bmp", ".jp2", ".tif")),
}
"""One for each format of `medrm.data.case_set.FORMATS`, and some that all formats share."""

_WORDS = (
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b'""', b"[]", b"{}", b"[[0], 1]", b'"A"'),
    *(b'"\\ud800"', b'"\\u0000"', b"9" * 30, b"[" * 2000, b'"' + b"x" * 5000 + b'"', b"\xff\xfe"),
    *(b'"../../etc/passwd"', b'"https://example.org/x.png"', b'"data:image/png;base64,AAAA"'),
)
_SEPARATORS = b'{}[],:"\n'


_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3.5,
        "",
        "A",
        "B",
        "tie",
        "x" * 5000,
        "1.png",
        "images/1.png",
        "\0",
        "é",
    ),
    *([], {}, [[]], [None], ["A", "B"], [[0], 1], [0, 1], [0, 0], {"overall": "A"}, {"": None}),
    *([{"role": "user", "content": "q"}], [{"role": "tool", "content": None}], {"type": "video"}),
    *(
        [{"type": "image"}],
        {"bytes": "x", "path": None},
        "<image>",
        "../x",
        "/etc",
        "a" * 300 + ".png",
    ),
    *({"url": {"url": {"url": 1}}}, "data:image/png;base64,iVBORw0KGgo=", "https://x.org/1.png"),
)


def _mutate(content: bytes, random_: random.Random) -> bytes:
    """Returns the content with one change in most cases, or two."""
    for _ in range(random_.choice((1, 1, 1, 2))):
        kind = random_.randrange(10)
        if kind < 5:
            content = _with_value(content, random_)
        elif kind < 7:
            content = _with_word(content, random_)
        else:
            content = _damaged(content, random_)
    return content


def _with_value(content: bytes, random_: random.Random) -> bytes:
    """Returns JSON lines of which one has another value or key; other content damaged."""
    lines = content.splitlines()
    number = random_.randrange(len(lines) or 1)
    try:
        tree = json.loads(lines[number])
    except (ValueError, IndexError, RecursionError):
        return _damaged(content, random_)
    node, inner = tree, tree
    while isinstance(inner, dict | list) and inner and random_.random() < 0.7:
        node = inner
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = random_.choice(keys)
        inner = node[key]
    if isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = random_.choice(keys)
        value = random_.choice(_VALUES)
        if random_.random() < 0.2 and isinstance(node, dict):
            node[str(random_.choice(("images", "image", "votes", "x", "answers")))] = node.pop(key)
        else:
            node[key] = value
    lines[number] = json.dumps(tree).encode()
    return b"\n".join(lines)


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
    """Returns the content with a word in place of what stands between two signs of JSON."""
    places = [place for place, byte in enumerate(content) if byte in _SEPARATORS]
    if len(places) < 2:
        return content
    first = random_.randrange(len(places) - 1)
    last = min(len(places) - 1, first + random_.randint(1, 4))
    return content[: places[first] + 1] + random_.choice(_WORDS) + content[places[last] :]


@dataclass
class Outcome:
    """What fuzzing one corpus has shown."""

    reader: str
    seed: int
    mutations: int = 0
    refused: int = 0
    tracebacks: list[str] = field(default_factory=list)
    growth: int = 0
    slowest_s: float = 0.0
    slowest: str = ""

    def line(self) -> str:
        """Returns a line of the table."""
        return (
            f"| {self.reader} | {self.seed} | {self.mutations} | {self.refused} | "
            f"{len(self.tracebacks)} | {self.growth / 2**20:.0f} | {self.slowest_s:.2f} | "
            f"{self.slowest} |"
        )


HEADER = (
    "| corpus | seed | mutations | refused | tracebacks | peak MiB above start | slowest s | "
    "slowest file |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yields a folder for one mutation, with a cache of its own."""
    before = os.environ.get("MEDRM_CACHE")
    with tempfile.TemporaryDirectory(prefix="medrm-fuzz-") as name:
        os.environ["MEDRM_CACHE"] = str(Path(name, "cache"))
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["MEDRM_CACHE"]
            else:
                os.environ["MEDRM_CACHE"] = before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(reader: str, mutations: int, seed: int = 0) -> Outcome:
    """Reads a corpus so many times, each time with one of its files mutated."""
    corpus, outcome = CORPORA[reader], Outcome(reader, seed)
    with _scratch() as scratch:
        source = corpus.write(scratch / "corpus")
        corpus.read(source)  # as it is it must be accepted
        files = sorted(p for p in (scratch / "corpus").rglob("*") if p.suffix in corpus.mutated)
        whole = {path: path.read_bytes() for path in files}
        start = _peak()
        for number in range(mutations):
            random_ = random.Random(f"{reader} {seed} {number}")
            path = random_.choice(files)
            path.write_bytes(_mutate(whole[path], random_))
            began = time.perf_counter()
            try:
                corpus.read(source)
            except MedrmError as error:
                outcome.refused += 1
                if len(str(error)) > LONGEST_MESSAGE:
                    outcome.tracebacks.append(f"mutation {number}: {len(str(error))} characters")
            except Exception:
                outcome.tracebacks.append(f"mutation {number}\n{traceback.format_exc()}")
            seconds = time.perf_counter() - began
            if seconds > outcome.slowest_s:
                outcome.slowest_s, outcome.slowest = seconds, f"{path.name}, mutation {number}"
            path.write_bytes(whole[path])
            shutil.rmtree(scratch / "cache", ignore_errors=True)
        outcome.mutations, outcome.growth = mutations, _peak() - start
    return outcome


def main() -> int:
    """Fuzzes the corpora that are asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", nargs="+", choices=CORPORA, default=list(CORPORA))
    asked = parser.parse_args()
    sys.stdout.write(f"{HEADER}\n")
    failed = False
    for reader in asked.reader:
        outcome = fuzz(reader, asked.mutations, asked.seed)
        sys.stdout.write(f"{outcome.line()}\n")
        sys.stdout.flush()
        failed |= bool(outcome.tracebacks)
        for text in outcome.tracebacks[:3]:
            sys.stderr.write(f"{reader}: {text}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
