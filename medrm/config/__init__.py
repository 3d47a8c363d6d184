"""What one run is told: groups of options and the strict parser."""

from medrm.config.options import (
    CONTROLS,
    AdapterOptions,
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    Run,
)
from medrm.config.parse import parse_run

__all__ = [
    "CONTROLS",
    "AdapterOptions",
    "DataOptions",
    "EvaluationOptions",
    "ModelOptions",
    "Run",
    "parse_run",
]
