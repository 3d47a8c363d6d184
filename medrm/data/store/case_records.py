"""The columns of a table of cases, and a case as one row of it.

Whatever is counted or compared over all cases has a column of its own, so that no case need be
decoded for it: numbers of images and answers, hashes of texts, digests, and labels as numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from medrm.data.images import StoredCell, StoredFile
from medrm.schema import Case, ImageRef, Label, PairLabel, RankingLabel

DIGEST = pa.binary(64)
"""A SHA-256 in hex; where an image has none, zeros."""

LABEL = np.dtype([("votes", "<i4"), ("tied", "<f8"), ("decided", "?"), ("ranked", "?")])
"""A label as numbers: votes (0: there is none), the mass of ties among them (of rankings: tied
pairs of answers), whether a majority decides, and whether the votes are rankings."""

_LABEL = {
    "dimension": pa.string(),
    "shares": pa.list_(pa.float64()),
    "rankings": pa.list_(pa.list_(pa.list_(pa.int32()))),
    **{name: pa.from_numpy_dtype(LABEL[name]) for name in LABEL.names or ()},
}
_IMAGE = {
    "name": pa.string(),
    "problem": pa.string(),
    "path": pa.binary(),  # names of files need not be UTF-8
    "table": pa.int32(),
    "row": pa.int64(),
    "column": pa.string(),
    "position": pa.int32(),
}
_CONTENT = {
    "case_id": pa.string(),
    "question": pa.string(),
    "answers": pa.list_(pa.string()),
    "labels": pa.list_(pa.struct(_LABEL)),
    "groups": pa.map_(pa.string(), pa.string()),
    "images": pa.list_(pa.struct(_IMAGE)),
    "image_digests": pa.list_(DIGEST),
}
_DERIVED = {
    "image_count": pa.int32(),
    "answer_count": pa.int32(),
    "question_hash": pa.uint64(),
    "text_hash": pa.uint64(),
    "answer_hashes": pa.list_(pa.uint64()),
    "digest": DIGEST,
}
SCHEMA = pa.schema(_CONTENT | _DERIVED)
"""`table` of an image numbers the tables whose cells are images; `path` is that of a file."""

CONTENT_COLUMNS = list(_CONTENT)
"""What a case is decoded from; the other columns follow from these."""


def plain_text(text: str) -> str:
    """Returns a text in lower case, its white space as single blanks."""
    return " ".join(text.split()).casefold()


def hash_texts(*texts: str) -> int:
    """Returns a 64-bit hash of texts in their order."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "little")


def text_hash(case: Case) -> int:
    """Returns a hash of question and answers, equal for copies of a text-only case."""
    return hash_texts(plain_text(case.question), *sorted(map(plain_text, case.answers)))


def case_digest(case: Case) -> str:
    """Returns the SHA-256 over id, question, answers, labels and image digests."""
    labels = {
        dimension: [label.shares, label.votes] if isinstance(label, PairLabel) else label.rankings
        for dimension, label in case.labels.items()
    }
    images = [ref.digest for ref in case.images]
    content = [case.case_id, case.question, case.answers, labels, images]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def label_numbers(label: Label | None) -> tuple[int, float, bool, bool]:
    """Returns a label as `LABEL`."""
    if label is None:
        return (0, 0.0, False, False)
    if isinstance(label, RankingLabel):
        ties = (len(tied) for ranking in label.rankings for tied in ranking)
        return (label.votes, sum(size * (size - 1) / 2 for size in ties), True, True)
    return (label.votes, label.shares[1] * label.votes, label.choice is not None, False)


def case_record(case: Case, tables: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """Returns a case as a row of `SCHEMA`, its cluster apart.

    Args:
        case: to store.
        tables: files of a table to its number; tables that hold images of the case are added.
    """
    return {
        "case_id": case.case_id,
        "question": case.question,
        "answers": case.answers,
        "labels": [_label_record(name, label) for name, label in case.labels.items()],
        "groups": list(case.groups.items()),
        "images": [_image_record(ref, tables) for ref in case.images],
        "image_digests": [ref.digest.encode().ljust(64, b"\0") for ref in case.images],
        "image_count": len(case.images),
        "answer_count": len(case.answers),
        "question_hash": hash_texts(plain_text(case.question)),
        "text_hash": text_hash(case),
        "answer_hashes": [hash_texts(plain_text(answer)) for answer in case.answers],
        "digest": case_digest(case).encode(),
    }


def case_of(record: Mapping[str, Any], cluster: str, tables: Sequence[Sequence[str]]) -> Case:
    """Returns the case of a row of `CONTENT_COLUMNS`.

    Args:
        record: the row.
        cluster: of the case.
        tables: the files of each table that holds images.
    """
    return Case(
        record["case_id"],
        tuple(
            _image_of(image, digest.rstrip(b"\0").decode(), tables)
            for image, digest in zip(record["images"], record["image_digests"], strict=True)
        ),
        record["question"],
        tuple(record["answers"]),
        {label["dimension"]: _label_of(label) for label in record["labels"]},
        cluster,
        dict(record["groups"]),
    )


def _label_record(dimension: str, label: Label) -> dict[str, Any]:
    numbers = zip(LABEL.names or (), label_numbers(label), strict=True)
    record: dict[str, Any] = {"dimension": dimension, **dict(numbers)}
    if isinstance(label, PairLabel):
        record["shares"] = label.shares
    else:
        record["rankings"] = label.rankings
    return record


def _label_of(record: Mapping[str, Any]) -> Label:
    if record["rankings"] is not None:
        rankings = ((tuple(tied) for tied in ranking) for ranking in record["rankings"])
        return RankingLabel(tuple(map(tuple, rankings)))
    first, tie, second = record["shares"]
    return PairLabel((first, tie, second), record["votes"])


def _image_record(ref: ImageRef, tables: dict[tuple[str, ...], int]) -> dict[str, Any]:
    record: dict[str, Any] = {"name": ref.name, "problem": ref.problem}
    if isinstance(ref.read, StoredFile):
        record["path"] = os.fsencode(ref.read.path)
    elif isinstance(ref.read, StoredCell):
        record["table"] = tables.setdefault(ref.read.files, len(tables))
        record |= {name: getattr(ref.read, name) for name in ("row", "column", "position")}
    return record


def _image_of(record: Mapping[str, Any], digest: str, tables: Sequence[Sequence[str]]) -> ImageRef:
    read: StoredFile | StoredCell | type[bytes] = bytes
    if record["path"] is not None:
        read = StoredFile(os.fsdecode(record["path"]))
    elif record["table"] is not None:
        files = tuple(tables[record["table"]])
        read = StoredCell(files, record["row"], record["column"], record["position"])
    return ImageRef(record["name"], digest, read, record["problem"])
