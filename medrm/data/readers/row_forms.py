"""Rows of comparisons in the columns of several tools: which tool wrote them, what they hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from medrm.data.readers.critic_pairs import critic_texts, critic_votes
from medrm.data.readers.graded_pairs import GRADED_COLUMNS, graded_votes
from medrm.data.readers.rated_answers import (
    RATED_COLUMNS,
    answers_column,
    rated_answers,
    rated_votes,
)
from medrm.data.row_tables import Row
from medrm.data.sources import Vote
from medrm.errors import DataError
from medrm.files import fits

TRL_COLUMNS = {name: name for name in ("prompt", "chosen", "rejected", "images", "case_id")}
"""What is read of a row, and the column that TRL keeps it in."""

IMAGE_COLUMNS = ("images", "image", "image_path", "img_path")
"""The first that is there holds the images of a row."""

CONTENT_COLUMNS = {
    *TRL_COLUMNS,
    *IMAGE_COLUMNS,
    *("instruction", "input", "history", "system", "question", "messages", "conversations"),
    *("rejected_response", "rejected_messages", "rejected_images"),
    *RATED_COLUMNS,
    *(*GRADED_COLUMNS, "context", "individual_preference"),
}
"""What the columns of all forms hold; a `dataset.yaml` that names another names a group."""

_PAIR = {"chosen", "rejected"}
_REJECTED = {"rejected_response", "rejected_messages", "rejected_images"}
_UNREAD = ("video", "videos", "audio", "audios", "tools", "objects")
"""Columns that change what is asked."""


class Exchange(NamedTuple):
    """What a row says: a prompt and answers to it, as texts or as messages.

    Attributes:
        prompt: None: the answers begin with it.
        answers: what messages call each answer, to the answer.
    """

    prompt: Any
    answers: Mapping[str, Any]


class RowForm(NamedTuple):
    """How the rows of a tool are read; both functions raise `DataError` of what they cannot read.

    Attributes:
        exchange: returns the prompt and the answers of a row.
        votes: returns the votes on the answers by dimension; what is rated as a whole is rated on
            the dimension that is handed over. None: the first of two answers is the better one.
        by_columns: whether such rows are known by their columns, or only by a description.
    """

    exchange: Callable[[Row], Exchange]
    votes: Callable[[Row, str], Mapping[str, list[Vote]]] | None = None
    by_columns: bool = True


def form_of(columns: Collection[str]) -> str | None:
    """Returns the name of the form in `ROW_FORMS` that the columns of rows are of.

    A preference that is stated comes before ratings, and TRL's `prompt` before columns that other
    tools keep the prompt in.
    """
    names = set(columns)
    if "votes" in names:
        return None
    if "messages" in names and names & _REJECTED:
        return "ms_swift"
    if names >= _PAIR and "prompt" not in names:
        if names & {"conversations", "messages"}:
            return "llamafactory_sharegpt"
        if "instruction" in names:
            return "llamafactory_alpaca"
    if names & _PAIR:
        return "preferences"
    if names >= GRADED_COLUMNS:
        return "graded_pairs"
    return "rated_answers" if answers_column(names) is not None else None


def unread_columns(row: Mapping[str, Any]) -> list[str]:
    """Returns what of a row is not read, where it asks with more than texts and images."""
    return [
        f"its column {column!r} is not read; accepted are texts and images"
        for column in _UNREAD
        if row.get(column) not in (None, "", [], {}, "[]")
    ]


def trl_exchange(row: Row, columns: Mapping[str, str] = TRL_COLUMNS) -> Exchange:
    """Reads `prompt`, `chosen` and `rejected`, or columns of other names that hold these."""
    answers = {columns[name]: row.get(columns[name]) for name in ("chosen", "rejected")}
    return Exchange(row.get(columns["prompt"]), answers)


def _alpaca_exchange(row: Row) -> Exchange:
    return trl_exchange(row)._replace(prompt=_instructed(row))


def _sharegpt_exchange(row: Row) -> Exchange:
    """Reads turns that `chosen` and `rejected` go on, in the column of either name."""
    column = "conversations" if "conversations" in row else "messages"
    return trl_exchange(row)._replace(prompt=_with_system(row, _messages(row, column)))


def _ms_swift_exchange(row: Row) -> Exchange:
    """Reads `messages`, whose last turn is the better answer, and the worse one beside it."""
    if row.get("rejected_images") and row["rejected_images"] != row.get("images"):
        raise DataError("its rejected answer is about other images than the chosen one")
    text, column = row.get("rejected_response"), "rejected_messages"
    messages = _with_system(row, _messages(row, "messages"))
    if row.get(column) and text:
        raise DataError(f"'rejected_response' and {column!r} exclude each other; keep one")
    if row.get(column):
        rejected = _with_system(row, _messages(row, column))
        if min(len(messages), len(rejected)) > 1:
            return Exchange(None, {"messages": messages, column: rejected})
    elif len(messages) > 1:
        return Exchange(messages[:-1], {"messages": messages[-1:], "rejected_response": text})
    raise DataError("its messages are no question and an answer to it")


def _rated_exchange(row: Row) -> Exchange:
    """Reads the prompt, in whichever column it is, and the list of answers."""
    names = ("prompt", "question", "messages", "conversations")
    prompt = next((row[name] for name in names if row.get(name)), None) or _instructed(row)
    return Exchange(prompt, rated_answers(row))


def _graded_exchange(row: Row) -> Exchange:
    """Reads the turns of `context`, which both responses go on."""
    return Exchange(
        row.get("context"), {name: row.get(name) for name in ("response1", "response2")}
    )


def _critic_exchange(row: Row) -> Exchange:
    question, first, second = critic_texts(row)
    return Exchange(question, {"the first response": first, "the second": second})


def _instructed(row: Row) -> list[Row]:
    """Returns the turns of `instruction`, `input`, `history` and `system`, as Alpaca has them."""
    history = row.get("history") or []
    if not fits(history, list[list[str]]) or any(len(pair) != 2 for pair in history):
        raise DataError("'history' must be a list of pairs of texts, a question and its answer")
    parts = [row[name] for name in ("instruction", "input") if row.get(name)]
    if not parts or not fits(parts, list[str]):
        raise DataError("'instruction' and 'input' must be texts, of which one is not empty")
    texts = [text for pair in history for text in pair] + ["\n".join(parts)]
    roles = ("user", "assistant")
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return _with_system(row, turns)


def _messages(row: Row, column: str) -> list[Row]:
    messages = row.get(column)
    if not isinstance(messages, list) or not messages or not fits(messages, list[Row]):
        raise DataError(f"{column!r} must be a list of messages")
    return messages


def _with_system(row: Row, turns: Sequence[Row]) -> list[Row]:
    """Returns turns below the system prompt of their row, unless they have one themselves."""
    first = turns[0].get("role", turns[0].get("from"))
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*([] if first == "system" else system), *turns]


ROW_FORMS = {
    "preferences": RowForm(trl_exchange),
    "ms_swift": RowForm(_ms_swift_exchange),
    "llamafactory_sharegpt": RowForm(_sharegpt_exchange),
    "llamafactory_alpaca": RowForm(_alpaca_exchange),
    "rated_answers": RowForm(_rated_exchange, rated_votes),
    "graded_pairs": RowForm(_graded_exchange, graded_votes),
    # Any conversation has its columns.
    "critic_pairs": RowForm(_critic_exchange, critic_votes, by_columns=False),
}
"""Name to form."""
