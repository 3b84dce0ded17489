"""The Runs page as a person walks it: find, tick, name, take along, delete, undo, bring back, open elsewhere, run again."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from safetensors.torch import load_file

from app import state
from snows.config import RunConfig
from snows.runs.store import Labels, RunStore
from tests.app import helpers

pytestmark = pytest.mark.e2e
ROW = 35  # pixels, of Streamlit's table and its head


def cells(page: Page, text: str) -> Locator:
    """Cells of the table: it is painted, with a table in the markup for whoever cannot see it."""
    return page.get_by_test_id("stDataFrame").locator("td").filter(has_text=re.compile(f"^{re.escape(text)}$"))


def tick(page: Page, row: int) -> None:
    """Click the box at the left of a row, counted from 0."""
    table = page.get_by_test_id("stDataFrame")
    expect(table).to_have_count(1)  # the one before has gone
    area = table.bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + 15, area["y"] + (row + 1.5) * ROW)


def download(page: Page, label: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.get_by_role("button", name=label, exact=True).click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_keep_house(address: str, browser: Browser, store: RunStore, tmp_path: Path) -> None:
    run = helpers.write_run(store, "finished", config=RunConfig.model_validate({"prune": {"pattern": "1:16"}}))
    helpers.write_run(store, "failed").save_labels(Labels(name="Wrong turn"))
    page = browser.new_page(viewport={"width": 1440, "height": 1400})
    page.goto(f"{address}/runs")
    expect(cells(page, "Wrong turn")).to_have_count(1)
    expect(cells(page, "Recorded example")).to_have_count(2)

    # Find it, tick it, name it.
    page.get_by_label("Find").fill("1:16")
    page.keyboard.press("Enter")
    expect(cells(page, "Wrong turn")).to_have_count(0)
    tick(page, 0)
    page.wait_for_url(f"**run={run.id}*")
    page.get_by_label("Name", exact=True).fill("The best so far")
    page.keyboard.press("Enter")
    expect(cells(page, "The best so far")).to_have_count(1)
    expect(page.get_by_role("heading", name="The best so far")).to_be_visible()
    page.get_by_text("Mark to compare").click()
    expect(page.get_by_role("switch", name="Mark to compare")).to_be_checked()

    # The link shows another tab the same.
    other = browser.new_page(viewport={"width": 1440, "height": 1400})
    other.goto(page.url)
    expect(other.get_by_role("heading", name="The best so far")).to_be_visible()
    expect(other.get_by_label("Find")).to_have_value("1:16")
    expect(cells(other, "Wrong turn")).to_have_count(0)
    other.close()

    # Take it along: the masks, the report, and all of it.
    assert load_file(download(page, "Masks", tmp_path)).keys() == set(helpers.PRUNED)
    check_report(browser, download(page, "Report", tmp_path))
    archive = download(page, "Whole run", tmp_path)

    # Delete, think again, and delete for good.
    page.get_by_test_id("stPopoverButton").filter(has_text="Delete").click()
    page.get_by_role("button", name="Yes, delete").click()
    expect(page.get_by_text(f"Deleted {run.id}")).to_be_visible()
    assert run.id not in [other.id for other in store.list()]
    page.get_by_role("button", name="Undo").click()
    expect(cells(page, "The best so far")).to_have_count(1)
    assert store.get(run.id).state() == "finished"
    page.get_by_test_id("stPopoverButton").filter(has_text="Delete").click()
    page.get_by_role("button", name="Yes, delete").click()
    expect(page.get_by_text("No run is like that")).to_be_visible()

    # Bring it back, with its name and mark.
    page.get_by_test_id("stPopoverButton").filter(has_text="Import a run").click()
    page.locator("input[type=file]").set_input_files(archive)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(cells(page, "The best so far")).to_have_count(1)
    expect(page.get_by_role("button", name="Import", exact=True)).to_have_count(0)  # the form has closed
    assert store.get(run.id).labels() == Labels(name="The best so far", compare=True)
    page.get_by_test_id("stPopoverButton").filter(has_text="Import a run").click()
    page.locator("input[type=file]").set_input_files(archive)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_text("There is a run").first).to_contain_text("already, so nothing was imported")
    page.keyboard.press("Escape")

    # Open it elsewhere, and come back to where one was.
    page.get_by_test_id("stMain").get_by_role("link", name="Layers").click()
    page.wait_for_url(f"**/layers?run={run.id}*")
    expect(page.get_by_role("combobox", name="Run")).to_have_value(re.compile("The best so far"))
    page.go_back()
    expect(page.get_by_role("heading", name="The best so far")).to_be_visible()

    # Run it again with one change: the form of the Prune page holds it.
    page.get_by_role("combobox", name="From 1:16 to").click()
    page.get_by_role("option", name="1:8").click()
    page.get_by_role("button", name="Set it up").click()
    page.wait_for_url("**/prune?*pattern=1*")
    expect(page.get_by_text("Keep 1 of 8 weights (1:8)").first).to_be_visible()


def check_report(browser: Browser, path: Path) -> None:
    """It draws its figures by itself, asks nobody for anything, and goes dark with the reader's screen."""
    page = browser.new_page(color_scheme="dark")
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    expect(page.locator("figure .main-svg").first).to_be_visible()
    assert problems == []
    assert [url for url in asked if not re.match("data:|blob:", url)] == [path.as_uri()]
    expect(page.get_by_role("heading", level=1)).to_contain_text("The best so far · ")

    def ink() -> str:
        return page.locator("figure .xtick text").first.evaluate("node => getComputedStyle(node).fill")

    assert ink() == "rgb(228, 234, 240)"
    page.emulate_media(media="print")
    page.wait_for_function("getComputedStyle(document.querySelector('figure .xtick text')).fill == 'rgb(0, 0, 0)'")
    page.close()


def test_a_recorded_run_is_only_looked_at(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 2000})
    recorded = state.RECORDED.list()[0]
    page.goto(f"{address}/runs?run={recorded.id}")
    expect(page.get_by_text("It came with the app")).to_be_visible()
    expect(page.get_by_label("Name", exact=True)).to_be_disabled()
    expect(page.get_by_test_id("stPopoverButton").filter(has_text="Delete")).to_have_count(0)
    page.get_by_test_id("stMain").get_by_role("link", name="Prune").click()
    expect(page.get_by_role("heading", name=recorded.config().model)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_run_says_where_it_will_be_faster_when_that_is_opened(address: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{address}/prune")
    folded = page.get_by_text("Where will it be faster?")
    expect(folded).to_be_visible()
    expect(page.get_by_text("Layer by layer")).to_have_count(0)
    folded.click()
    expect(page.get_by_text("Layer by layer")).to_be_visible()
    # What a grid shows is told to those who cannot see it.
    expect(page.get_by_text("eligible, not measured").first).to_be_attached()
    expect(page.get_by_text("Plain PyTorch").first).to_be_attached()
