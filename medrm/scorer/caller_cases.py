"""Cases as callers of the Python interface describe them: images of any kind, question, answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from medrm.data.images import bytes_image
from medrm.errors import DataError
from medrm.schema import Case, ImageRef

ImageInput = str | Path | bytes | Image.Image | ImageRef
"""A file, its bytes, a decoded image, or a reference as cases hold it."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def caller_case(
    function: str, images: Sequence[ImageInput], question: str, answers: Sequence[str]
) -> Case:
    """Returns the case that a caller of `function` describes; its id is the function's name.

    Raises:
        DataError: one answer or image in place of a list, or no image file under a path.
    """
    if isinstance(answers, str):
        raise DataError(f"{function}() was given one text as its answers; give a list of texts.")
    if isinstance(images, str | bytes):
        raise DataError(f"{function}() was given one image in place of a list; give [image].")
    references = tuple(image_ref(image, index) for index, image in enumerate(images))
    return Case(function, references, question, tuple(answers))


def image_ref(image: ImageInput, index: int) -> ImageRef:
    """Returns a reference to an image; messages call it by its file name or its index.

    Raises:
        DataError: there is no such file.
    """
    if isinstance(image, ImageRef):
        return image
    if isinstance(image, bytes):
        return bytes_image(f"number {index}", partial(bytes, image))
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        storable = image if image.mode in _PNG_MODES else image.convert("RGB")
        storable.save(buffer, "PNG")
        return bytes_image(f"number {index}", partial(bytes, buffer.getvalue()))
    path = Path(image)
    if not path.is_file():
        raise DataError(
            f"There is no image file {str(path)!r}. Give a path, bytes, or a PIL image."
        )
    return bytes_image(path.name, path.read_bytes)
