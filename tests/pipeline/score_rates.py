"""How many cases a second `rm.score` one by one, `rm.score_cases` and `medrm score` compute.

    python tests/pipeline/score_rates.py ADAPTER [CASES]

Phantom pairs; processor time without that of loading, each measured three times by turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

from medrm.cli import main as medrm_command
from medrm.data.phantom.phantom_set import write_phantom
from medrm.data.readers.unlabelled import input_files, read_rows
from medrm.pipeline import score
from medrm.scorer.open import load


def seconds(action: Callable[[], object]) -> float:
    """Returns the processor time of an action, all threads together."""
    start = time.process_time()
    action()
    return time.process_time() - start


def main(adapter: str, cases: int) -> None:
    """Measures and prints the rates."""
    model = load(adapter)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(folder / "phantom", cases=cases, seed=99)
        source = folder / "phantom" / "pair_gt_all" / "parquet"
        rows = [row.row for row in read_rows(input_files(str(source))) if row.row is not None]
        command = ["score", "--model", adapter, "--input", str(source), "--overwrite_output"]

        def one_by_one() -> None:
            for row in rows:
                answers = [row["answer1_text"], row["answer2_text"]]
                model.score([row["image"]], row["question"], answers)

        def together() -> None:
            list(model.score_cases(rows))

        def by_command() -> None:
            with patch.object(score, "open_scorer", lambda *unused, **options: model):
                assert medrm_command([*command, "--output", str(folder / "scores.jsonl")]) == 0

        ways = {"rm.score": one_by_one, "rm.score_cases": together, "medrm score": by_command}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3):
            for way, action in ways.items():
                rates[way].append(cases / seconds(action))
    alone = rates["rm.score"]
    for way, measured in rates.items():
        ratios = [rate / one for rate, one in zip(measured, alone, strict=True)]
        sys.stdout.write(
            f"{way}: {median(measured):.1f} cases/s, {median(ratios):.2f} times rm.score "
            f"({min(ratios):.2f} to {max(ratios):.2f})\n"
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
