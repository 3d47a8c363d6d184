"""`medrm evaluate` on several devices: accelerate launch evaluation/evaluate.py --model M ..."""

from __future__ import annotations

from collections.abc import Sequence

from medrm.cli import add_evaluate
from medrm.config.command_line import CommandParser
from medrm.guard import guarded
from medrm.pipeline.stop_signals import end_process


def main(argv: Sequence[str] | None = None) -> int:
    """Scores a model on a benchmark, the cases dealt to the processes."""
    parser = CommandParser(description=__doc__)
    add_evaluate(parser)
    arguments = parser.parse_args(argv)
    return guarded(lambda: arguments.action(arguments))


if __name__ == "__main__":
    end_process(main())
