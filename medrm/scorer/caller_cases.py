"""Cases as callers of the Python interface describe them: images of any kind, question, answers.

Also rows of files without labels, whose columns have the names that data sets use.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medrm.data.image_references import ImageOptions, file_images, is_address
from medrm.data.images import bytes_image, decode
from medrm.data.inline_images import (
    ACCEPTED,
    MAX_STORED_BYTES,
    from_base64,
    from_data_url,
    inline_bytes,
)
from medrm.data.medical.conversions import ImageConversion
from medrm.data.medical.converter import (
    convert_bytes,
    kind_of_file,
    medical_kind,
    named_conversion,
)
from medrm.data.medical.shades import UnreadableError
from medrm.data.readers.messages import read_conversation, read_turns, without_prompt
from medrm.data.readers.row_forms import IMAGE_COLUMNS, ROW_FORMS, form_of, unread_columns
from medrm.errors import DataError, nearest
from medrm.schema import Case, ImageRef, Response

ImageInput = str | Path | bytes | Image.Image | NDArray[Any] | Mapping[str, Any] | ImageRef
"""A file, a data URL or base64, stored bytes, a decoded image, pixels, a `datasets` image (bytes,
path), or a reference as cases hold it."""

CaseInput = Case | Mapping[str, Any]
"""A case, or a row with the columns of `row_case`."""

Given = TypeVar("Given", bound=CaseInput)
"""A case as it was given."""

_IDS = ("case_id", "question_id", "id")
_QUESTIONS = ("question", "prompt")
_ANSWERS = ("answers", "responses", "completions")
_SPLIT_ANSWERS = (
    ("answer_a", "answer_b"),
    ("answer1_text", "answer2_text"),
    ("chosen", "rejected"),
    ("answer",),
    ("response",),
    ("completion",),
)
"""Columns of one answer each."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class CallerImages:
    """Images that a caller gives; messages call one by its file name or its index.

    Attributes:
        root: the folder that a path is relative to and must not leave; None: any path.
        conversion: by which DICOM and NIfTI become pictures; None: they are refused.
    """

    root: Path | None = None
    conversion: ImageConversion | None = None

    def images(self, held: ImageInput, index: int = 0) -> tuple[ImageRef, ...]:
        """Returns the references of an image: of a medical one those of its pictures.

        Args:
            held: an image of any accepted kind.
            index: among the images of its case.

        Raises:
            DataError: there is no such file, or it is no image of an accepted kind.
        """
        if isinstance(held, ImageRef):
            return (held,)
        if isinstance(held, Mapping):
            stored, path = held.get("bytes"), held.get("path")
            if stored is None and path is None:
                raise DataError(f"a mapping with neither bytes nor path as an image; {ACCEPTED}.")
            if isinstance(stored, str):  # JSON has no bytes
                stored = from_base64(stored)
            inner: Any = path if stored is None else stored
            return self.images(inner, index)
        content = _content(held)
        if content is not None:
            return self.stored(content, index)
        if not isinstance(held, str | Path):
            raise DataError(f"{type(held).__name__} as an image; {ACCEPTED}.")
        return self._file(held)

    def encoded(self, text: str, index: int) -> tuple[ImageRef, ...]:
        """Returns the references of a data URL or base64; no path is read, nothing fetched.

        Args:
            text: as above.
            index: among the images of its case.

        Raises:
            DataError: it is neither, or too large.
        """
        try:
            content = from_data_url(text) if text.startswith("data:") else from_base64(text)
        except DataError as error:
            raise DataError(
                f"image {index} is neither a data URL (data:image/png;base64,...) nor base64 of an "
                "accepted size; addresses and paths are not followed"
            ) from error
        return self.stored(content, index)

    def stored(self, content: bytes, index: int) -> tuple[ImageRef, ...]:
        """Returns the references of an image's bytes, of which nothing is kept on the disk."""
        name, kind = f"number {index}", medical_kind(content)
        if kind is None:
            return (bytes_image(name, partial(bytes, content)),)
        if len(content) > MAX_STORED_BYTES:
            return (ImageRef(name, "", bytes, f"larger than {MAX_STORED_BYTES} bytes"),)
        try:
            pictures = convert_bytes(kind, content, named_conversion(name, self.conversion), name)
        except UnreadableError as error:
            return (ImageRef(name, "", bytes, str(error)),)
        return tuple(bytes_image(name, partial(bytes, picture)) for name, picture in pictures)

    def _file(self, image: str | Path) -> tuple[ImageRef, ...]:
        if is_address(str(image)):
            raise DataError(
                f"the address {str(image)[:80]!r} as an image; nothing is fetched from the "
                "network. Download it and give its path."
            )
        options = ImageOptions(conversion=self.conversion)
        if self.root is not None:
            return file_images(_below(str(image), self.root), self.root, None, options)
        path = Path(image)
        if "\0" in str(path) or not path.exists():
            raise DataError(
                f"a path, but there is no image file {str(path)[:200]!r}. Give a path, bytes, or a "
                "PIL image."
            )
        if path.is_dir() or kind_of_file(path) is not None:
            folder = path.resolve().parent
            return file_images(path.resolve().name, folder, folder, options)
        if not path.is_file():
            return (ImageRef(path.name, "", bytes, "no file but a pipe or a device"),)
        return (bytes_image(path.name, path.read_bytes),)


ANY_IMAGES = CallerImages()
"""Images of any path; medical ones are refused."""


def caller_case(
    function: str,
    images: Sequence[ImageInput] | None,
    question: str,
    answers: Sequence[str],
    source: CallerImages = ANY_IMAGES,
) -> Case:
    """Returns the case that a caller of `function` describes; its id is the function's name.

    Raises:
        DataError: one answer or image in place of a list, what is no image or no text, or no image
            file under a path.
    """
    try:
        return _case(function, images, question, answers, source)
    except DataError as error:
        raise DataError(f"{function}() was given {error}") from error


def row_case(row: Mapping[str, Any], number: int, source: CallerImages = ANY_IMAGES) -> Case:
    """Returns the case of a row that needs no labels.

    Its columns are `question` or `prompt`; `answers` (or `responses`, `completions`) with one text
    or more, or one column for each answer (`answer_a` and `answer_b`, `answer1_text` and
    `answer2_text`, `chosen` and `rejected`, `answer`, `response`, `completion`); and where there
    are images, `images` or `image`. `case_id`, `question_id` or `id` names it, else its number.
    Prompt and answers may be messages, as TRL's data sets have them; `chosen` and `rejected`
    without a prompt begin with it. Rows of other tools have their own columns
    (`readers.row_forms.ROW_FORMS`). They are read as in training.

    Args:
        row: of a file, or a dictionary of a caller.
        number: of the row, from 1.
        source: where its images are.

    Raises:
        DataError: a column is missing, or holds what it should not.
    """
    case_id = next((str(row[name]) for name in _IDS if row.get(name) is not None), f"row {number}")
    images = _cell(row, IMAGE_COLUMNS)
    if isinstance(images, str | bytes | Mapping | Image.Image):
        images = [images]
    if unread := unread_columns(row):
        raise DataError("; ".join(unread))
    form = form_of(row)
    if form is not None and form != "preferences":  # columns of another tool
        exchange = ROW_FORMS[form].exchange(dict(row))
        stated = list(exchange.answers.values())
        return _conversation_case(case_id, images, exchange.prompt, stated, source)
    question, answers = _cell(row, _QUESTIONS), _cell(row, _ANSWERS)
    if answers is None:
        split = (names for names in _SPLIT_ANSWERS if all(name in row for name in names))
        answers = [row[name] for name in next(split, ())] or None
    is_pair = question is None and {"chosen", "rejected"} <= row.keys()
    missing = {"question": "" if is_pair else question, "answers": answers}
    lacking = [f"{name!r}.{nearest(name, row)}" for name, cell in missing.items() if cell is None]
    if lacking:
        columns = ", ".join(map(repr, row)) or "none"
        raise DataError(f"no column {' and no column '.join(lacking)} Given: {columns}.")
    is_read_as_trained = row.get("question") is None or _holds_messages(question, answers)
    if is_read_as_trained and isinstance(answers, list | tuple):
        return _conversation_case(case_id, images, question, answers, source)
    return _case(case_id, images, question, answers, source)


def drawn_cases(
    given: Iterable[Given], waiting: deque[Given], source: CallerImages = ANY_IMAGES
) -> Iterator[Case]:
    """Yields what was given as cases, and puts what was drawn into `waiting`."""
    for number, drawn in enumerate(given, start=1):
        waiting.append(drawn)
        yield drawn if isinstance(drawn, Case) else row_case(drawn, number, source)


def _holds_messages(question: Any, answers: Any) -> bool:
    """Returns whether a question or an answer is a list of messages."""
    cells = (question, *answers) if isinstance(answers, list | tuple) else (question,)
    return any(isinstance(cell, list) and cell and isinstance(cell[0], dict) for cell in cells)


def _conversation_case(
    case_id: str, images: Any, question: Any, answers: Any, source: CallerImages
) -> Case:
    """Returns the case of a row as data sets of preferences have it.

    Raises:
        DataError: what is asked is no conversation that ends in a question, or an answer is none.
    """
    prompt = read_turns({"prompt": question}, "prompt", "user", source)
    columns = [f"answer {index}" for index in range(len(answers))]
    turns = [
        read_turns({column: answer}, column, "assistant", source)
        for column, answer in zip(columns, answers, strict=True)
    ]
    if prompt or len(turns) == 2:
        prompt, turns = without_prompt(prompt, turns, is_text=isinstance(question, str))
    for column, answer in zip(columns, turns, strict=True):
        if [turn.role for turn in answer] != ["assistant"]:
            raise DataError(f"{column} is not one turn of the assistant")
    said = [answer[0] for answer in turns]
    beside = _case(case_id, images, "", [turn.text for turn in said], source)
    asked = read_conversation(prompt, said, beside.images, "images")
    if asked.problems:
        raise DataError("; ".join(asked.problems))
    context = tuple(turn._replace(text=tokenisable(turn.text, "turn")) for turn in asked.context)
    return replace(
        beside,
        images=asked.images,
        question=tokenisable(asked.question, "question"),
        context=context,
    )


def _cell(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Returns the cell of the first of those columns that is there and not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _case(case_id: str, images: Any, question: Any, answers: Any, source: CallerImages) -> Case:
    if isinstance(answers, str):
        raise DataError("one text as its answers; give a list of texts.")
    if isinstance(images, str | bytes | Mapping | Image.Image | np.ndarray):
        raise DataError("one image in place of a list; give [image].")
    for role, value in (("images", images), ("answers", answers)):
        if value is not None and not isinstance(value, Sequence):
            raise DataError(f"{type(value).__name__} as its {role}; give a list.")
    pictures = (source.images(image, index) for index, image in enumerate(images or ()))
    references = tuple(chain.from_iterable(pictures))
    texts = tuple(
        tokenisable(answer, f"answer {index}") for index, answer in enumerate(answers or ())
    )
    return Case(case_id, references, tokenisable(question, "question"), texts)


def tokenisable(value: Any, role: str) -> str:
    """Returns a text that a tokenizer takes.

    Raises:
        DataError: no text, or one with half a character.
    """
    if not isinstance(value, str):
        raise DataError(f"{type(value).__name__} as its {role}; give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a {role} with half a character (a lone surrogate) at {error.start}; give valid "
            "Unicode."
        ) from error
    return value


def are_finite(rewards: Mapping[str, Sequence[float]]) -> bool:
    """Returns whether all rewards of a case are finite numbers; others order no answers."""
    return all(math.isfinite(reward) for by_answer in rewards.values() for reward in by_answer)


def unscored_reason(case: Case, response: Response, max_length: int | None) -> str | None:
    """Returns in words why a response has no reward that counts; None where it says so itself.

    Args:
        case: that was to be scored.
        response: of the model.
        max_length: tokens of the longest row that the model reads.
    """
    if response.rewards is not None and not are_finite(response.rewards):
        return "the model gave a reward that is no finite number"
    if response.state == "too_long":
        if max_length is None:
            return "a row has more tokens than the model can read"
        return f"a row has more than {max_length} tokens, the model's limit"
    if response.state == "bad_image":
        for image in case.images:
            try:
                decode(image)
            except DataError as error:
                return str(error)
    return None


def _content(image: ImageInput) -> bytes | None:
    """Returns the bytes of an image that is no file; None of what may be one.

    Raises:
        DataError: pixels or base64 that are none.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        image = _from_pixels(image)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        storable = image if image.mode in _PNG_MODES else image.convert("RGB")
        storable.save(buffer, "PNG")
        return buffer.getvalue()
    return inline_bytes(image) if isinstance(image, str) else None


def _below(written: str, root: Path) -> str:
    """Returns an absolute path inside the folder as one relative to it; others unchanged."""
    with_root = Path(written)
    is_inside = with_root.is_absolute() and with_root.is_relative_to(root.absolute())
    return str(with_root.relative_to(root.absolute())) if is_inside else written


def _from_pixels(pixels: NDArray[Any]) -> Image.Image:
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise DataError(f"an array of {pixels.dtype} {list(pixels.shape)} as an image; {ACCEPTED}.")
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
