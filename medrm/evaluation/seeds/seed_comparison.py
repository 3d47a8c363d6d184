"""The before/after comparison of one recipe over its seeds and its cases: `seeds.json`.

It answers what a single comparison cannot: whether another training of the recipe would gain as
well. Every seed is measured on the same cases, each paired with the base on them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from medrm.evaluation.compare import comparison_of, gated, primary_of, verdict_of
from medrm.evaluation.comparison import gate, pairing
from medrm.evaluation.comparison.pairing import Entry, Pairing
from medrm.evaluation.comparison.sentences import failed_checks, headline_sentence, rule_sentence
from medrm.evaluation.report import write_json
from medrm.evaluation.seeds.seed_runs import SeedRun, read_seed_runs
from medrm.folder_lock import refuse_owned
from medrm.statistics.crossed import crossed_mean
from medrm.statistics.intervals import Floats
from medrm.statistics.significance import holm

SEEDS_FILE = "seeds.json"

SeedComparison = dict[str, Any]

_UNKNOWN: Entry = {
    **dict.fromkeys(("before", "after", "delta", "ci95", "ci95_cases", "p")),
    **dict.fromkeys(("before_spread", "after_spread", "delta_spread", "variance")),
    **{"n": 0, "clusters": 0},
}
"""The entry where no case was judged by all."""


def compare_seeds(
    output: Path,
    primary: str | None = None,
    allowed_differences: Sequence[str] = (),
    output_dir: Path | None = None,
    only: Collection[int] | None = None,
) -> SeedComparison:
    """Compares before and after over the finished seeds of a folder and writes `seeds.json`.

    Args:
        output: holds the runs in `seed-<n>/`.
        primary: the dimension of the headline; None: that of the runs.
        allowed_differences: besides those that the runs declared.
        output_dir: where to write; None: `output`.
        only: the seeds to take; None: all.

    Raises:
        DataError: fewer than two seeds are finished, or they do not belong together.
        ConfigError: as in `compare`.
    """
    folder = output_dir or output
    refuse_owned(folder, "Give another --output_dir.")
    runs, left_out = read_seed_runs(output, only)
    comparison = {**comparison_over(runs, primary, allowed_differences), "left_out": left_out}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SEEDS_FILE, comparison)
    return comparison


def comparison_over(
    runs: Sequence[SeedRun], primary: str | None = None, allowed_differences: Sequence[str] = ()
) -> SeedComparison:
    """Returns the comparison over runs that differ in their seed alone; arguments as above."""
    first = runs[0]
    config, data = (first.manifest.get(key, {}) for key in ("config", "data"))
    allowed = [*dict.fromkeys([*config.get("allowed_differences", ()), *allowed_differences])]
    dimension = primary_of(primary or data.get("primary_dimension"), first.before, first.after)
    controls = [name for name in first.controls if all(name in run.controls for run in runs)]
    dimensions = _dimensions(runs, "robust")
    judged_by_rules = all(run.before.official and run.after.official for run in runs)
    comparison: SeedComparison = {
        "seeds": [run.seed for run in runs],
        **gated(first.before, first.after, allowed),
        "verdict": "",
        "headline": "",
        "benchmark": first.after.report["benchmark"],
        "before": {key: first.before.report[key] for key in ("model", "readout")},
        "after": {key: first.after.report[key] for key in ("model", "readout")},
        "primary": {**dimensions[dimension], "p": dimensions[dimension]["p_unadjusted"]},
        "best_rule": _best_rule(runs, dimension),
        "dimensions": dimensions,
        "mean": _mean(runs),
        "official": _dimensions(runs, "official") if judged_by_rules else None,
        "controls": {name: _control(runs, name, dimension) for name in controls},
        "guardrails": _guardrails(runs, dimension),
        "by_seed": [_of_seed(run, dimension, controls, allowed) for run in runs],
    }
    comparison["verdict"] = verdict_of(comparison)
    comparison["headline"] = headline_sentence(comparison)
    return comparison


def crossed_entry(
    before: Floats, after: Floats, clusters: Sequence[str], widest: float = 1.0
) -> Entry:
    """Returns the means of scores over seeds and cases, their spread, and their difference.

    `ci95` and `p` are over seeds and cases (`statistics.crossed`), `ci95_cases` is over the cases
    alone, for these very seeds. `variance` has the parts of the difference's variance that more
    seeds and only more cases make smaller.

    Args:
        before: shape (S, n), NaN where a case has no label.
        after: the same, with NaN in the same cells.
        clusters: of the n cases.
        widest: the largest difference that there could be.
    """
    judged = np.flatnonzero(~np.isnan(after - before).any(axis=0)).tolist()
    if not judged:
        return dict(_UNKNOWN)
    chosen, span = [clusters[case] for case in judged], (-widest, widest)
    differences = (after - before)[:, judged]
    found = crossed_mean(differences, chosen, span)
    sides = {"before": before[:, judged].mean(axis=1), "after": after[:, judged].mean(axis=1)}
    return {
        **{name: fmean(means) for name, means in sides.items()},
        "delta": found.mean,
        "ci95": None if found.bounds is None else list(found.bounds),
        "ci95_cases": found.case_bounds,
        "p": found.p,
        **{f"{name}_spread": _spread(means.tolist()) for name, means in sides.items()},
        "delta_spread": _spread(found.by_seed),
        "variance": {"seeds": found.seed_variance, "cases": found.case_variance},
        "n": found.n,
        "clusters": found.clusters,
    }


def _spread(means: Sequence[float]) -> dict[str, Any]:
    """How a mean varies over the seeds, on the same cases."""
    return {
        "sd": stdev(means),
        "min": min(means),
        "max": max(means),
        "by_seed": list(means),
    }


def _entry_of(pairings: Sequence[Pairing], dimension: str) -> Entry:
    """The entry of one dimension; all pairings are of the same cases."""
    columns = [pairing.names.index(dimension) for pairing in pairings]
    sides = [
        np.stack([side[:, column] for side, column in zip(of_seeds, columns, strict=True)])
        for of_seeds in zip(*((pairing.before, pairing.after) for pairing in pairings), strict=True)
    ]
    return {"dimension": dimension, **crossed_entry(sides[0], sides[1], pairings[0].clusters)}


def _dimensions(runs: Sequence[SeedRun], counting: str) -> dict[str, Entry]:
    """The entries of all dimensions that all have judged; `p` is adjusted by Holm over them."""
    pairings = [pairing.pair(run.before, run.after, counting) for run in runs]
    ceiling = runs[0].after.report["ceiling"]
    entries = {
        name: {**_entry_of(pairings, name), "ceiling": ceiling[name]} for name in pairings[0].names
    }
    tested = [name for name, entry in entries.items() if entry["p"] is not None]
    adjusted = holm([entries[name]["p"] for name in tested])
    for entry in entries.values():
        entry["p_unadjusted"] = entry["p"]
    for name, p in zip(tested, adjusted, strict=True):
        entries[name]["p"] = p
    return entries


def _mean(runs: Sequence[SeedRun]) -> Entry:
    """The unweighted mean of the dimensions' accuracies."""
    columns = [pairing.mean_columns(pairing.pair(run.before, run.after)) for run in runs]
    known = [of_seed for of_seed in columns if of_seed is not None]
    if len(known) < len(runs):
        return dict(_UNKNOWN)
    before, after = (np.stack([of_seed[side] for of_seed in known]) for side in (0, 1))
    return crossed_entry(before, after, known[0][2])


def _control(runs: Sequence[SeedRun], name: str, dimension: str) -> Entry:
    """The trained models against a control of theirs."""
    pairings = [pairing.pair(run.controls[name], run.after) for run in runs]
    if any(dimension not in of_seed.names for of_seed in pairings):
        return {"dimension": dimension, **_UNKNOWN}
    return _entry_of(pairings, dimension)


def _best_rule(runs: Sequence[SeedRun], dimension: str) -> Entry | None:
    """The trained models against the best rule without a model, and a sentence."""
    found = [pairing.rule_pairing(run.after, dimension) for run in runs]
    known = [of_seed for of_seed in found if of_seed is not None]
    if len(known) < len(runs):
        return None
    entry = _entry_of([of_rule for _, of_rule in known], dimension)
    difference = {**pairing.rule_words(known[0][0]), **entry}
    return difference | {"sentence": rule_sentence(difference, f"the mean of {len(runs)} seeds")}


def _guardrails(runs: Sequence[SeedRun], dimension: str) -> dict[str, Any]:
    """What must not get worse: as in one comparison, the loss over seeds and cases."""
    pairs = [(run.before, run.after) for run in runs]
    return gate.checks_over(pairs, dimension, crossed_mean)


def _of_seed(
    run: SeedRun, dimension: str, controls: Sequence[str], allowed: Sequence[str]
) -> dict[str, Any]:
    """What the run of one seed says by itself."""
    against = {name: run.controls[name] for name in controls}
    alone = comparison_of(run.before, run.after, dimension, against, allowed)
    return {
        "seed": run.seed,
        "folder": run.folder.name,
        "weights": run.after.report["weights"],
        "verdict": alone["verdict"],
        "failed": failed_checks(alone),
        "notes": alone["notes"],
        **{key: alone["primary"][key] for key in ("before", "after", "delta", "ci95", "p")},
    }
