"""Copies of cases beside an export: their images, and `cases.jsonl`, by which results come back.

What returns from a reader's tool may have lost the form of a text, the copy of an image, and what
was never shown, such as the organ. `cases.jsonl` has them as they were; patients and studies as
keyed hashes, for it may leave the machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from medrm.data.decoding import UNREADABLE
from medrm.data.images import decode
from medrm.data.pseudonyms import pseudonyms
from medrm.data.readers.messages import IMAGE_MARK
from medrm.data.row_tables import JsonLines, LocatedRow, Row
from medrm.data.sources import CaseDraft
from medrm.data.splits import patient_keys
from medrm.errors import DataError, raise_problems
from medrm.files import fits, write_atomically
from medrm.schema import ImageRef, Turn

CASES_FILE = "cases.jsonl"
IMAGES_FOLDER = "images"

EXPORTED_IMAGE = re.compile(rf"{IMAGES_FOLDER}/[0-9a-f]{{64}}(-shown)?(\.[a-z]{{1,4}})?")
"""The path of an image in an export."""

SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""How images start, to the suffix of their files' names."""

_TEXTS = (
    *(b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"Exif\0", b"EXIF", b"XMP "),
    *(b"http://ns.adobe.com/xap/", b"Photoshop 3.0", b"DICM"),
)
"""How texts, EXIF, XMP and the like begin in the files of images."""

_HEADERS_WITH_TEXTS = (b"\xff\xd8\xff", b"GIF8", b"II", b"MM")
"""How JPEG, GIF and TIFF start, whose texts have no mark of their own."""

_TEXT_TAGS = (270, 271, 305, 306, 315, 316, 33432, 700, 34377)
"""Of TIFF: description, maker, software, date, artist, host, copyright, XMP and Photoshop."""

_PNG_DEPTH = 24
"""Where the header of a PNG states the bits of a channel."""


def image_suffix(stored: bytes) -> str:
    """Returns the suffix for a file with the bytes of an image; empty: of an unusual form."""
    return next((SUFFIXES[start] for start in SUFFIXES if stored.startswith(start)), "")


class ImageCopies:
    """Copies images into a folder, each once, under names that tell nothing.

    Args:
        folder: of the export.

    Attributes:
        count: of the different images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        self._holds_texts: dict[str, bool] = {}

    @property
    def with_texts(self) -> int:
        """How many images hold texts besides pixels, which may say who a patient is."""
        return sum(self._holds_texts.values())

    def content(self, ref: ImageRef) -> bytes:
        """Returns an image as it is stored, with all that its file holds."""
        image = ref.read()
        if ref.digest not in self._holds_texts:
            is_marked = any(mark in image for mark in _TEXTS)
            self._holds_texts[ref.digest] = is_marked or _states_text(image)
        return image

    @property
    def count(self) -> int:
        """How many different images there are."""
        return len(self._names)

    def stored(self, ref: ImageRef) -> str:
        """Returns the path of an image as it is stored, relative to the folder."""
        if ref.digest not in self._names:
            image = self.content(ref)
            self._names[ref.digest] = self._write(ref.digest + image_suffix(image), image)
        return self._names[ref.digest]

    def shown(self, ref: ImageRef) -> str:
        """Returns the path of an image as a browser and a spreadsheet can show it.

        What they cannot show, such as TIFF, or would show black, such as greys of 16 bits, is a
        PNG of what models see.

        Raises:
            DataError: the image must be decoded for that, and cannot be.
        """
        if ref.digest not in self._shown:
            name = self.stored(ref)
            header = ref.read()[: _PNG_DEPTH + 1]
            deep = name.endswith(".png") and header[_PNG_DEPTH:] == b"\x10"
            if deep or name.endswith((ref.digest, ".tif")):
                file = io.BytesIO()
                decode(ref).save(file, "PNG")
                name = self._write(f"{ref.digest}-shown.png", file.getvalue())
            self._shown[ref.digest] = name
        return self._shown[ref.digest]

    def _write(self, name: str, image: bytes) -> str:
        (self._folder / IMAGES_FOLDER).mkdir(exist_ok=True)
        path = f"{IMAGES_FOLDER}/{name}"
        write_atomically(self._folder / path, [image], durable=False)
        return path


def _states_text(stored: bytes) -> bool:
    """Returns whether a JPEG or GIF has a comment, or a TIFF a tag that is text; by its header."""
    if not stored.startswith(_HEADERS_WITH_TEXTS):
        return False
    try:
        with Image.open(io.BytesIO(stored), formats=("JPEG", "GIF", "TIFF")) as image:
            tags = getattr(image, "tag_v2", {})
            return bool(image.info.get("comment")) or any(map(tags.get, _TEXT_TAGS))
    except (*UNREADABLE, Image.DecompressionBombError):  # refused where it is decoded
        return False


def case_line(draft: CaseDraft, images: Iterable[str]) -> Row:
    """Returns a case as a line of `votes.jsonl` without a vote.

    Args:
        draft: the case.
        images: the paths of its images.
    """
    line: Row = {
        "case_id": draft.case_id,
        "images": list(images),
        "question": draft.question,
        "answers": list(draft.answers),
        **draft.groups,
        **cluster_columns(draft),
    }
    if draft.context:
        line["context"] = [turn_record(turn) for turn in draft.context]
    return line


def cluster_columns(draft: CaseDraft) -> dict[str, list[str]]:
    """Returns what keeps a split honest: the patients and studies of a case, as keyed hashes."""
    return pseudonyms(patient_keys(draft))


def turn_record(turn: Turn) -> Row:
    """Returns a turn as `votes.jsonl` has it."""
    return {"role": turn.role, "content": IMAGE_MARK * turn.images + turn.text}


def add_case(folder: Path, line: Row) -> None:
    """Adds a case to the `cases.jsonl` of an export."""
    with (folder / CASES_FILE).open("ab") as file:
        file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())


def read_cases_file(folder: Path) -> dict[str, Row]:
    """Returns the lines of the `cases.jsonl` in a folder by case id; none where no export wrote it.

    Raises:
        DataError: some lines of it are not as they were written.
    """
    path = folder / CASES_FILE
    problems: list[str] = []
    lines: dict[str, Row] = {}
    others = []
    for place, line in JsonLines(path, problems) if path.is_file() else ():
        if _is_case(line):
            lines[line["case_id"]] = line
        else:
            others.append(place)
    if not lines:  # another program's file of this name
        return {}
    problems += [f"{place}: it is no case as it was exported; export again" for place in others]
    raise_problems(DataError, path, problems)
    return lines


def _is_case(line: Row) -> bool:
    """Returns whether a line is of the form of `case_line`."""
    texts = (line.get("case_id"), line.get("question"))
    images: Any = line.get("images")
    return (
        all(isinstance(text, str) for text in texts)
        and fits(line.get("answers"), list[str])
        and fits(images, list[str])
        and all(map(EXPORTED_IMAGE.fullmatch, images))
        and "votes" not in line
    )


def restored(lines: Iterable[LocatedRow], folder: Path) -> Iterator[LocatedRow]:
    """Yields imported lines, those of exported cases with the content that was exported.

    Args:
        lines: with their places.
        folder: of the imported file, which may have a `cases.jsonl`.

    Raises:
        DataError: that file is not as it was written.
    """
    exported = read_cases_file(folder)
    for place, line in lines:
        case = exported.get(str(line.get("case_id")))
        if case is not None and content_digest(case) == content_digest(line):
            line = {key: line[key] for key in line if key not in _CONTENT} | case
        yield place, line


_CONTENT = ("image", "images", "question", "answers", "answer_a", "answer_b", "context")


def content_digest(line: Row) -> str:
    """Returns a digest of a case's question and answers, whose blanks a program may change."""
    answers = line.get("answers", [line.get("answer_a"), line.get("answer_b")])
    texts = [line.get("question"), *(answers if isinstance(answers, list) else [answers])]
    words = [" ".join(str(text).split()) for text in texts]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
