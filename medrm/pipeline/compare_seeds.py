"""From the runs of several seeds to their comparison: checked, written, printed; no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from medrm.evaluation.seeds.seed_comparison import SeedComparison, compare_seeds
from medrm.evaluation.seeds.seed_report import write_seed_page
from medrm.evaluation.seeds.seed_tables import print_seeds

logger = logging.getLogger(__name__)


def conclude_seeds(
    output: Path,
    primary: str | None = None,
    allowed_differences: Sequence[str] = (),
    output_dir: Path | None = None,
    only: Collection[int] | None = None,
) -> SeedComparison:
    """Compares the finished seeds of a folder, prints that, and writes `seeds.json` and the page.

    Args and errors as those of `compare_seeds`.
    """
    comparison = compare_seeds(output, primary, allowed_differences, output_dir, only)
    print_seeds(comparison)
    logger.info("report over seeds: %s", write_seed_page(output_dir or output))
    return comparison
