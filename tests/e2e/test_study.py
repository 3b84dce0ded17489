"""The K study as a person walks it: read a finished one, share it, set up another, start it, and stop it."""

import pytest
from playwright.sync_api import Browser, expect

from snows.runs.store import RunStore
from tests.app.tables.test_study import finished_comparison
from tests.app.test_pages import until_ended

pytestmark = pytest.mark.e2e


def test_read_a_study_and_start_another(address: str, browser: Browser, store: RunStore) -> None:
    comparison = finished_comparison(store, ["resnet20-fashion", "vit-fashion"])
    page = browser.new_page(viewport={"width": 1440, "height": 1600})
    page.goto(f"{address}/study")
    expect(page.get_by_text("K = 3 is the smallest whose accuracy, 94.70 % (95 % interval")).to_be_visible()
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(4)
    expect(charts.first.get_by_text("K (operations ahead)")).to_be_visible()

    # Against depth, and another loss; the link shows another person the same.
    page.get_by_role("radio", name="K ÷ operations of the network").click()
    expect(charts.first.get_by_text("K ÷ operations of the network (%)")).to_be_visible()
    page.get_by_role("radio", name="At the layer itself").click()
    expect(charts.nth(1).get_by_text("Error ÷ target, layer")).to_be_visible()
    other = browser.new_page(viewport={"width": 1440, "height": 1600})
    other.goto(page.url)
    shared = other.locator(".js-plotly-plot")
    expect(shared.first.get_by_text("K ÷ operations of the network (%)")).to_be_visible()
    expect(shared.nth(1).get_by_text("Error ÷ target, layer")).to_be_visible()
    other.close()

    # Another: two K, typed, and few images.
    page.get_by_role("combobox", name="Study").click()
    page.get_by_role("option", name="A new study").click()
    ks = page.get_by_role("combobox", name="K", exact=True)
    expect(ks).to_be_visible()
    ks.click()
    for _ in range(4):  # of 0, 1, 3, 5, 10 the first stays
        ks.press("Backspace")
    ks.press_sequentially("7")
    ks.press("Enter")
    ks.press("Escape")
    images = page.get_by_role("combobox", name="Calibration images")
    images.click()
    images.press("Backspace")
    images.press_sequentially("32")
    images.press("Enter")
    images.press("Escape")
    page.get_by_role("button", name="Start 2 runs").click()
    expect(page.get_by_text("0 of 2 runs finished")).to_be_visible()
    page.get_by_role("button", name="Cancel all").click()
    expect(page.get_by_role("button", name="Resume the rest")).to_be_visible()
    made = next(found for found in store.comparisons() if found.id != comparison.id)
    assert [(c.prune.k_steps, c.num_calibration) for c in (run.config() for run in made.runs())] == [(0, 32), (7, 32)]
    first, last = (until_ended(run) for run in made.runs())
    assert first in ("cancelled", "finished")  # the click may come when the first has its few seconds behind it
    assert last == "cancelled"
