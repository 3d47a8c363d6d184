"""Evaluates the base, trains, evaluates the adapter, compares, reports.

accelerate launch recipes/train_rm.py [--config FILE.yaml] [--key value ...]

Without --config the quickstart recipe runs: offline, on a CPU, in a few minutes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from medrm.config.command_line import help_text
from medrm.config.parse import flag, parse_run
from medrm.files import asset
from medrm.guard import guarded
from medrm.objectives import argument_classes
from medrm.pipeline.launch_settings import LaunchSettings, as_one_cpu_process
from medrm.pipeline.stop_signals import end_process

QUICKSTART = "recipes/quickstart/bradley_terry.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one recipe and returns the exit status.

    0: done; 1: it failed; 2: the user's input is wrong; 143, and 130 after SIGINT: it was stopped.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: run(arguments))


def run(arguments: Sequence[str]) -> None:
    """Parses first: a mistyped key fails before the libraries of a run are loaded."""
    if (text := help_text(arguments, argument_classes())) is not None:
        sys.stdout.write(f"{__doc__}\n{text}")
        return
    if flag(arguments, asset(QUICKSTART), "dry_run"):
        dry_run(arguments)
        return
    parsed = parse_run(arguments, argument_classes(), asset(QUICKSTART))
    from medrm.pipeline.run_seeds import train_seeds

    train_seeds(parsed)


def dry_run(arguments: Sequence[str]) -> None:
    """Prints what the run would do, once, without the devices that it was launched for."""
    launch = LaunchSettings.read(os.environ)
    if launch.rank > 0:
        return
    on_cpu = launch.on_cpu or flag(arguments, asset(QUICKSTART), "use_cpu")
    with as_one_cpu_process() as environment:
        words = [*arguments, "--use_cpu", "true"]
        parsed = parse_run(words, argument_classes(), asset(QUICKSTART))
        from medrm.pipeline.training_preview import preview_run

        preview_run(parsed, environment, on_cpu=on_cpu)


if __name__ == "__main__":
    end_process(main())
