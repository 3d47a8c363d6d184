"""Rows for other trainers, TRL, ms-swift and LLaMA-Factory: a file for each dimension."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from medrm.data.readers.messages import IMAGE_MARK
from medrm.data.sources import CaseDraft
from medrm.exchange.case_files import cluster_columns, turn_record
from medrm.exchange.exported import Export, safe_names
from medrm.exchange.exporters.preference_pairs import LOST, Pair, preference_pairs
from medrm.schema import Turn

_MARKS = (IMAGE_MARK, "<video>", "<audio>")
"""What ms-swift and LLaMA-Factory take for media wherever it stands."""

_MARKED = "a text holds <image>, <video> or <audio>, which the form takes for media"

_LOST = (
    "Shares of votes are not carried, and the dimension by the name of the file alone: a trainer "
    "that reads one file learns one reward."
)

Row = dict[str, Any]


def write_trl(export: Export) -> None:
    """Writes rows as TRL's trainers of preferences read them: messages, images as parts."""
    as_parts = bool(export.facts.images[1])  # both in one column are two types to `datasets`
    _write(export, partial(trl_row, as_parts=as_parts), {})


def write_ms_swift(export: Export) -> None:
    """Writes rows as ms-swift reads them: `messages`, `rejected_response`, `images`."""
    _write(export, _ms_swift_row, {})


def write_llamafactory(export: Export) -> None:
    """Writes rows as LLaMA-Factory reads rankings, in sharegpt's form, and `dataset_info.json`."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    if export.facts.images[1]:
        columns["images"] = "images"
    form = {"formatting": "sharegpt", "ranking": True, "columns": columns}
    _write(export, _llamafactory_row, form)


def _write(export: Export, row_of: Callable[[Pair], Row | None], form: dict[str, Any]) -> None:
    """Writes the files of all dimensions.

    Args:
        export: what is written.
        row_of: makes the row of a pair; None: a text has media marks.
        form: what LLaMA-Factory's `dataset_info.json` says of each file; empty: there is none.
    """
    listed = {}
    for dimension, name in safe_names(export.dimensions).items():
        export.write(f"{name}.jsonl", _lines(export, dimension, f"{name}.jsonl", row_of))
        listed[name] = {"file_name": f"{name}.jsonl", **form}
    if form:
        export.write("dataset_info.json", [json.dumps(listed, indent=2).encode(), b"\n"])
    export.notes += [LOST, _LOST]


def _lines(
    export: Export, dimension: str, file: str, row_of: Callable[[Pair], Row | None]
) -> Iterator[bytes]:
    for pair in preference_pairs(export, dimension):
        row = row_of(pair)
        if row is None:
            export.leave_out(_MARKED, f"{pair.case_id} ({dimension})")
            continue
        if pair.draft.images or export.facts.images[1]:
            row["images"] = [export.images.stored(ref) for ref in pair.draft.images]
        row = {**row, "case_id": pair.case_id} | {
            name: stated
            for name, stated in (pair.draft.groups | cluster_columns(pair.draft)).items()
            if name not in row  # a group may be called as a column of the form
        }
        export.rows[file] += 1
        yield f"{json.dumps(row, ensure_ascii=False)}\n".encode()


def turns_of(draft: CaseDraft) -> list[Turn]:
    """Returns the conversation of a case, its question last; images that no turn shows first."""
    earlier = sum(turn.images for turn in draft.context)
    return [*draft.context, Turn("user", draft.question, len(draft.images) - earlier)]


def trl_row(pair: Pair, *, as_parts: bool) -> Row:
    """Returns prompt, chosen and rejected as messages.

    Args:
        pair: of answers.
        as_parts: whether contents are lists of parts, as images need it; else they are texts.
    """

    def message(turn: Turn) -> Row:
        if not as_parts:
            return {"role": turn.role, "content": turn.text}
        images = [{"type": "image", "text": None}] * turn.images
        return {"role": turn.role, "content": [*images, {"type": "text", "text": turn.text}]}

    chosen, rejected = (pair.draft.answers[index] for index in (pair.chosen, pair.rejected))
    return {
        "prompt": list(map(message, turns_of(pair.draft))),
        "chosen": [message(Turn("assistant", chosen))],
        "rejected": [message(Turn("assistant", rejected))],
    }


def _ms_swift_row(pair: Pair) -> Row | None:
    if _has_marks(pair):
        return None
    chosen = {"role": "assistant", "content": pair.draft.answers[pair.chosen]}
    return {
        "messages": [*map(turn_record, turns_of(pair.draft)), chosen],
        "rejected_response": pair.draft.answers[pair.rejected],
    }


def _llamafactory_row(pair: Pair) -> Row | None:
    if _has_marks(pair):
        return None
    speakers = {"user": "human", "assistant": "gpt"}
    return {
        "conversations": [
            {"from": speakers.get(turn.role, turn.role), "value": turn_record(turn)["content"]}
            for turn in turns_of(pair.draft)
        ],
        "chosen": {"from": "gpt", "value": pair.draft.answers[pair.chosen]},
        "rejected": {"from": "gpt", "value": pair.draft.answers[pair.rejected]},
    }


def _has_marks(pair: Pair) -> bool:
    texts = [turn.text for turn in turns_of(pair.draft)]
    texts += [pair.draft.answers[index] for index in (pair.chosen, pair.rejected)]
    return any(mark in text for mark in _MARKS for text in texts)
