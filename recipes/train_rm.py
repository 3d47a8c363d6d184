"""Evaluates the base, trains, evaluates the adapter, compares, reports.

accelerate launch recipes/train_rm.py [--config FILE.yaml] [--key value ...]

Without --config the quickstart recipe runs: offline, on a CPU, in a few minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from medrm.cli import guarded
from medrm.config.command_line import help_text
from medrm.config.parse import parse_run
from medrm.files import asset
from medrm.objectives import argument_classes
from medrm.pipeline.stop_signals import end_process

QUICKSTART = "recipes/quickstart/bradley_terry.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one recipe and returns the exit status: 0 done, 2 the user's input is wrong."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: run(arguments))


def run(arguments: Sequence[str]) -> None:
    """Parses first: a mistyped key fails before the libraries of a run are loaded."""
    if (text := help_text(arguments, argument_classes())) is not None:
        sys.stdout.write(f"{__doc__}\n{text}")
        return
    parsed = parse_run(arguments, argument_classes(), asset(QUICKSTART))
    from accelerate import PartialState

    from medrm.pipeline.run_seeds import train_seeds

    train_seeds(parsed)
    # Threads of the process group that outlive the interpreter's end would abort the process.
    PartialState().destroy_process_group()


if __name__ == "__main__":
    end_process(main())
