"""A case as one row of a table.

Whatever is counted or compared over all cases has a column of its own, so that no case need be
decoded for it: numbers of images and answers, hashes of texts, digests, and labels as numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import starmap
from typing import Any

import numpy as np
import pyarrow as pa

from medrm.data.image_references import StoredCell, StoredFile
from medrm.schema import Case, ImageRef, Label, PairLabel, RankingLabel, Turn

DIGEST = pa.binary(64)
"""A SHA-256 in hex; where an image has none, zeros."""

LABEL = np.dtype([("votes", "<i4"), ("tied", "<f8"), ("decided", "?"), ("ranked", "?")])
"""A label as numbers: votes (0: there is none to learn from), the mass of ties among them (of
rankings: tied pairs of answers), whether a majority decides, and whether the votes are rankings."""

_LABEL = {name: pa.from_numpy_dtype(LABEL[name]) for name in LABEL.names or ()}
SCHEMA = pa.schema(
    {
        "case_json": pa.string(),
        "image_count": pa.int32(),
        "answer_count": pa.int32(),
        "question_hash": pa.uint64(),
        "text_hash": pa.uint64(),
        "answer_hashes": pa.list_(pa.uint64()),
        "image_digests": pa.list_(DIGEST),
        "digest": DIGEST,
        "labels": pa.list_(pa.struct({"dimension": pa.string(), **_LABEL})),
    }
)
"""`case_json` is the case, its cluster apart; all else follows from it. `text_hash` is of
question and answers in any order, `digest` that of `case_digest`."""


def plain_text(text: str) -> str:
    """Returns a text in lower case, its white space as single blanks."""
    return " ".join(text.split()).casefold()


def hash_texts(*texts: str) -> int:
    """Returns a 64-bit hash of texts in their order."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "little")


def case_digest(case: Case) -> str:
    """Returns the SHA-256 over id, question, answers, labels and image digests."""
    labels = {
        # Label by label as it was before votes could say that neither answer is acceptable.
        dimension: [label.shares, label.votes, *([label.neither] if label.neither else [])]
        if isinstance(label, PairLabel)
        else label.rankings
        for dimension, label in case.labels.items()
    }
    images = [ref.digest for ref in case.images]
    context = [case.context] if case.context else []
    fields = [case.case_id, case.question, case.answers, labels, images, *context]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def label_numbers(label: Label | None) -> tuple[int, float, bool, bool]:
    """Returns a label as `LABEL`; one of which nothing is learned has no votes."""
    if label is None or (isinstance(label, PairLabel) and label.unacceptable):
        return (0, 0.0, False, False)
    if isinstance(label, RankingLabel):
        ties = (len(tied) for ranking in label.rankings for tied in ranking)
        return (label.votes, sum(size * (size - 1) / 2 for size in ties), True, True)
    return (label.votes, label.shares[1] * label.votes, label.choice is not None, False)


def case_record(case: Case, tables: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """Returns a case as a row of `SCHEMA`.

    Args:
        case: to store.
        tables: the files of each table that holds images, to its number; tables of the case's
            images are added.
    """
    fields = {
        "case_id": case.case_id,
        "question": case.question,
        "context": case.context,
        "answers": case.answers,
        "labels": {dimension: _label_fields(label) for dimension, label in case.labels.items()},
        "groups": dict(case.groups),
        "images": [
            [ref.name, ref.digest, ref.problem, _location(ref, tables)] for ref in case.images
        ],
    }
    question, answers = plain_text(case.asked), list(map(plain_text, case.answers))
    return {
        "case_json": json.dumps(fields),
        "image_count": len(case.images),
        "answer_count": len(case.answers),
        "question_hash": hash_texts(question),
        "text_hash": hash_texts(question, *sorted(answers)),
        "answer_hashes": list(map(hash_texts, answers)),
        "image_digests": [ref.digest.encode().ljust(64, b"\0") for ref in case.images],
        "digest": case_digest(case).encode(),
        "labels": [
            {"dimension": name, **dict(zip(_LABEL, label_numbers(label), strict=True))}
            for name, label in case.labels.items()
        ],
    }


def decode_case(case_json: str, cluster: str, tables: Sequence[Sequence[str]]) -> Case:
    """Returns a case that was stored.

    Args:
        case_json: the column of that name.
        cluster: of the case.
        tables: the files of each table that holds images.
    """
    fields = json.loads(case_json)
    return Case(
        fields["case_id"],
        tuple(_image(image, tables) for image in fields["images"]),
        fields["question"],
        tuple(fields["answers"]),
        {dimension: _label(label) for dimension, label in fields["labels"].items()},
        cluster,
        fields["groups"],
        tuple(starmap(Turn, fields["context"])),
    )


def _label_fields(label: Label) -> Sequence[Any]:
    """Returns the rankings, or votes and shares of a pair."""
    if isinstance(label, RankingLabel):
        return label.rankings
    return (label.votes, *label.shares, label.neither, label.readers)


def _label(fields: Sequence[Any]) -> Label:
    if isinstance(fields[0], list):
        return RankingLabel(tuple(tuple(map(tuple, ranking)) for ranking in fields))
    votes, first, tie, second, neither, readers = fields
    return PairLabel((first, tie, second), votes, neither, readers and tuple(readers))


def _location(ref: ImageRef, tables: dict[tuple[str, ...], int]) -> str | list[Any] | None:
    """Returns where an image is stored: a path, or a table's number and the cell."""
    if isinstance(ref.read, StoredFile):
        return ref.read.path
    if isinstance(ref.read, StoredCell):
        number = tables.setdefault(ref.read.files, len(tables))
        return [number, ref.read.row, ref.read.column, ref.read.position]
    return None


def _image(fields: Sequence[Any], tables: Sequence[Sequence[str]]) -> ImageRef:
    name, digest, problem, location = fields
    read: StoredFile | StoredCell | type[bytes] = bytes
    if isinstance(location, str):
        read = StoredFile(location)
    elif location is not None:
        number, *cell = location
        read = StoredCell(tuple(tables[number]), *cell)
    return ImageRef(name, digest, read, problem)
