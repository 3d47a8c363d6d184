"""What rewards reach on labelled cases: loss, accuracy and margin, by dimension and by set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medrm.data.batched import batched
from medrm.data.store.joint_index import SET_GROUP
from medrm.objectives.targets import Targets, tally
from medrm.schema import Case

_LABELS_AT_ONCE = 4096
"""Cases whose labels are in memory at once."""


def rates_of(counts: Tensor, dimensions: Sequence[str]) -> dict[str, float]:
    """Returns accuracy and margin of (3, D) tallies; a dimension without labels has none.

    Args:
        counts: correct, margin and labels, as `tally` sums them.
        dimensions: their D names.
    """
    correct, margin, labels = counts.cpu()
    present = labels > 0
    rates = {}
    for name, sums in (("accuracy", correct), ("margin", margin)):
        if present.any():
            rates[name] = float((sums[present] / labels[present]).mean())
        for index in present.nonzero().flatten().tolist():
            rates[f"{name}_{dimensions[index]}"] = float(sums[index] / labels[index])
    return rates


def measured(
    targets: Targets,
    cases: Sequence[Case],
    rewards_of: Callable[[int], NDArray[np.float32]],
    tie_logits: Tensor | None,
) -> dict[str, float]:
    """Returns loss, accuracy and margin, for each dimension and their mean.

    Of a mixture the means are also told for each of its sets, as `accuracy_set_NAME`.

    Args:
        targets: how labels become targets.
        cases: that were scored.
        rewards_of: gives the rewards of a case by its index, (answers or more, D).
        tie_logits: of the model, where it has some.
    """
    # Rows: the three tallies, losses, weights.
    sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(5, len(targets.dimensions)))
    for chunk in batched(range(len(cases)), _LABELS_AT_ONCE):
        of_sets: defaultdict[str, dict[int, Case]] = defaultdict(dict)
        for index in chunk:
            case = cases[index]
            of_sets[case.groups.get(SET_GROUP, "")][index] = case
        for name, of_set in of_sets.items():
            rewards = [rewards_of(index)[: len(case.answers)] for index, case in of_set.items()]
            rows = torch.from_numpy(np.concatenate(rewards))
            for group in targets.groups([*of_set.values()], [1.0] * len(of_set)):
                losses = group.weights * targets.losses(group, rows, tie_logits)
                sums[name][:3] += tally(group, rows)
                sums[name][3] += losses.sum(0)
                sums[name][4] += group.weights.sum(0)
    whole = torch.stack([*sums.values()]).sum(0)
    metrics = {"loss": float(whole[3].sum() / whole[4].sum())}
    metrics |= rates_of(whole[:3], targets.dimensions)
    for name, loss, weight in zip(targets.dimensions, *whole[3:], strict=True):
        if weight > 0:
            metrics[f"loss_{name}"] = float(loss / weight)
    for name, sums_of_set in sums.items() if len(sums) > 1 else ():
        metrics[f"loss_set_{name}"] = float(sums_of_set[3].sum() / sums_of_set[4].sum())
        rates = rates_of(sums_of_set[:3], targets.dimensions)
        means = (rate for rate in ("accuracy", "margin") if rate in rates)
        metrics |= {f"{rate}_set_{name}": rates[rate] for rate in means}
    return metrics
