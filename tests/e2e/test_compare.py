"""A comparison as a person makes one: choose methods, start, watch, cancel one, look closer, pass the link on."""

import json
import re
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from snows.config import RunConfig
from snows.runs.store import RunStore
from tests.app import helpers

pytestmark = pytest.mark.e2e

MINUTES = 60_000  # milliseconds


def choose(page: Page, label: str, values: list[str]) -> None:
    """Replace what a field of several choices holds."""
    field = page.get_by_test_id("stMultiSelect").filter(has=page.get_by_text(label, exact=True))
    field.get_by_role("button", name="Clear all").click()
    for value in values:
        field.get_by_role("combobox").click()
        page.get_by_role("option", name=value, exact=True).click()
    page.keyboard.press("Escape")


def set_number(page: Page, label: str, value: int) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(str(value))
    field.press("Enter")


def cell(page: Page, text: str) -> Locator:
    """A cell of the first table: it is painted, with a table in the markup for whoever cannot see it."""
    return page.get_by_test_id("stDataFrame").first.locator("td").filter(has_text=re.compile(f"^{re.escape(text)}$"))


def test_a_new_visitor_finds_the_answer_and_hands_it_on(address: str, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{address}/compare")
    answer = page.get_by_text(re.compile(r"Of \d+ methods")).filter(has_text="at all 6 patterns")
    expect(answer).to_be_in_viewport()
    front = page.locator(".live-chart").first
    expect(front.locator(".main-svg").first).to_be_in_viewport()
    page.get_by_test_id("stDataFrame").first.scroll_into_view_if_needed()  # it is painted when it comes into sight
    expect(cell(page, "SNOWS, refined mask, K = 5")).to_have_count(1)

    # One pattern, and what time buys; the link says so.
    for pattern in ("2:4", "70%", "1:4", "90%", "1:16"):
        page.get_by_test_id("stButtonGroup").get_by_role("button", name=pattern, exact=True).click()
    expect(page.get_by_text("has the best accuracy, 92.94 %")).to_be_visible()
    expect(page.locator(".live-chart")).to_have_count(2)
    page.wait_for_url("**pattern=1%3A8**")

    with page.expect_download() as download:
        page.get_by_role("button", name="Hand on").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert len(list((tmp_path / "recorded-comparison" / "figures").iterdir())) == 16  # as SVG and as PDF
    opens_by_itself(browser, tmp_path / "recorded-comparison" / "index.html", figures=8)


def opens_by_itself(browser: Browser, place: Path, figures: int) -> None:
    """A page that was handed on, in a profile that has seen nothing else, without a network."""
    context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900})
    page, troubles, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(place.as_uri())
    drawn = page.locator("figure .main-svg").locator("visible=true")
    expect(page.locator("figure > div.js-plotly-plot")).to_have_count(figures)
    expect(drawn.first).to_be_visible()
    point = page.locator("figure").first.locator(".scatterlayer .point").last
    point.hover(force=True)
    expect(page.locator("figure").first.locator(".hovertext")).to_have_count(1)
    with page.expect_download() as download:
        page.locator("figure").first.get_by_role("button", name="Save as SVG").click()
    assert "<svg" in Path(download.value.path()).read_text()[:200]
    assert {url for url in asked if not url.startswith(("file:", "data:", "blob:"))} == set()
    assert troubles == []
    context.close()


def test_compare_two_methods(address: str, browser: Browser, store: RunStore) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1800})
    page.goto(f"{address}/compare")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Which method")
    page.get_by_role("link", name="A network of your own").click()
    expect(page.get_by_role("button", name="Start 7 runs")).to_be_visible()
    choose(page, "Methods", ["Magnitude only", "Wanda", "SNOWS, dense targets"])
    choose(page, "Calibration images", ["32"])
    set_number(page, "Evaluation images", 200)
    page.get_by_role("button", name="Start 3 runs").click()
    page.wait_for_url("**/compare?batch=*")
    (comparison,) = store.comparisons()
    snows = comparison.runs()[2]

    # One of them is cancelled, the others go on.
    expect(page.get_by_text("of 3 runs finished")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).last.click()
    expect(page.get_by_role("button", name="Resume the rest")).to_be_visible()
    expect(cell(page, "Wanda")).to_have_count(1)
    assert [run.state() for run in comparison.runs()] == ["finished", "finished", "cancelled"]
    assert not snows.metrics()

    # A closer look, and its link in another tab.
    page.get_by_role("radio", name="Answers").click()
    expect(page.get_by_text("of the first 200 evaluation images")).to_be_visible()
    page.wait_for_url("**view=answers*")
    other = browser.new_page(viewport={"width": 400, "height": 2400})
    other.goto(page.url)
    expect(other.get_by_text("of the first 200 evaluation images")).to_be_visible()
    assert other.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_comparison_that_was_killed_goes_on_with_one_click(address: str, browser: Browser, store: RunStore) -> None:
    # As a killed server leaves them: one at its end, the others not begun.
    runs = [helpers.write_run(store, "finished"), store.create(RunConfig()), store.create(RunConfig())]
    place = store.root / ".batches" / f"{runs[0].id}-batch.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps([run.id for run in runs]))
    page = browser.new_page(viewport={"width": 1440, "height": 1800})
    page.goto(f"{address}/compare")
    expect(page.get_by_text("1 of 3 runs finished")).to_be_visible()
    page.get_by_role("button", name="Resume the rest").click()
    expect(page.get_by_role("button", name="Cancel all")).to_be_visible()
    page.get_by_role("button", name="Cancel all").click()
    expect(page.get_by_role("button", name=re.compile("^Cancel"))).to_have_count(0, timeout=6 * MINUTES)
    expect(page.get_by_role("button", name="Resume the rest")).to_be_visible()
    assert [run.state() for run in runs] == ["finished", "cancelled", "cancelled"]


def test_runs_at_work_are_drawn_over_each_other_and_a_zoom_stays(address: str, browser: Browser, store: RunStore) -> None:
    with ExitStack() as hold:
        configs = [RunConfig.model_validate({"prune": {"k_steps": k}}) for k in (1, 3)]
        runs = [helpers.write_run(store, "running", hold, config) for config in configs]
        page = browser.new_page(viewport={"width": 1440, "height": 1400})
        page.goto(f"{address}/compare?runs={','.join(run.id for run in runs)}")
        chart = page.locator(".live-chart")
        expect(chart.locator(".legendtext")).to_have_text([f"SNOWS, refined mask, K = {k}" for k in (1, 3)])
        whole = chart.evaluate("place => place._fullLayout.yaxis.range")
        area = chart.locator(".nsewdrag").first.bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + 0.1 * area["width"], area["y"] + 5)
        page.mouse.down()
        page.mouse.move(area["x"] + 0.9 * area["width"], area["y"] + 0.5 * area["height"], steps=5)
        page.mouse.up()
        page.wait_for_function(
            "whole => document.querySelector('.live-chart')._fullLayout.yaxis.range[0] < whole[0] - 5", arg=whole
        )
        near = chart.evaluate("place => place._fullLayout.yaxis.range")
        runs[0].append(*helpers.site_events(7), *helpers.site_events(8))
        page.wait_for_function("document.querySelector('.live-chart').data[0].x.length == 9")
        assert chart.evaluate("place => place._fullLayout.yaxis.range") == near
