"""Benchmarks as their authors released them: rows of pairs, best-of-N answers or criteria.

What each column holds stands in `data/<name>/dataset.yaml`; no benchmark is known by name here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count, product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from medrm.data.image_references import ImageOptions
from medrm.data.row_tables import SUFFIXES, Row, RowTable, missing_columns, open_table, row_images
from medrm.data.sources import (
    CaseDraft,
    DataFormat,
    Description,
    ReadResult,
    Source,
    Vote,
    description_names,
    hub_files,
)
from medrm.errors import DataError, raise_problems
from medrm.files import fits
from medrm.schema import LETTERS, ImageRef

MET, NOT_MET = "The criterion is met.", "The criterion is not met."
"""The two answers of a case that asks whether a response meets a criterion, in this order."""

FRAMES = 32
"""Of a video, evenly spaced, as in the released evaluation of MM-RLHF-RewardBench."""

_RELEASED = "released"
_IMAGE_MARK = "<image>"
_NUMBERED_MARK = re.compile(r"<image_\d+>")
_MEDIA = ("image", "video")
_ANSWER_MEDIA = ("first_images", "second_images")
_MESSAGE_CHARACTERS = 200
"""Characters of a path that a message repeats."""
_QUESTION = """\
Conversation:

{conversation}

Criterion: {criterion}

Does the last response of the assistant meet the criterion? A criterion may describe something \
undesirable; it is met where the response does what it describes."""


class _RowContent(NamedTuple):
    """What a row says besides its images and groups; rows of one `cluster` are not independent."""

    case_id: str
    cluster: str
    question: str
    answers: tuple[str, ...]
    votes: list[Vote]


RowReader = Callable[[Row, Mapping[str, str]], _RowContent]
"""Reads a row whose columns are named by what they hold.

Raises:
    DataError: a value is not what the column should hold.
"""


def released_format(read_row: RowReader) -> DataFormat:
    """Returns the format of tables whose rows are read by `read_row`."""
    return DataFormat(
        open_described=partial(_open_hub, read_row), open_files=partial(_open_files, read_row)
    )


def _open_hub(read_row: RowReader, description: Description) -> Source:
    folder = hub_files(description, description.files)
    files = _released_files(description, folder)
    boundary = folder.parent.parent  # a snapshot's files are links into the repository's folder
    asked = description.image_options
    drafts = partial(_drafts, read_row, description, files, boundary, asked)
    return Source(files, lambda: ReadResult(drafts()), folder.name, hub_id=description.hub_id)


def _open_files(
    read_row: RowReader, description: Description, path: Path, image_options: ImageOptions
) -> Source | None:
    files = _released_files(description, path)
    drafts = partial(_drafts, read_row, description, files, None, image_options)
    return Source(files, lambda: ReadResult(drafts())) if files else None


def _released_files(description: Description, root: Path) -> list[Path]:
    """Returns the tables of a described set at `root`, which is their folder or one of them."""
    if root.is_file():
        columns = open_table(root).columns if root.suffix.lower() in SUFFIXES else ()
        return [] if missing_columns(columns, _required(description)) else [root]
    tables = (
        sorted(root.glob(pattern)) or sorted(root.glob(Path(pattern).name))
        for pattern in description.files
        if Path(pattern).suffix in SUFFIXES
    )
    return next(filter(None, tables), [])


def _drafts(
    read_row: RowReader,
    description: Description,
    files: Iterable[Path],
    boundary: Path | None,
    image_options: ImageOptions,
) -> Iterator[CaseDraft]:
    """Yields the cases of a benchmark's files.

    An id that occurs again is told apart by a number behind it, `id#2`; the id as it is written is
    the group `prompt`, and its cases are one cluster.

    Args:
        read_row: reads a row.
        description: what the columns hold.
        files: one table each.
        boundary: the folder that no link may leave; None: that of each file.
        image_options: what the user says of images.

    Raises:
        DataError: all missing columns, wrong rows and missing images in one message.
    """
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for path in files:
        table = open_table(path, boundary)
        table.image_options = image_options
        missing = missing_columns(table.columns, _required(description))
        problems += [f"{path.name}: {problem}" for problem in missing]
        for index, (location, row) in enumerate(table.rows if not missing else ()):
            try:
                draft = _draft(read_row, description, table, index, row)
            except DataError as error:
                problems.append(f"{path.name} {location}: {error}")
                continue
            seen[draft.case_id] += 1
            if seen[draft.case_id] > 1:
                draft.case_id += f"#{seen[draft.case_id]}"
            yield draft
        problems += [f"{path.name} {problem}" for problem in table.problems]
    name = description.name
    told = f"; data/{name}/README.md says how it is had" if name in description_names() else ""
    raise_problems(DataError, name, problems, told)


def _required(description: Description) -> tuple[str, ...]:
    return tuple(column for key, column in description.columns.items() if key not in _MEDIA)


def _draft(
    read_row: RowReader, description: Description, table: RowTable, index: int, row: Row
) -> CaseDraft:
    columns = description.columns
    if missing := missing_columns(row, _required(description)):
        raise DataError("; ".join(missing))
    prompt = _text(row, columns["id"])
    images = _images(table, index, row, columns.get("image"), columns.get("video"))
    if any(row.get(columns[key]) for key in _ANSWER_MEDIA if key in columns):
        images += (ImageRef(prompt, "", bytes, "an answer shows images, which is not supported"),)
    case_id, cluster, question, answers, votes = read_row(row, columns)
    return CaseDraft(
        case_id,
        images,
        _without_marks(question, len(images)) if images else question,
        answers,
        {description.dimension: votes},
        [f"prompt:{cluster}"],
        _groups(description, row, prompt),
    )


def _without_marks(question: str, images: int) -> str:
    """Returns a question without the marks of its images, which stand before it.

    Of several images that are marked by number it says which of them is meant.
    """
    numbers = count(1)
    named = _NUMBERED_MARK.sub(lambda _: f"(image {next(numbers)})" if images > 1 else "", question)
    return named.replace(_IMAGE_MARK, "").strip()


def read_pair(row: Row, columns: Mapping[str, str]) -> _RowContent:
    """Reads two answers and which of them is better.

    The columns hold `chosen` and `rejected`; or `first`, `second` and in `better` the name of one
    of these columns, or in `letter` A or B; or a list of `answers` and in `ranking` the rank of
    each, 0 the best. Of `chosen` and `rejected` a hash of the row decides which is stored first.
    """
    case_id, question = _text(row, columns["id"]), _text(row, columns["question"])
    if "chosen" in columns:
        chosen, rejected = (_text(row, columns[key], empty=True) for key in ("chosen", "rejected"))
        better = _hash("\0".join((case_id, chosen, rejected)))[0] % 2
        answers: tuple[str, ...] = (rejected, chosen) if better else (chosen, rejected)
    elif "first" in columns:
        names = columns["first"], columns["second"]
        answers = tuple(_text(row, name, empty=True) for name in names)
        column, accepted = columns.get("letter"), LETTERS
        if column is None:
            column, accepted = columns["better"], names
        stated = str(row[column]).upper() if accepted is LETTERS else row[column]
        if stated not in accepted:
            raise DataError(f"{column} is {row[column]!r}; accepted: {', '.join(accepted)}")
        better = accepted.index(stated)
    else:
        answers = tuple(_texts(row, columns["answers"], exactly=2))
        ranks = row[columns["ranking"]]
        if ranks not in ([0, 1], [1, 0]):
            raise DataError(f"{columns['ranking']} is {ranks!r}; accepted: [0, 1] or [1, 0]")
        better = ranks.index(0)
    return _RowContent(case_id, case_id, question, answers, [Vote(_RELEASED, better)])


def read_best_of(row: Row, columns: Mapping[str, str]) -> _RowContent:
    """Reads any number of correct answers, all equally good, and of wrong ones.

    They are stored in the order of a hash, so that their positions tell nothing. A prompt `tied:N`
    and the one with a single correct answer, `ref:N`, are one cluster.
    """
    case_id = _text(row, columns["id"])
    correct, incorrect = _texts(row, columns["chosen"]), _texts(row, columns["rejected"])
    stated = (*correct, *incorrect)
    order = sorted(range(len(stated)), key=lambda position: _hash(f"{case_id}\0{position}"))
    best = tuple(index for index, position in enumerate(order) if position < len(correct))
    worse = tuple(index for index, position in enumerate(order) if position >= len(correct))
    vote = Vote(_RELEASED, best[0] if len(stated) == 2 else (best, worse))
    return _RowContent(
        case_id,
        re.sub("^tied:", "ref:", case_id),
        _text(row, columns["question"]),
        tuple(stated[position] for position in order),
        [vote],
    )


def read_criterion(row: Row, columns: Mapping[str, str]) -> _RowContent:
    """Reads a conversation, a response, a criterion, and what each rater said of it.

    The first answer always says that the criterion is met, so that the rules `always_a` and
    `majority` are the rates of the raters.
    """
    prompt, response_id, category = (
        _text(row, columns[key]) for key in ("id", "response_id", "category")
    )
    turns = row[columns["conversation"]]
    if not fits(turns, list[Row]) or not all({"role", "content"} <= set(turn) for turn in turns):
        raise DataError(f"{columns['conversation']} must be a list of messages (role, content)")
    response = {"role": "assistant", "content": _text(row, columns["response"], empty=True)}
    messages = (f"{turn['role']}: {turn['content']}" for turn in (*turns, response))
    question = _QUESTION.format(
        conversation="\n\n".join(messages), criterion=_text(row, columns["criterion"])
    )
    labels, raters = row[columns["labels"]], row[columns["raters"]]
    if not fits(labels, list[bool]) or not fits(raters, list) or len(labels) != len(raters):
        raise DataError(
            f"{columns['labels']} must be a list of true or false, {columns['raters']} the name of "
            "each one's rater"
        )
    votes = [Vote(str(rater), 0 if met else 1) for rater, met in zip(raters, labels, strict=True)]
    case_id = ":".join((prompt, response_id, category))
    return _RowContent(case_id, prompt, question, (MET, NOT_MET), votes)


def _groups(description: Description, row: Row, prompt: str) -> dict[str, str]:
    """Returns the groups: prompt, category where a column states one, and subset.

    The subset is the first whose pattern is found in `category/id/path`, else the category.
    """
    columns = description.columns
    category = _text(row, columns["category"]) if "category" in columns else ""
    paths = (row.get(columns[key]) for key in _MEDIA if key in columns)
    path = next((value for value in paths if isinstance(value, str)), "")
    searched = f"{category}/{prompt}/{path}"
    matching = (name for name, regex in description.subsets.items() if re.search(regex, searched))
    groups = {"category": category, "subset": next(matching, None) or category, "prompt": prompt}
    return {group: name for group, name in groups.items() if name}


def _images(
    table: RowTable, index: int, row: Row, image: str | None, video: str | None
) -> tuple[ImageRef, ...]:
    """Returns what a row shows: its image, or the frames of its video.

    A path is looked up below the folder of images that the user names and below the table's, each
    time as it is written, then below `images/` there, then by its last part below `images/`.

    Args:
        table: whose row it is.
        index: of the row.
        row: may hold a path or a stored image.
        image: its column of an image; None: there is none.
        video: its column of a folder of frames; None: there is none.

    Raises:
        DataError: the columns hold nothing, or a path at which there is nothing.
    """
    if image is not None and row.get(image) is not None:
        if not isinstance(row[image], str):
            return row_images(table, index, row, image)
        return table.images(_located(table, row[image])[1])
    if video is not None and row.get(video) is not None:
        return _frames(table, row[video])
    if image is None and video is None:
        return ()
    raise DataError(f"{' and '.join(filter(None, (image, video)))} hold nothing")


def _frames(table: RowTable, written: Any) -> tuple[ImageRef, ...]:
    if not isinstance(written, str):
        raise DataError(f"a video is {type(written).__name__}; accepted is a folder of its frames")
    root, folder = _located(table, written)
    names = sorted(path.name for path in (root / folder).glob("*") if path.is_file())
    if not names:
        raise DataError(f"there is no frame in folder {written!r}")
    frame_numbers = dict.fromkeys(np.linspace(0, len(names) - 1, FRAMES, dtype=int).tolist())
    frames = (table.images(f"{folder}/{names[number]}") for number in frame_numbers)
    return tuple(chain.from_iterable(frames))


def _located(table: RowTable, written: str) -> tuple[Path, str]:
    """Returns the folder of images in which a written path is found, and the path there."""
    roots = [root for root in (table.image_options.root, table.folder) if root is not None]
    candidates = (written, f"images/{written}", f"images/{PurePosixPath(written).name}")
    for root, candidate in product(roots, candidates):
        # `Path.exists` raises for what is too long to be a path, such as an image in base64.
        if written and os.path.exists(root / candidate):
            return root, candidate
    shortened = written[:_MESSAGE_CHARACTERS]
    raise DataError(f"there is no {shortened!r} in {table.folder}, nor in its folder images")


def _text(row: Row, column: str, *, empty: bool = False) -> str:
    """Returns the text in a column; `empty` accepts one without words."""
    value = row.get(column)
    if not isinstance(value, str) or not (value.strip() or empty):
        raise DataError(f"{column} is {value!r}; give text")
    return value


def _texts(row: Row, column: str, exactly: int | None = None) -> Sequence[str]:
    texts: list[str] = row[column]
    if not fits(texts, list[str]) or len(texts) != (exactly or max(1, len(texts))):
        raise DataError(f"{column} must be a list of {exactly or 'one or more'} texts")
    return texts


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
