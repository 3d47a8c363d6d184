"""What a judge's readouts report of one call: lines of `responses.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from medrm.schema import Order, Response, State
from medrm.scorer.batches import Array


def state_of(reason: str | None) -> State:
    """Returns the state of a call that was not made for `reason`; None: it was made."""
    if reason is None:
        return "ok"
    return cast(State, reason) if reason in ("bad_image", "too_long") else "error"


def probability_responses(
    case_id: str,
    order: Order,
    readout: str,
    dimensions: Sequence[str],
    digest: str,
    chances: Array | None,
    reason: str | None,
) -> tuple[Response, ...]:
    """Returns one response for each dimension, of the chances [D, 3] or the reason why not."""
    state = state_of(reason)
    return tuple(
        Response(
            case_id=case_id,
            order=order,
            dimension=name,
            vote=0,
            readout=readout,
            prompt_digest=digest,
            text=None,
            probabilities=None if chances is None else {name: _triple(chances[column])},
            finish_reason=None,
            state=state,
            reason=reason,
        )
        for column, name in enumerate(dimensions)
    )


def _triple(values: Array) -> tuple[float, float, float]:
    first, second, mass = values.tolist()
    return first, second, mass
