"""One module for each way of reading a model; `medrm.readouts` registers them."""

from __future__ import annotations

import importlib
from typing import Any

from medrm.readouts import READOUTS


def implementation_of(readout: str) -> Any:
    """Returns the class that implements a registered readout; its module is imported here.

    Args:
        readout: one of the names in `medrm.readouts.READOUTS`.
    """
    module, _, name = READOUTS[readout].implementation.partition(":")
    return getattr(importlib.import_module(module, __name__), name)
