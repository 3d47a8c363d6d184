"""What a scorer says, by presentations of a case, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from medrm.schema import Case, Order, Response


class Presentation(NamedTuple):
    """All responses to one order of a case."""

    case: Case
    order: Order
    responses: tuple[Response, ...]

    @property
    def scores(self) -> Any:
        """The rewards, [K, D]; None where there are none."""
        rewards = self.responses[0].rewards
        return None if rewards is None else np.array(list(rewards.values()), dtype=np.float32).T

    @property
    def reason(self) -> str | None:
        """Why the first call says nothing."""
        return self.responses[0].reason


def by_order(scorer: Any, cases: Iterable[Case]) -> list[Presentation]:
    """Returns the responses to the cases, by case and order as they come."""
    cases = list(cases)
    by_id = {case.case_id: case for case in cases}
    grouped = groupby(scorer.respond(cases), lambda response: (response.case_id, response.order))
    return [
        Presentation(by_id[case_id], order, tuple(responses))
        for (case_id, order), responses in grouped
    ]
