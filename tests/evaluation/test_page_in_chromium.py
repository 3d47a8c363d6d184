"""The page in a real Chromium: filters, keys, addresses, widths, print; outside the default tests.

Needs the extra `browser` and a Chromium, which is found on the PATH.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mock_scorers import Writer, make_benchmark
from PIL import Image

from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.pages.report_page import write_page
from medrm.schema import DIMENSIONS, Case, ImageRef, PairLabel

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
LETTERS = {"A": (1.0, 0.0, 0.0), "B": (0.0, 0.0, 1.0)}


def picture(number: int) -> ImageRef:
    file = BytesIO()
    Image.new("RGB", (600, 300), (number, 90, 120)).save(file, "PNG")
    content = file.getvalue()
    return ImageRef(f"{number}.png", f"{number:064x}", lambda: content)


def make_case(number: int) -> Case:
    letter = "AB"[number % 2]
    return Case(
        case_id=f"case {number:02d} {HOSTILE}",
        images=(picture(number // 2),),
        question=f"Which? {HOSTILE}",
        answers=(f"=first {number}", "second " * (number + 1)),
        labels={name: PairLabel(LETTERS[letter], 3) for name in DIMENSIONS},
        cluster=f"cluster {number // 2}",
        groups={"organ": HOSTILE if number % 3 == 0 else "brain", "modality": "CT"},
    )


def letter_of(case: Case, order: str) -> str:
    first = case.labels["overall"].choice == 0
    return "A" if first == (order == "forward") else "B"


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Before: always the first shown. After: right, but 5 of 40 unread and 4 of 40 wrong."""
    folder = tmp_path_factory.mktemp("run")
    benchmark = make_benchmark([make_case(number) for number in range(40)], DIMENSIONS)

    def early(case: Case, order: str, *_: object) -> str:
        return json.dumps(dict.fromkeys(DIMENSIONS, "A"))

    def late(case: Case, order: str, *_: object) -> str:
        number = int(case.case_id[5:7])
        if number % 8 == 0:
            return f"No idea. {HOSTILE}"
        said = letter_of(case, order)
        if number % 10 == 1:
            said = "B" if said == "A" else "A"
        return json.dumps(dict.fromkeys(DIMENSIONS, said))

    for name, rule in {"before": early, "after": late}.items():
        where = folder / "evaluation" / name
        evaluate(Writer(rule, DIMENSIONS), benchmark, where, HOSTILE, images=True)
    compare(folder / "evaluation/before", folder / "evaluation/after")
    return write_page(folder)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if path is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The page, opened; any message, error or request of it fails the test."""
    found: list[str] = []
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: found.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:"))
            or found.append(f"request: {request.url}")
        ),
    )
    page.goto(report.as_uri())
    yield page
    title = page.title()
    context.close()
    assert found == []
    assert title.startswith("medrm: ")


def count(page: Any) -> str:
    return str(page.locator(".count").inner_text())


def shown(page: Any) -> str:
    return str(page.locator(".card h3").inner_text())


def control(page: Any, name: str) -> Any:
    return page.locator("#browser").get_by_label(name, exact=True)


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_filters_count_what_the_tables_say(page: Any, report: Path) -> None:
    comparison = json.loads((report.parent / "comparison.json").read_text("utf-8"))
    entry = comparison["dimensions"]["overall"]
    assert count(page) == "1 of 40"
    for name, expected in {
        "fixed": entry["fixed"],
        "broken": entry["broken"],
        "unread": 5,
        "wrong": 9,
    }.items():
        control(page, "show").select_option(name)
        assert count(page).startswith(f"1 of {expected} (40"), name
    control(page, "show").select_option("flip")
    assert count(page) == "no case of 40 matches"
    page.get_by_role("button", name="clear filters").click()
    control(page, "organ").select_option(label=HOSTILE)
    assert count(page).startswith("1 of 14 (40")
    control(page, "search").fill("FIRST 3")
    assert count(page).startswith("1 of 5 (40")  # 3, 30, 33, 36, 39
    control(page, "sort").select_option("gap")
    assert shown(page).startswith("case 39")


def test_hostile_text_stays_text(page: Any) -> None:
    control(page, "show").select_option("unread")
    page.locator(".replies summary").last.click()
    assert HOSTILE in page.locator(".replies pre").last.inner_text()
    assert HOSTILE in shown(page)
    assert page.locator(".question").inner_text() == f"Question Which? {HOSTILE}"
    assert page.locator("#browser img").count() == 1
    assert page.evaluate("document.scripts.length") == 2


def test_keys_move_and_leave_typing_alone(page: Any) -> None:
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert count(page) == "2 of 40"
    assert shown(page).startswith("case 01")
    page.keyboard.press("/")
    page.keyboard.type("jk/")
    assert control(page, "search").input_value() == "jk/"
    assert count(page) == "no case of 40 matches"
    control(page, "search").fill("")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+j")
    assert count(page) == "1 of 40"
    page.get_by_role("button", name="next").focus()
    page.keyboard.press("ArrowRight")
    assert count(page) == "2 of 40"
    assert page.get_by_role("button", name="next").evaluate("e => e === document.activeElement")


def test_an_address_leads_to_a_case(page: Any, report: Path) -> None:
    wanted = make_case(33).case_id
    page.goto(f"{report.as_uri()}#case={quote(wanted)}&show=fixed&dimension=relevance")
    page.reload()
    assert shown(page).startswith("case 33")
    assert control(page, "show").input_value() == "fixed"
    assert control(page, "dimension").input_value() == "relevance"
    page.keyboard.press("k")
    address = page.evaluate("location.href")
    before = shown(page)
    page.goto(address)
    page.reload()
    assert shown(page) == before
    page.goto(f"{report.as_uri()}#case={quote(make_case(8).case_id)}&show=fixed")
    page.reload()
    assert shown(page).startswith("case 08")  # outside of the filter, shown all the same
    assert count(page) == "9 of 40"


def test_links_of_the_tables_filter_the_cases(page: Any) -> None:
    page.locator("#headline a[href^='#show=broken']").first.click()
    assert control(page, "show").input_value() == "broken"
    assert control(page, "dimension").input_value() == "accuracy"
    page.locator("#groups a").first.click()
    assert control(page, "show").input_value() == "all"
    assert control(page, "organ").input_value() != "all"


def test_pictures_are_drawn_and_enlarged(page: Any) -> None:
    image = page.locator("#browser img")
    assert image.evaluate("e => e.complete && e.naturalWidth") == 384
    narrow = image.bounding_box()["width"]
    page.locator(".zoom").click()
    assert image.bounding_box()["width"] > narrow


def test_export_gives_the_cases_that_are_shown(page: Any) -> None:
    control(page, "show").select_option("unread")
    with page.expect_download() as download:
        page.get_by_role("button", name="export these").click()
    text = Path(download.value.path()).read_text("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 5
    assert rows[0]["case_id"] == make_case(0).case_id
    assert rows[0]["answer_1"] == "'=first 0"  # no formula
    assert rows[0]["overall_experts"] == "A"
    assert rows[0]["overall_after_as_stored"] == "unread"
    assert rows[0]["overall_before_reversed"] == "B"


@pytest.mark.parametrize("width", [400, 700, 1000, 1400])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for detail in page.locator("details summary").all():
        detail.evaluate("e => { e.parentNode.open = true }")
    assert fits(page)
    control(page, "show").select_option("unread")
    assert fits(page)


def test_dark_colours_and_contrast(page: Any) -> None:
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    ink = page.evaluate("getComputedStyle(document.querySelector('svg.figure text')).fill")
    assert min(map(int, ink.removeprefix("rgb(").removesuffix(")").split(","))) > 120


def test_it_prints(page: Any, tmp_path: Path) -> None:
    page.emulate_media(media="print")
    assert not page.locator("#browser").is_visible()
    assert page.locator(".verdict").is_visible()
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF")


def test_without_script_all_but_the_browser_is_there(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#headline table").is_visible()
    assert page.locator("noscript").count() == 1
    assert not page.locator("#browser").is_visible()
    context.close()


def test_a_large_set_is_quick(chromium: Any, tmp_path: Path) -> None:
    """1,026 cases, six dimensions, two orders, one side."""
    cases = [replace(make_case(number % 90), case_id=f"case {number}") for number in range(1026)]
    benchmark = make_benchmark(cases, DIMENSIONS)

    def rule(case: Case, order: str, *_: object) -> str:
        return json.dumps(dict.fromkeys(DIMENSIONS, letter_of(case, order)))

    evaluate(Writer(rule, DIMENSIONS), benchmark, tmp_path, "m", images=True)
    path = write_page(tmp_path)
    assert path.stat().st_size < 15_000_000
    page = chromium.new_page()
    page.goto(path.as_uri())
    loaded = page.evaluate(
        "performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart"
    )
    assert loaded < 3_000
    took = page.evaluate("""() => {
      const start = performance.now();
      for (let step = 0; step < 50; step++) document.body.dispatchEvent(
        new KeyboardEvent("keydown", { key: "j", bubbles: true }));
      return (performance.now() - start) / 50;
    }""")
    assert took < 50
    assert count(page) == "51 of 1,026"
    page.close()
