"""From the runs of several seeds to their comparison: checked, written, printed; no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.errors import refuse
from medrm.evaluation.report import read_json
from medrm.evaluation.seeds.seed_comparison import SeedComparison, compare_seeds
from medrm.evaluation.seeds.seed_report import write_seed_page
from medrm.evaluation.seeds.seed_runs import finished_seeds
from medrm.evaluation.seeds.seed_tables import print_seeds
from medrm.files import RUN_FILE
from medrm.pipeline.run_identity import LENGTH, recipe_differences

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
    check_one_recipe(finished_seeds(output, only)[0].values())
    comparison = compare_seeds(output, primary, allowed_differences, output_dir, only)
    print_seeds(comparison)
    logger.info("report over seeds: %s", write_seed_page(output_dir or output))
    return comparison


def check_one_recipe(folders: Iterable[Path], planned: Mapping[str, Any] | None = None) -> None:
    """Refuses runs of several recipes, as far as their `run.json` tell.

    Args:
        folders: of runs; one without `run.json` is not looked at.
        planned: what `run.json` would be of a run to come; None: there is none.

    Raises:
        ConfigError: names what differs besides the seed.
    """
    paths = (folder / RUN_FILE for folder in folders)
    manifests = [(path.parent.name, read_json(path)) for path in paths if path.is_file()]
    runs: list[tuple[str, Mapping[str, Any]]] = [
        (name, manifest) for name, manifest in manifests if {"config", "data"} <= manifest.keys()
    ]
    if planned is not None:  # a run that goes on says itself whether it may be longer
        runs.insert(0, ("this command", planned))
    problems = [
        f"{runs[0][0]} and {name} differ in {difference}"
        for name, manifest in runs[1:]
        for difference in recipe_differences(runs[0][1], manifest, LENGTH if planned else ())
    ]
    refuse(problems, "The seeds are not of one recipe: they differ in more than the seed.")
