"""`medrm evaluate` on several devices: accelerate launch evaluation/evaluate.py --model M ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medrm.cli import add_evaluate, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Scores a model on a benchmark, the cases dealt to the processes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_evaluate(parser)
    arguments = parser.parse_args(argv)
    return guarded(lambda: arguments.action(arguments))


if __name__ == "__main__":
    sys.exit(main())
