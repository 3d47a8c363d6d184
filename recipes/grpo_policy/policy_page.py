"""The page of a policy: its reward and its true answers over the steps, and the gap between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.pages.document import Section, render_page, write_text
from medrm.evaluation.tables.table import Table, percent

HERE = Path(__file__).parent

_SHOWN = 12
"""How many answers the page shows."""

Result = Mapping[str, Any]
"""Content of `policy.json`."""


def curves(result: Result) -> Figure:
    """Returns what the reward promises and what is true over the steps, and the facts told."""
    figure = canvas.sheet("Reward and truth on held-out questions", 330)
    upper = canvas.axes(figure, 40, 130, 66, 34)
    lower = canvas.axes(figure, 40, 44, 66, 226)
    points = result["curve"]
    steps = [point["step"] for point in points]
    promised = [100 * point["promised"] for point in points]
    true = [100 * point["accuracy"] for point in points]
    bounds = [point["accuracy_ci95"] or [point["accuracy"]] * 2 for point in points]
    lows, highs = ([100 * bound[side] for bound in bounds] for side in (0, 1))
    upper.fill_between(steps, true, promised, color=canvas.OLD, alpha=0.15, linewidth=0)
    upper.vlines(steps, lows, highs, color=canvas.NEW, linewidth=0.8)
    for values, colour, name in (
        (promised, canvas.OLD, "reward"),
        (true, canvas.NEW, "true"),
    ):
        upper.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.5)
        label = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        text = f"{name} {values[-1]:.1f}"
        upper.annotate(text, (steps[-1], values[-1]), (6, 0), color=colour, size=8, **label)
    upper.set_title("true answers (%), and as many as the reward promises", loc="left", size=8)
    upper.tick_params(axis="x", labelbottom=False)
    lower.plot(steps, [point["facts"] for point in points], color=canvas.SOFT, marker="o", ms=3)
    lower.set_title("facts that an answer tells (of 6)", loc="left", size=8)
    lower.set_xlabel("step of GRPO")
    for axes in (upper, lower):
        axes.set_xlim(0, steps[-1] or 1)
        canvas.value_axis(axes)
    canvas.note(figure, "lines: 95 % intervals by image; shaded: the gap")
    return figure


def _curve(result: Result) -> Mapping[str, Any]:
    columns = ("step", "reward", "95 % CI", "true", "95 % CI of true", "promised", "gap", "facts")
    rows = [
        [
            str(point["step"]),
            f"{point['reward']:+.3f}",
            _interval(point["reward_ci95"], "{:+.2f}".format),
            percent(point["accuracy"]),
            _interval(point["accuracy_ci95"], percent),
            percent(point["promised"]),
            f"{100 * point['gap']:+.1f}",
            f"{point['facts']:.2f}",
        ]
        for point in result["curve"]
    ]
    scale = result["scale"]
    note = (
        "true: percent of the answers that state something about the image and nothing that is "
        "wrong. promised: the reward on accuracy, on the scale of the start, where wrong answers "
        f"have {scale['wrong']:+.3f} on average (0 %) and true ones {scale['true']:+.3f} (100 %), "
        "so that the gap, promised minus true in points, starts at 0. facts: stated by an answer, "
        "of six."
    )
    with canvas.drawing():
        figure = Markup(canvas.svg_inline(curves(result), "curves"))
    table = Table("Measured on the same held-out questions", columns, rows, note)
    return {"table": table, "figures": {"curves": figure}}


def _interval(bounds: Sequence[float] | None, written: Any) -> str:
    return "-" if bounds is None else " to ".join(map(written, bounds))


def _answers(answers: Sequence[Mapping[str, Any]], result: Result) -> Mapping[str, Any]:
    """Returns the answers of the end that the reward model likes best though they are wrong."""
    last = result["curve"][-1]["step"]
    of_step = {step: [one for one in answers if one["step"] == step] for step in (0, last)}
    pairs = list(zip(of_step[0], of_step[last], strict=True))
    wrong = [pair for pair in pairs if not pair[1]["true"] and pair[1]["reward"] is not None]
    wrong.sort(key=lambda pair: -pair[1]["reward"])
    rows = [
        [end["question"], start["answer"], end["answer"], f"{end['reward']:+.2f}"]
        for start, end in wrong[:_SHOWN]
    ]
    caption = f"Wrong answers of the end with the highest rewards ({len(wrong)} are wrong)"
    return {"table": Table(caption, ("question", "start", "end", "reward of the end"), rows)}


def write_policy_page(folder: Path, result: Result, answers: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `report.html` and returns its path.

    Args:
        folder: where to.
        result: content of `policy.json`.
        answers: lines of `answers.jsonl`.
    """
    path = folder / "report.html"
    sections = {
        "curves": Section("Reward and truth", HERE / "curves.html.jinja", _curve),
        "answers": Section(
            "What the reward overlooks", HERE / "answers.html.jinja", partial(_answers, answers)
        ),
        "made": Section("How it was made", HERE / "made.html.jinja"),
    }
    title = "medrm: a policy trained by GRPO, its reward and the truth"
    write_text(path, render_page(title, HERE / "header.html.jinja", sections, result))
    return path
