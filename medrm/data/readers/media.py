"""Images and frames of videos that rows of a released benchmark name by their paths."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medrm.data.images import file_image
from medrm.data.row_tables import Row, RowTable, row_images
from medrm.errors import DataError
from medrm.schema import ImageRef

_SHOWN = 200
"""Characters of a path that a message repeats."""

FRAMES = 32
"""Of a video, evenly spaced, as in the released evaluation of MM-RLHF-RewardBench."""


def media_of(
    table: RowTable, index: int, row: Row, image: str | None, video: str | None
) -> tuple[ImageRef, ...]:
    """Returns what a row shows: its image, or the frames of its video.

    A path is looked up below the table's folder, then below `images/` there, then by its last part
    below `images/`.

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
        return (file_image(_located(table, row[image]), table.folder, boundary=table.boundary),)
    if video is not None and row.get(video) is not None:
        return _frames(table, row[video])
    if image is None and video is None:
        return ()
    raise DataError(f"{' and '.join(filter(None, (image, video)))} hold nothing")


def _frames(table: RowTable, written: Any) -> tuple[ImageRef, ...]:
    if not isinstance(written, str):
        raise DataError(f"a video is {type(written).__name__}; accepted is a folder of its frames")
    place = _located(table, written)
    names = sorted(path.name for path in (table.folder / place).glob("*") if path.is_file())
    if not names:
        raise DataError(f"there is no frame in folder {written!r}")
    chosen = dict.fromkeys(np.linspace(0, len(names) - 1, FRAMES, dtype=int).tolist())
    return tuple(
        file_image(f"{place}/{names[number]}", table.folder, boundary=table.boundary)
        for number in chosen
    )


def _located(table: RowTable, written: str) -> str:
    candidates = (written, f"images/{written}", f"images/{PurePosixPath(written).name}")
    for candidate in candidates:
        # `Path.exists` raises for what is too long to be a path, such as an image in base64.
        if written and os.path.exists(table.folder / candidate):
            return candidate
    raise DataError(f"there is no {written[:_SHOWN]!r} in {table.folder}, nor in its folder images")
