"""A first visit in a real browser, over the real engine: start, watch, cancel, start again, finish, download, use it."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from snows.runs.store import RunStore

pytestmark = pytest.mark.e2e

MINUTES = 60_000  # milliseconds
# Names what leaves the page inside a live chart, or with one: nothing may, or the chart blinks.
WATCH_FOR_FLICKER = """() => {
  window.removed = [];
  const name = node => node.nodeName + '.' + (node.getAttribute('class') || '');
  new MutationObserver(changes => {
    for (const change of changes)
      for (const node of change.removedNodes)
        if (node.nodeType == 1 && (node.querySelector('.live-chart') ||
            (change.target.closest('.live-chart') && (node.matches('.svg-container') || node.querySelector('.main-svg')))))
          removed.push(name(node) + ' from ' + name(change.target));
  }).observe(document.querySelector('[data-testid=stMain]'), { subtree: true, childList: true });
}"""


def set_number(page: Page, label: str, value: int) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(str(value))
    field.press("Enter")


def points(page: Page) -> int:
    """How many layers' final losses the live chart shows."""
    return page.locator(".live-chart").first.locator(".trace.scatter").last.locator(".points path").count()


def run_id(page: Page) -> str:
    page.wait_for_url("**/prune?run=*")
    return page.evaluate("new URLSearchParams(location.search).get('run')")  # `page.url` may still be the one before


def test_from_first_look_to_weights_in_use(address: str, browser: Browser, store: RunStore, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1600})
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_contain_text("before it forgets?")
    expect(page.get_by_text("Runs will use")).to_be_visible()

    # Start the demonstration by keyboard alone, and see its chart grow without a blink.
    page.get_by_role("button", name="Run the demonstration").focus()
    page.keyboard.press("Enter")
    first = run_id(page)
    expect(page.get_by_role("button", name="Draw one")).to_have_count(0)  # nothing of the page before is left
    expect(page.locator(".live-chart").first.locator(".points path").first).to_be_visible()
    page.evaluate(WATCH_FOR_FLICKER)
    seen = points(page)
    page.wait_for_function(
        "seen => [...document.querySelectorAll('.live-chart')][0].querySelectorAll('.trace.scatter:last-child .points path')"
        ".length >= seen + 2",
        arg=seen,
    )
    assert page.evaluate("removed") == []

    def cancel(run: str) -> None:
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("You cancelled this run.")).to_be_visible()
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        assert store.get(run).state() == "cancelled"

    cancel(first)

    # A longer one through the form. A reload and a second tab show the same run, still going.
    page.get_by_text("More: how many").click()
    set_number(page, "Calibration images", 2000)
    page.get_by_role("button", name="Start").click()
    page.wait_for_function("first => !location.search.includes(first)", arg=first)
    longer = run_id(page)
    page.reload()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    second_tab = browser.new_page()
    second_tab.goto(page.url)
    expect(second_tab.get_by_text("so far", exact=False).first).to_be_visible()
    second_tab.close()
    cancel(longer)

    # Start again, smaller, through the form; it finishes.
    page.get_by_text("More: how many").click()  # the page was built anew
    set_number(page, "Calibration images", 32)
    set_number(page, "Evaluation images", 200)
    set_number(page, "K", 1)
    expect(page.locator("ol li").filter(has_text="act1").first).to_be_visible()
    page.get_by_role("button", name="Start").click()
    page.wait_for_function("longer => !location.search.includes(longer)", arg=longer)
    second = run_id(page)
    expect(page.get_by_text("Agreement").first).to_be_visible(timeout=6 * MINUTES)
    assert store.get(second).state() == "finished"

    with page.expect_download() as download:
        page.get_by_role("button", name="Download the pruned weights").click()
    weights = tmp_path / download.value.suggested_filename
    download.value.save_as(weights)
    check_weights(weights, store, second)


def check_weights(path: Path, store: RunStore, run: str) -> None:
    """The downloaded file loads into a fresh network, obeys the pattern, and is as accurate as the page said."""
    import torch
    from safetensors.torch import load_file

    from snows.events import RunStarted
    from snows.method import sparsity
    from snows.sources import data, models

    config = store.get(run).config()
    fresh = models.load(config.model)
    fresh.module.load_state_dict(load_file(path))
    sites = next(e for e in store.get(run).events()[0] if isinstance(e, RunStarted)).sites
    for site in sites:
        assert sparsity.check_compliance(fresh.module.get_parameter(site), config.prune.pattern).ok, site
    images = data.load(config.data, fresh, config.num_calibration, config.num_evaluation, config.prune.seed)
    with torch.no_grad():
        answers = fresh.module(images.evaluation).argmax(1)
    accuracy = float((answers == images.labels).float().mean())
    assert accuracy == pytest.approx(store.get(run).metrics()["accuracy"], abs=1e-6)
