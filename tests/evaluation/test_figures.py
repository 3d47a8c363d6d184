"""The figures: harmless, the same bytes each time, in the page's colours, absent without data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from made_runs import DIMENSIONS, ORGANS, made_run
from PIL import Image

from medrm.evaluation.figures import inline_figures, write_plots
from medrm.evaluation.figures.canvas import BACK, ROLES, drawing
from medrm.evaluation.figures.comparison_plots import forest
from medrm.evaluation.report import RunFiles

ALL = {
    *("forest", "dumbbell_organ", "heatmap", "transitions", "position", "reliability"),
    *("risk_coverage", "length", "halo", "funnel", "training"),
}
NASTY = ("<script>alert(1)</script>", "$x$ & $\\frac{1}{0}$", "a\x00b\ud800\u202ec\n" + "long" * 50)


def texts(figure: str) -> list[str]:
    return [
        "".join(one.itertext())
        for one in ElementTree.fromstring(figure).iter()
        if "text" in one.tag
    ]


@pytest.fixture(scope="module")
def whole() -> dict[str, str]:
    """The figures of a judge's run of six dimensions and 13 organs."""
    return inline_figures(made_run())


def test_a_judges_run_has_every_figure(whole: dict[str, str]) -> None:
    assert set(whole) == ALL


def test_a_reward_models_run_has_those_that_it_has_data_for() -> None:
    run = made_run(DIMENSIONS[:2], ORGANS[:2], scalar=True)
    assert set(inline_figures(run)) == ALL - {"position", "funnel"}


def test_a_single_evaluation_shows_what_it_is_like() -> None:
    figures = inline_figures(RunFiles(None, made_run().after))
    found = set(figures)
    assert not [name for name, text in figures.items() if "after" in text or "before" in text]
    assert found == {"position", "reliability", "risk_coverage", "length", "halo", "funnel"}


def test_nothing_is_drawn_without_data() -> None:
    run = made_run(("overall",), (), scalar=True)
    assert run.comparison is not None
    for measures in (run.before or {}, run.after):
        measures["protocols"]["robust"]["dimensions"] = {"overall": None}
        measures["length"] = {}
    entry = dict.fromkeys(run.comparison["dimensions"]["overall"]) | {"n": 0}
    comparison = run.comparison | {"dimensions": {"overall": entry}}
    assert inline_figures(replace(run, comparison=comparison, metrics=[])) == {}


@pytest.mark.parametrize(("count", "organs"), [(1, 0), (1, 1), (2, 13), (6, 1)])
def test_figures_of_any_size(count: int, organs: int) -> None:
    found = inline_figures(made_run(DIMENSIONS[:count], ORGANS[:organs]))
    assert ("heatmap" in found) is (organs > 0)
    assert ("halo" in found) is (count > 1)
    for figure in found.values():
        assert ElementTree.fromstring(figure).attrib["viewBox"].startswith("0 0 324 ")


def test_names_from_data_are_text() -> None:
    found = inline_figures(made_run(NASTY, NASTY))
    for name, figure in found.items():
        assert "<script" not in figure, name
        assert not re.search("[\x00\u202e\ud800]", figure), name
    shown = texts(found["forest"])
    assert "<script>alert(1)</scr\u2026" in shown
    assert "$x$ & $\\frac{1}{0}$" in shown
    assert max(map(len, shown)) < 90


def test_a_page_gives_the_colours(whole: dict[str, str]) -> None:
    for name, figure in whole.items():
        assert not re.search("#[0-9a-f]{6}", figure), name
        assert set(re.findall(r"var\(--(\w+)\)", figure)) <= set(ROLES.values())
        assert "font-family" not in figure
        assert "<style" not in figure, "it would hold for all of the page"
        assert "metadata" not in figure


def test_ids_are_those_of_one_figure(whole: dict[str, str]) -> None:
    seen: set[str] = set()
    for figure in whole.values():
        own = set(re.findall(r' id="([^"]+)"', figure))
        assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", figure)) == own
        assert not own & seen
        seen |= own


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = made_run(DIMENSIONS[:1], ORGANS[:2])
    early, late = (write_plots(run, tmp_path / name) for name in ("early", "late"))
    assert [path.read_bytes() for path in early] == [path.read_bytes() for path in late]


def test_files_are_light_and_whole(tmp_path: Path) -> None:
    paths = write_plots(made_run(DIMENSIONS[:2], ORGANS[:2]), tmp_path / "plots")
    assert {path.name for path in paths} == {
        f"{name}.{kind}" for name in ALL for kind in ("svg", "png")
    }
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 900
                assert image.convert("RGB").getpixel((2, image.height - 2)) == (255, 255, 255)
        else:
            text = path.read_text(encoding="utf-8")
            assert "var(" not in text
            assert BACK in text
            assert "dc:date" not in text


def test_a_style_of_the_user_changes_nothing_and_is_kept() -> None:
    run = made_run(DIMENSIONS[:1], ORGANS[:1])
    expected = inline_figures(run)
    with matplotlib.rc_context({"font.size": 33, "text.color": "red"}):
        assert inline_figures(run) == expected
        assert matplotlib.rcParams["font.size"] == 33


def markers(comparison: Mapping[str, Any]) -> list[Any]:
    """The fill of each marker of the forest plot, from top to bottom."""
    with drawing():
        figure = forest(replace(made_run(), comparison=dict(comparison)))
        assert figure is not None
        return [
            line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() in "oD"
        ]


def test_a_marker_is_hollow_where_nothing_is_shown() -> None:
    comparison = made_run(DIMENSIONS[:2]).comparison
    assert comparison is not None
    first, second, mean = markers(comparison)
    assert first != BACK
    assert second == BACK
    assert mean != BACK
    comparison["mean"]["ci95"] = [-0.1, 0.4]
    assert markers(comparison)[-1] == BACK


def test_an_interval_is_cut_at_what_there_could_be() -> None:
    """As in the tables and sentences, so that a wide one leaves the others their room."""
    run = made_run(DIMENSIONS[:2])
    assert run.comparison is not None
    run.comparison["mean"]["ci95"] = [-3.0, 2.0]
    figure = inline_figures(run)["forest"]
    assert any("(-100.0, +100.0)" in text for text in texts(figure))


def test_values_are_printed(whole: dict[str, str]) -> None:
    assert "+20.0 (+10.0, +30.0)" in texts(whole["forest"])
    assert "60.0 \u2192 70.0" in texts(whole["dumbbell_organ"])
    assert "+22 / \u22124" in texts(whole["transitions"])
    assert "80.0 | 80.0" in texts(whole["position"])
    assert "70 \u2192 50 | 55" in texts(whole["length"])
    assert "160" in texts(whole["funnel"])
