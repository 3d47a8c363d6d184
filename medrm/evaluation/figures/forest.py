"""The forest plot: each dimension's difference with its interval."""

from __future__ import annotations

from matplotlib.figure import Figure

from medrm.evaluation.compare import SIGNIFICANCE
from medrm.evaluation.figures import canvas
from medrm.evaluation.run_files import RunFiles


def forest(run: RunFiles) -> Figure | None:
    """Returns each dimension's difference with its interval; None where nothing was compared.

    A marker is hollow where p, adjusted over the dimensions, is 0.05 or more. The mean over the
    dimensions, a diamond, is hollow where its interval holds 0.
    """
    if run.comparison is None:
        return None
    differences = [
        (name, difference, difference["p"] is not None and difference["p"] < SIGNIFICANCE)
        for name, difference in run.comparison["dimensions"].items()
        if difference["delta"] is not None
    ]
    if not differences:
        return None
    mean = run.comparison["mean"]
    if len(differences) > 1 and mean is not None:
        bounds = mean["ci95"]
        clear = bounds is not None and not bounds[0] <= 0 <= bounds[1]
        differences.append(("mean", mean, clear))
    names = canvas.named([name for name, _, _ in differences])
    figure, axes = canvas.row_chart(
        "Accuracy after minus before, in points", names, 66 + 19 * len(names), bottom=34, right=104
    )
    for row, (name, difference, clear) in enumerate(differences):
        delta, bounds = difference["delta"], difference["ci95"]
        low, high = bounds or (delta, delta)
        axes.plot([100 * low, 100 * high], [row, row], color=canvas.NEW, linewidth=1.6)
        shape = "D" if name == "mean" and difference is mean else "o"
        fill = canvas.NEW if clear else canvas.BACK
        canvas.dot(axes, 100 * delta, row, canvas.NEW, fill, shape=shape)
        interval = f" ({100 * low:+.1f}, {100 * high:+.1f})" if bounds else ""
        canvas.beside(axes, row, f"{100 * delta:+.1f}{interval}")
    axes.axvline(0, color=canvas.SOFT, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1), max(high, 1))
    hollow = "adjusted p \u2265 0.05 (mean: the interval holds 0)"
    canvas.note(figure, f"95 % intervals; hollow: {hollow}")
    return figure
