"""What a judge's readouts report of one call: lines of `responses.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from medrm.schema import Order, Response, State
from medrm.scorer.runner import Array


def state_of(reason: str | None) -> State:
    """Returns the state of a call that was not made for `reason`; None: it was made."""
    if reason is None:
        return "ok"
    return cast(State, reason) if reason in ("bad_image", "too_long") else "error"


def probability_response(
    case_id: str,
    order: Order,
    readout: str,
    dimension: str | None,
    names: Sequence[str],
    digest: str,
    chances: Array | None,
    reason: str | None,
) -> Response:
    """Returns the response to one call.

    Args:
        case_id: of the case.
        order: in which its answers were shown.
        readout: how the probabilities were read.
        dimension: the one that was asked about, None: all in one reply.
        names: the D dimensions of this call.
        digest: of the prompt.
        chances: [D, 3], for the stored answers; None: the call was not made.
        reason: why it was not made.
    """
    probabilities = None
    if chances is not None:
        probabilities = {name: _triple(chances[row]) for row, name in enumerate(names)}
    return Response(
        case_id=case_id,
        order=order,
        dimension=dimension,
        vote=0,
        readout=readout,
        prompt_digest=digest,
        text=None,
        probabilities=probabilities,
        finish_reason=None,
        state=state_of(reason),
        reason=reason,
    )


def _triple(values: Array) -> tuple[float, float, float]:
    first, second, mass = values.tolist()
    return first, second, mass
