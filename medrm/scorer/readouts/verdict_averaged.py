"""What a judge says of a pair once both orders count together; from its responses, no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medrm.schema import ORDERS, Case, Response
from medrm.scorer.readouts.answer_scorer import rewards_by_dimension
from medrm.scorer.runner import Array


class AveragedOrders:
    """Averages P(an answer is better) over the two orders, so that position cancels out.

    Balanced position calibration (https://arxiv.org/abs/2305.17926, section 4.2) with probabilities
    in place of written scores. Each order counts alike: of the two answers' probabilities in it
    only the ratio is used.

    Attributes:
        readout: "verdict_averaged".
        dimensions: what the judge was asked about.
        settings: what besides the weights could change a probability.
        lookahead: None; what is said of a case depends on the case alone.

    Args:
        responses: of a judge that was read by probabilities, on pairs, in both orders.
        dimensions: what it was asked about.
        settings: its own.
    """

    readout = "verdict_averaged"
    lookahead = None

    def __init__(
        self,
        responses: Iterable[Response],
        dimensions: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.settings = settings
        self._by_case: dict[str, list[Response]] = {}
        for response in responses:
            self._by_case.setdefault(response.case_id, []).append(response)

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the mean probabilities of both answers as rewards, or why there are none."""
        for case in cases:
            responses = self._by_case[case.case_id]
            failed = next((call for call in responses if call.state != "ok"), None)
            averaged = Response(case.case_id, "forward", None, 0, self.readout)
            if failed is not None:
                yield replace(averaged, state=failed.state, reason=failed.reason or failed.state)
                continue
            means = self._means(responses)
            if np.isfinite(means).all():
                yield replace(averaged, rewards=rewards_by_dimension(self.dimensions, means))
            else:
                yield replace(averaged, state="error", reason="no_mass")

    def _means(self, responses: Sequence[Response]) -> Array:
        """Returns [2 answers, D]; not a number where an order names neither answer."""
        probabilities = np.full((len(ORDERS), 2, len(self.dimensions)), np.nan, dtype=np.float32)
        for response in responses:
            for name, (first, second, _) in (response.probabilities or {}).items():
                cell = ORDERS.index(response.order), slice(None), self.dimensions.index(name)
                total = first + second
                probabilities[cell] = (first / total, second / total) if total else np.nan
        means: Array = probabilities.mean(axis=0)
        return means
