"""Which part of a reply is thinking: the marks of the model families, opening and closing.

    <think> ... </think> the reply          only what follows the last closing mark is read
    <think> ... (the text ends)             nothing is read: the model had not yet decided
    {"overall": "A"} <think> but ...        nor here: it was about to say something else

Whatever mark comes last decides, whether or not it is of the same spelling as the one before it. A
mark inside a string of a complete JSON object is none: there the judge speaks of the mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_THINKING = (
    r"(?:think(?:ing)?|thoughts?|reasoning|analysis|reflection|scratch_?pad|inner_monologue)"
)
_FAMILY = r"(?:\w{1,20}[:_|])?"  # <seed:think>, <longcat_think>, <ifm|think>
_MODE = r"(?:_fast(?:er)?)?"  # K2 Horizon

_OPENING = (
    rf"<\|?{_FAMILY}{_THINKING}{_MODE}\|?>",  # <think>, <thought>, <reasoning>, <|think|>
    rf"<\|(?:begin_of|start)_{_THINKING}\|>",  # OpenThinker, Command A
    rf"<\|plamo:begin_{_THINKING}:plamo\|>",
    rf"<\|{_THINKING}:start\|>",  # Solar Open
    r"<\|open\|>think<\|sep\|>",  # Kimi K3
    r"<\|inner_prefix\|>",  # Apertus
    r"\[think(?:ing)?\]",  # Magistral
    r"\[unused16\]",  # Pangu
    r"◁think▷",  # Kimi-VL
    r"<unused94>(?:thought)?",  # MedGemma
    r"\A\s*+thought\n",  # the same with the mark left out in decoding
    r"<\|?channel\|?>\s*+(?:analysis|commentary|thought)",  # gpt-oss, Gemma 4
    r"\A\s*+(?-i:analysis(?=[A-Z]))",  # gpt-oss with the marks left out
    r"to=self<\|message\|>",  # Muse Glimmer
    r"\A\s*+Here(?:'s| is) my thought process:",  # Granite 3.2
    r"\A\s*+Here are my reasoning steps:",  # Apriel
)
_CLOSING = (
    rf"<\|?/{_FAMILY}{_THINKING}{_MODE}\|?>",
    rf"<\|end_(?:of_)?{_THINKING}\|>",
    rf"<\|plamo:end_{_THINKING}:plamo\|>",
    rf"<\|{_THINKING}:end\|>",
    r"<\|close\|>think<\|sep\|>",
    r"<\|inner_suffix\|>",
    r"\[/think(?:ing)?\]",
    r"\[unused17\]",
    r"◁/think▷",
    r"<unused95>",
    r"<\|channel\|>\s*+final(?:\s*+<\|message\|>)?",
    r"<channel\|>",
    r"assistantfinal",
    r"to=user<\|message\|>",
    r"Here(?:'s| is) my response:",
    r"\[BEGIN FINAL RESPONSE\]",
)

UNENDED = "the thinking never ends"
"""Why a reply is unread that opens its thinking and does not close it."""

_OPENS = re.compile("|".join(_OPENING), re.IGNORECASE)
_MARK = re.compile(f"(?P<closing>{'|'.join(_CLOSING)})|{_OPENS.pattern}", re.IGNORECASE)
_PART_OF_MARK = re.compile(r"<\|?channel\|?>|<\|(?:open|close|sep|message)\|>")
_LONGEST_MARK = 60
"""Characters; more than any mark has."""


def after_thinking(
    text: str, quoting_spans: Callable[[str], Sequence[tuple[int, int]]] = lambda _: ()
) -> str | None:
    """Returns what follows the thinking; None where the thinking never ends.

    Args:
        text: the reply.
        quoting_spans: finds the spans (start, end), in order, in which a mark is only spoken of.
    """
    marks = list(_MARK.finditer(text))
    spans = list(quoting_spans(text)) if marks else []
    while marks:
        last = marks.pop()
        while spans and spans[-1][0] > last.start():
            spans.pop()
        if not spans or last.start() >= spans[-1][1]:
            return text[last.end() :] if last["closing"] else None
    return text


def is_thinking_token(token: str) -> bool:
    """Returns whether a special token is a mark of thinking, or begins one.

    Decoding a reply drops special tokens; without these, thinking reads like the reply.
    """
    return bool(_MARK.fullmatch(token) or _PART_OF_MARK.fullmatch(token))


def opened_by(prompt: str) -> str:
    """Returns the mark with which a prompt ends, so that the reply begins as thinking; else "".

    Some templates open the thinking themselves. The model's text then holds the closing mark alone,
    and where it is cut off, none.
    """
    end = prompt[-_LONGEST_MARK:]
    return next((mark[0] for mark in _OPENS.finditer(end) if not end[mark.end() :].strip()), "")
