"""Prodigy's JSON lines -> one row for each task that was accepted.

A task shows a question (`text`, `html` or `image`) with `options`, of which `accept` names those
that were chosen: they are the answers, or say which answer is better. In the form of its recipe
`compare` the answers are `accept` and `reject`, and `answer` says which of them is better.
"""

from __future__ import annotations

from collections.abc import Iterator

from medrm.data.row_tables import LocatedRow, Row
from medrm.errors import shortened
from medrm.exchange.imported import Opened, unread
from medrm.exchange.importers.tool_rows import RANK, Tally, answer_columns, newest, single
from medrm.exchange.project_form import answer_field
from medrm.exchange.sheet_words import answer_side
from medrm.exchange.vote_words import meaning_of

CHOSEN = "accept"
"""The column of what was chosen; with more than two answers the stem of their ranks' columns."""

_DECISIONS = ("accept", "reject", "ignore")
_LEFT_OUT = "_left_out"
"""Says why a decision is no vote; where it is an annotator's last one, no earlier one counts."""

_MARKS = ("_task_hash", "_input_hash", "_view_id")
_PAIR = ("accept", "reject")
_TEXTS = ("text", "html", "label", "image")
_NO_ANSWER = {"tie", "neither", "none"}
_NOT_SHOWN = (
    *("accept", "reject", "answer", "options", "meta", "input", "mapping", "config", "text"),
    *("html", "_is_binary", "_annotator_id", "_session_id", "tokens", "spans"),
)


def is_prodigy(opened: Opened) -> bool:
    """Returns whether a file is an export of Prodigy (`db-out`)."""
    columns = {*opened.columns}
    return "answer" in columns and bool(columns & {*_MARKS})


def task_rows(opened: Opened, tally: Tally) -> Iterator[LocatedRow]:
    """Yields the tasks that were accepted, of several by one annotator on a task the newest."""

    def rows(tally: Tally) -> Iterator[LocatedRow]:
        for place, task in opened.records:
            decision = task.get("answer")
            if decision not in _DECISIONS:
                reason = f"'answer' is none of {', '.join(_DECISIONS)}"
                tally.unread.append(unread(place, reason, task))
                continue
            is_compared = all(isinstance(task.get(key), dict) for key in _PAIR)
            if decision == "ignore" or (decision == "reject" and not is_compared):
                yield place, _shown(task) | {_LEFT_OUT: decision}
                continue
            said = _compared(task) if is_compared else _chosen(task, tally)
            tally.controls |= {name for name in said if name.startswith(CHOSEN)}
            yield place, _shown(task) | said

    for place, row in newest(rows, tally, "_task_hash", "_timestamp"):
        reason = row.get(_LEFT_OUT)
        if reason in _DECISIONS:
            tally.remarks[f"tasks that are answered {reason!r}, left out"] += 1
        elif reason is not None:
            tally.unread.append(unread(place, reason, row))
        else:
            yield place, {name: cell for name, cell in row.items() if name not in _MARKS}


def _shown(task: Row) -> Row:
    """Returns what a task shows and who answered it."""
    meta = task.get("meta")
    shown = {name: cell for name, cell in task.items() if name not in _NOT_SHOWN}
    shown = {**(meta if isinstance(meta, dict) else {}), **shown}
    shown.setdefault("case_id", task.get("_task_hash"))
    source = task["input"] if isinstance(task.get("input"), dict) else task
    shown.setdefault("question", _text(source) or _text(task))
    if "image" in source:
        shown["image"] = source["image"]
    return shown | {"annotator": task.get("_annotator_id") or task.get("_session_id")}


def _compared(task: Row) -> Row:
    """Returns the answers of a task of `compare`, and which one is better."""
    answers = {answer_field(n): _text(task[key]) for n, key in enumerate(_PAIR, start=1)}
    return answers | {CHOSEN: "A" if task["answer"] == "accept" else "B"}


def _chosen(task: Row, tally: Tally) -> Row:
    """Returns what was chosen of a task's options, and the answers where the options are answers.

    Options may be shown in any order, so answers are stored in that of their ids. An option whose
    id is a vote, such as `tie`, is no answer, nor is a third one whose text is.
    """
    options = task.get("options")
    options = [one for one in options if isinstance(one, dict)] if isinstance(options, list) else []
    accepted = task.get("accept")
    chosen = [*map(str, accepted)] if isinstance(accepted, list) else []
    texts = {str(one.get("id")): _text(one) or "" for one in options}
    if answer_columns(task) or any(map(answer_side, task)):
        shown = {name: text for name, text in texts.items() if meaning_of(text)}
        meant = [
            shown.get(name) or (name if meaning_of(name) else texts.get(name, name))
            for name in chosen
        ]
        return {CHOSEN: single(meant)}
    verdicts = {name: meaning_of(name) for name in texts}
    if len(texts) == 3 and not _NO_ANSWER & {*verdicts.values()}:
        for name, text in texts.items():
            if meaning_of(text) in _NO_ANSWER:
                verdicts[name] = meaning_of(text)
                remark = f"options that are taken for the vote {verdicts[name]!r} by their text"
                tally.remarks[f"{remark}, {shortened(text, 150)!r}"] += 1
    answers = sorted(name for name in texts if verdicts[name] not in _NO_ANSWER)
    row: Row = {answer_field(number): texts[name] for number, name in enumerate(answers, start=1)}
    if len(answers) > 2:
        if len(chosen) > 1:
            count = f"{len(chosen)} of {len(answers)}"
            return {_LEFT_OUT: f"it accepts {count} answers; a vote on more than two is the best"}
        ranks = {name: 1 if name in chosen else 2 for name in answers} if chosen else {}
        return row | {f"{CHOSEN}{RANK}_{n}": ranks.get(name) for n, name in enumerate(answers, 1)}
    letters = dict(zip(answers, "AB", strict=False))
    return row | {CHOSEN: single([letters.get(name) or verdicts.get(name) for name in chosen])}


def _text(shown: Row) -> str | None:
    return next((shown[key] for key in _TEXTS if isinstance(shown.get(key), str)), None)
