"""What a judge says of a pair once both orders count together; from its responses, no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medrm.schema import ORDERS, Case, Response
from medrm.scorer.runner import Array, Scored


class AveragedOrders:
    """Averages P(an answer is better) over the two orders, so that position cancels out.

    Balanced position calibration (https://arxiv.org/abs/2305.17926, section 4.2) with probabilities
    in place of written scores. Each order counts alike: of the two answers' probabilities in it
    only the ratio is used.

    Attributes:
        readout: "verdict_averaged".
        dimensions: what the judge was asked about.
        settings: what besides the weights could change a probability.
        window: None; what is said of a case depends on the case alone.

    Args:
        responses: of a judge that was read by probabilities, on pairs, in both orders.
        dimensions: what it was asked about.
        settings: its own.
    """

    readout = "verdict_averaged"
    window = None

    def __init__(
        self,
        responses: Iterable[Response],
        dimensions: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.settings = settings
        self._said: dict[str, list[Response]] = {}
        for response in responses:
            self._said.setdefault(response.case_id, []).append(response)

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields the mean probabilities of both answers, or the reason why there are none."""
        for case in cases:
            responses = self._said[case.case_id]
            failed = next((one for one in responses if one.state != "ok"), None)
            if failed is not None:
                yield Scored(case, "forward", reason=failed.reason or failed.state)
                continue
            scores = self._scores(responses)
            if np.isfinite(scores).all():
                yield Scored(case, "forward", scores)
            else:
                yield Scored(case, "forward", reason="no_mass")

    def _scores(self, responses: Sequence[Response]) -> Array:
        """Returns [2 answers, D]; not a number where an order names neither answer."""
        chances = np.full((len(ORDERS), 2, len(self.dimensions)), np.nan, dtype=np.float32)
        for response in responses:
            for name, (first, second, _) in (response.probabilities or {}).items():
                place = ORDERS.index(response.order), slice(None), self.dimensions.index(name)
                total = first + second
                chances[place] = (first / total, second / total) if total else np.nan
        means: Array = chances.mean(axis=0)
        return means
