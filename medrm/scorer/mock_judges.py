"""Judges with known answers, which check what stands behind a judge: `mock:<name>`.

They write text that is parsed like any other. Each is a rule that names the stored answer it
prefers on a dimension; `oracle-malformed-10` and `refuse` write what no parser reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from medrm.chat import PROMPTS
from medrm.errors import ConfigError, nearest
from medrm.schema import Case, Order, PairLabel
from medrm.scorer.engines.base import Completion, Request, Sampling

PREFIX = "mock:"
REFUSAL = "I'm sorry, I can't help with that."
MALFORMED = '{"accuracy": '
"""A verdict that was cut off: neither parser reads anything."""

Stored = Literal[0, 1]
Rule = Callable[[Case, Order, str], Stored]
"""The stored answer that is preferred, by case, presented order and dimension."""


def _oracle(case: Case, order: Order, dimension: str) -> Stored:
    """The majority label; without one, or with a tie, the first stored answer.

    Not "tie": the released parser drops a whole reply that says so.
    """
    label = case.labels.get(dimension)
    return 1 if isinstance(label, PairLabel) and label.choice == 1 else 0


_RULES: dict[str, Rule] = {
    "always-a": lambda case, order, dimension: 0,
    "first-slot": lambda case, order, dimension: 0 if order == "forward" else 1,
    # Of answers of one length the first.
    "longer": lambda case, order, dimension: (
        1 if len(case.answers[1]) > len(case.answers[0]) else 0
    ),
    # One coin for each case and order, the same on every dimension.
    "random": lambda case, order, dimension: 1 if _hash(f"{case.case_id}\0{order}") % 2 else 0,
    "oracle": _oracle,
    "oracle-malformed-10": _oracle,
    "refuse": lambda case, order, dimension: 0,
}
MOCKS = tuple(_RULES)


class MockEngine:
    """Writes the verdict that a rule gives.

    Attributes:
        name: "mock"; the rule is to a mock what the weights are to a model.
        lookahead: None, each case is judged by itself.
        settings: nothing; the rule decides.

    Args:
        name: one of `MOCKS`.

    Raises:
        ConfigError: the name is unknown.
    """

    def __init__(self, name: str) -> None:
        if name not in _RULES:
            raise ConfigError(
                f"mock judge {name!r} is unknown; accepted: "
                f"{', '.join(PREFIX + mock for mock in MOCKS)}.{nearest(name, MOCKS)}"
            )
        self.name = "mock"
        self.lookahead: int | None = None
        self.settings: Mapping[str, Any] = {}
        self._mock = name

    def plain(self, text: str) -> str:
        """Returns the text as it is: a rule reads no commands."""
        return text

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields the rule's verdict on each request; the images are not looked at."""
        for request in requests:
            yield Completion(self._text(request), "stop", "ok", prompt_digest=request.digest)

    def _text(self, request: Request) -> str:
        case = request.case
        if self._mock == "refuse":
            return REFUSAL
        if self._mock == "oracle-malformed-10" and _hash(case.case_id) % 10 == 0:
            return MALFORMED
        letter_of_stored = "AB" if request.order == "forward" else "BA"
        rule = _RULES[self._mock]
        letters = {
            name: letter_of_stored[rule(case, request.order, name)] for name in request.dimensions
        }
        return PROMPTS["json"].verdict(letters).text


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
