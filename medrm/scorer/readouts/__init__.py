"""One module for each way of reading a model; `medrm.readouts` registers them."""

from __future__ import annotations

from typing import Any

from medrm.readouts import READOUTS
from medrm.scorer import resolve


def implementation_of(readout: str) -> Any:
    """Returns the class that implements a registered readout; its module is imported here.

    Args:
        readout: one of the names in `medrm.readouts.READOUTS`.
    """
    return resolve(READOUTS[readout].implementation, __name__)
