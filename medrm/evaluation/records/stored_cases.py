"""What was judged, kept beside its evaluation: `cases.jsonl` and, where asked, small images.

From these files answers are parsed and scored again and shown to a reader, without the benchmark at
hand. The pictures are copies of the benchmark's: a folder that holds them may be shared no more
freely than the images themselves (`--no_images` keeps them out). Imports no torch.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, starmap
from pathlib import Path
from typing import Any

from medrm.data.images import decode
from medrm.errors import DataError
from medrm.evaluation.records.jsonl import read_lines, write_lines
from medrm.files import fits, write_atomically
from medrm.leftovers import remove_partials
from medrm.schema import Case, ImageRef, Label, PairLabel, RankingLabel, Turn

CASES_FILE = "cases.jsonl"
IMAGES_FOLDER = "images"

LONGEST_SIDE = 384
"""Pixels of a kept image's longer side: enough to see what an answer speaks of."""

_QUALITY = 80
_MOST_BYTES = 2**20
"""Of a kept image: what is larger was not made here, and is not read."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_cases(folder: Path, cases: Sequence[Case], images: bool) -> None:
    """Writes `cases.jsonl` and, where `images` says so, a small copy of every image.

    An image that cannot be decoded has no copy and says why. Copies that belong to no case of this
    evaluation are removed.

    Args:
        folder: of the evaluation; made where it does not exist.
        cases: all of the benchmark, in its order.
        images: whether pictures are copied. Where they show patients, so do the copies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = _write_images(folder / IMAGES_FOLDER, cases if images else ())
    write_lines(folder / CASES_FILE, (_record(case, problems) for case in cases))


def read_stored_cases(folder: Path) -> list[Case]:
    """Returns the cases of an evaluation folder, in the order in which they were written.

    Digests are those of the benchmark's images; what `ImageRef.read` gives is the small copy. Where
    there is none, `ImageRef.problem` says so.

    Raises:
        DataError: there is no `cases.jsonl`, or a line is not one of ours.
    """
    return list(read_lines(folder / CASES_FILE, partial(_case, folder / IMAGES_FOLDER), "case"))


def _write_images(folder: Path, cases: Iterable[Case]) -> dict[str, str | None]:
    """Keeps the images of the cases and no others; returns what is wrong with each, by digest."""
    distinct = {ref.digest: ref for case in cases for ref in case.images if ref.digest}
    remove_partials(folder, "*.webp")
    for path in folder.glob("*.webp"):
        if _DIGEST.fullmatch(path.stem) and path.stem not in distinct:
            path.unlink()
    if not distinct:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        return {}
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        problems = pool.map(partial(_write_image, folder), distinct.values())
        return dict(zip(distinct, problems, strict=True))


def _write_image(folder: Path, ref: ImageRef) -> str | None:
    """Writes one small copy, whole or not at all; returns why it cannot be made."""
    path = folder / f"{ref.digest}.webp"
    if path.is_file():
        return None
    try:
        image = decode(ref)
    except DataError as error:
        return str(error)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    write_atomically(path, [buffer.getvalue()], durable=False)
    return None


def _record(case: Case, problems: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "question": case.question,
        **({"context": case.context} if case.context else {}),
        "answers": case.answers,
        "labels": {
            name: {"rankings": label.rankings}
            if isinstance(label, RankingLabel)
            else {
                "shares": label.shares,
                "votes": label.votes,
                **({"neither": label.neither} if label.neither else {}),
                **({"readers": label.readers} if label.readers else {}),
            }
            for name, label in case.labels.items()
        },
        "cluster": case.cluster,
        "groups": dict(case.groups),
        "images": [
            {"name": ref.name, "digest": ref.digest}
            | ({"problem": problem} if (problem := ref.problem or problems.get(ref.digest)) else {})
            for ref in case.images
        ],
    }


def _case(folder: Path, record: dict[str, Any]) -> Case:
    labels = {name: _label(label) for name, label in record.pop("labels").items()}
    images = tuple(_image(folder, **image) for image in record.pop("images"))
    context = tuple(starmap(Turn, record.pop("context", ())))
    answers = tuple(record.pop("answers"))
    case = Case(images=images, labels=labels, answers=answers, context=context, **record)
    groups = chain.from_iterable(case.groups.items())
    turns = (text for turn in context for text in turn[:2])
    texts = (case.case_id, case.question, case.cluster, *case.answers, *groups, *turns)
    if len(case.answers) < 2 or not all(isinstance(text, str) for text in texts):
        raise TypeError("a case has an id, a question, two or more answers, a cluster and groups")
    answer_indices = list(range(len(case.answers)))
    for label in labels.values():
        rankings = label.rankings if isinstance(label, RankingLabel) else ()
        if any(sorted(chain(*ranking)) != answer_indices for ranking in rankings):
            raise ValueError(f"a ranking has each of {len(answer_indices)} answers once")
    return case


def _label(record: dict[str, Any]) -> Label:
    if record.get("rankings"):
        return RankingLabel(tuple(tuple(map(tuple, ranking)) for ranking in record["rankings"]))
    first, tie, second = record["shares"]
    if not isinstance(record["votes"], int):
        raise TypeError(f"votes {record['votes']!r}")
    shares = (float(first), float(tie), float(second))
    neither, readers = float(record.get("neither", 0.0)), record.get("readers")
    if readers is not None and not (fits(readers, list[int]) and len(readers) == 4):
        raise TypeError(f"readers {readers!r}")
    return PairLabel(shares, record["votes"], neither, readers and tuple(readers))


def _image(folder: Path, name: str, digest: str, problem: str | None = None) -> ImageRef:
    path = folder / f"{digest}.webp"
    if problem is None and not (_DIGEST.fullmatch(digest) and path.is_file()):
        problem = "no copy of it is kept with the evaluation"
    elif problem is None and path.stat().st_size > _MOST_BYTES:
        problem = "what is kept of it is no small copy"
    return ImageRef(name, digest, partial(Path.read_bytes, path), problem)
