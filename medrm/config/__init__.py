"""What one run is told: groups of options and the strict parser."""

from medrm.config.command_line import CommandParser, add_options
from medrm.config.data import DataOptions
from medrm.config.field import option, positive_weights
from medrm.config.help import help_text
from medrm.config.options import (
    CONTROLS,
    AdapterOptions,
    EvaluationOptions,
    JudgeOptions,
    ModelOptions,
    Run,
)
from medrm.config.parse import parse_run

__all__ = [
    "CONTROLS",
    "AdapterOptions",
    "CommandParser",
    "DataOptions",
    "EvaluationOptions",
    "JudgeOptions",
    "ModelOptions",
    "Run",
    "add_options",
    "help_text",
    "option",
    "parse_run",
    "positive_weights",
]
